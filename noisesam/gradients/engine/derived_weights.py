"""Weights that a model computes from its parameters alone: a transpose, a cast, a standardised or masked kernel.

Where a torch function receives parameters and nothing that depends on the data, its value v = f(w) is as much a weight as w
is. The rules treat it as one, and here it is led back to the parameters it comes from:

    perturbation of v for example i    f(w + eps_i) - f(w)
    gradient of example i              J_f(w)^T G_i, with G_i that of v
    sum at w + eps_i                   sum_i J_f(w + eps_i)^T G_i: where f is not affine the G_i are needed one by one

f is repeated as a whole, from the parameters on, so a chain of functions keeps nothing of its steps for every example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vjp
from torch.utils._pytree import tree_map

from noisesam.gradients.engine import weight_functions
from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.constants import Constants
from noisesam.gradients.engine.each_example import each
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.engine.weight_forms import Form, form_of, in_form
from noisesam.gradients.factors import Dense, Factor, Shared, combine


class DerivedWeight:
    """One value v = f(w), with the way from the parameters to it."""

    def __init__(self, value: Tensor, call: _Call, place: int | None) -> None:
        self.value = value
        self.call = call
        self.place = place
        self.roots = call.roots
        self.affine = call.affine
        self.form: Form | None = call.form
        """How the entries of v lie to those of its only parameter, None where they are others."""
        self._state = _state(value)
        self.moved: list[Factor | None] = []
        """eps_i of the roots where v was met last; without any, v was met at w."""

    @property
    def is_moved(self) -> bool:
        """Whether v was met at w + eps_i."""
        return any(factor is not None for factor in self.moved)

    def check(self) -> None:
        """Refuse a value that has become another one since: written to, or returned by an autograd function of the model."""
        if self._state != _state(self.value):
            raise UnsupportedParameterUse("a weight computed from parameters is changed after it was computed")

    def at(self, known: dict[int, Any]) -> Tensor:
        """Return f at the values of the parameters in `known`, by identity, where results of calls are collected, too."""
        if id(self.call) not in known:
            known[id(self.call)] = self.call.repeat(known)
        result = known[id(self.call)]
        return result if self.place is None else result[self.place]

    def of(self, *roots: Tensor) -> Tensor:
        """Return f of the roots' values, in their order."""
        return self.at({id(root): value for root, value in zip(self.roots, roots, strict=True)})


class _Call:
    """A torch function that was called with weights and constants."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        received: list[Tensor],
        known: Mapping[int, DerivedWeight],
    ) -> None:
        self.function, self.args, self.kwargs, self.received = function, args, kwargs, received
        given = tensors_in((args, kwargs))
        self._constants = [(value, value._version) for value in given if not any(value is own for own in received)]
        self.sources = {id(value): known[id(value)] for value in received if id(value) in known}
        roots = (self.sources[id(value)].roots if id(value) in self.sources else [value] for value in received)
        self.roots = list({id(root): root for found in roots for root in found}.values())
        self.form: Form | None = None
        self.affine = self.differentiable = self.writes = False

    def made(self, outputs: list[Tensor], *, writes: bool) -> None:
        """Say what the call has returned, and whether it has written to what it received."""
        self.writes = writes
        self.differentiable = any(output.requires_grad for output in outputs)
        self.form = None if writes or len(outputs) != 1 else self._form(outputs[0])
        affine = weight_functions.is_affine(self.function, self.args, self.received)
        self.affine = self.form is not None or (affine and not writes and all(s.affine for s in self.sources.values()))

    def repeat(self, known: dict[int, Any]) -> Any:
        """Call the function again, with other values of the parameters."""
        if any(value._version != version for value, version in self._constants):
            raise UnsupportedParameterUse("a constant that meets a parameter is changed by the forward pass")

        def other(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            repeated = self.sources[id(value)].at(known) if id(value) in self.sources else known.get(id(value), value)
            return repeated.clone() if self.writes and id(value) in self.sources else repeated

        args, kwargs = tree_map(other, (self.args, self.kwargs))
        with nullcontext() if self.differentiable else torch.no_grad():
            return self.function(*args, **kwargs)

    def _form(self, value: Tensor) -> Form | None:
        if len(self.received) != 1:
            return None
        source = self.sources.get(id(self.received[0]))
        return form_of(
            value, self.received[0], "same" if source is None else source.form, weight_functions.copies(self.function)
        )


def _state(value: Tensor) -> tuple[int, bool, Any]:
    return value._version, value.requires_grad, value.grad_fn


class DerivedWeights:
    """Those of one evaluation."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self._found: dict[int, DerivedWeight] = {}
        self._factors: dict[int, tuple[DerivedWeight, list[Factor]]] = {}

    def __contains__(self, value: object) -> bool:
        return id(value) in self._found

    def __getitem__(self, value: Tensor) -> DerivedWeight:
        return self._found[id(value)]

    def derive(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tracks: Callable[[object], bool],
        moved: Callable[[Tensor], bool],
    ) -> tuple[Any, list[Tensor]] | None:
        """Call a function of weights alone.

        Args:
            function: The torch function.
            args: Its arguments.
            kwargs: Its named arguments.
            tracks: Whether a tensor is a parameter or derived from one.
            moved: Whether a parameter is perturbed.

        Returns:
            What the function returns, and the new weights in it; None where it depends on more than parameters and constants
            of the model, or is none whose value could be repeated.
        """
        if weight_functions.name_of(function) in ("to", "type_as") and len(args) > 1 and isinstance(args[1], Tensor):
            # Cast to the type and device of something else, which is no more to the value than these two.
            like: Tensor = args[1]
            function, args, kwargs = torch.Tensor.to, (args[0], like.device, like.dtype), {}
        tensors = tensors_in((args, kwargs))
        if not weight_functions.is_repeatable(function, args, kwargs):
            return None
        if not all(tracks(value) or value in self.constants for value in tensors):
            return None
        received = [value for value in tensors if tracks(value)]
        for value in received:
            if value in self:
                self._found[id(value)].check()
        if weight_functions.is_in_place(function) and not self._may_be_written_to(received[0]):
            return None
        call = _Call(function, args, kwargs, received, self._found)
        versions = [value._version for value in received]
        result = function(*args, **kwargs)
        written = [value for value, before in zip(received, versions, strict=True) if value._version != before]
        writes = bool(written)
        if not all(value is result and self._may_be_written_to(value) for value in written):
            return None
        several = isinstance(result, (tuple, list))
        outputs = list(result) if several else [result]
        if not outputs or not all(isinstance(output, Tensor) for output in outputs):
            return None
        if not writes and len(outputs) == 1 and any(outputs[0] is value for value in received):
            return result, []  # x.float() of what is float32
        call.made(outputs, writes=writes)
        if not call.affine and not writes and any(moved(root) for root in call.roots):
            outputs = [_End.apply(output) if output.requires_grad else output for output in outputs]
            result = type(result)(outputs) if several else outputs[0]  # pyright: ignore[reportCallIssue]
        for place, output in enumerate(outputs):
            self._found[id(output)] = DerivedWeight(output, call, place if several else None)
        return result, outputs

    def needs_each(self, value: Tensor) -> bool:
        """Whether the pull-back at w + eps_i has to form this weight's gradients one by one."""
        weight = self._found.get(id(value))
        return weight is not None and not weight.affine and weight.is_moved

    def perturbation(self, value: Tensor, of: Callable[[Tensor], Factor | None], examples: int) -> Factor | None:
        """Return f(w + eps_i) - f(w); `of` gives the parameters' eps_i."""
        weight = self._found[id(value)]
        weight.check()
        if not value.is_floating_point():
            raise UnsupportedParameterUse("a parameter decides by a comparison what becomes of an activation")
        weight.moved = [of(root) for root in weight.roots]
        found = [factor for factor in weight.moved if factor is not None]
        if not found:
            return None
        if weight.form is not None:
            return in_form(found[0], weight.form, value.shape)
        with torch.no_grad():
            if all(isinstance(factor, Shared) for factor in found):
                pairs = zip(weight.roots, weight.moved, strict=True)
                roots = [root.detach() + eps.tensor if isinstance(eps, Shared) else root.detach() for root, eps in pairs]
                return Shared(weight.of(*roots) - value.detach(), examples)
            moved = each(weight.of, *self._roots_of(weight))
            # Where both are infinite, nothing changes.
            return Dense((moved - value.detach()).masked_fill_(moved == value, 0.0))

    def record(self, value: Tensor, factor: Factor) -> tuple[Tensor, Factor] | None:
        """Keep a contribution to a derived weight's gradient, or return it as one to its parameter where it is one already."""
        weight = self._found[id(value)]
        if weight.form is not None:
            return weight.roots[0], in_form(factor, weight.form, weight.roots[0].shape)
        self._factors.setdefault(id(weight), (weight, []))[1].append(factor)
        return None

    def forget(self) -> None:
        """Drop what was recorded."""
        self._factors.clear()

    def _may_be_written_to(self, value: Tensor) -> bool:
        """Whether nothing else is changed when this is: no parameter, no other weight, no gradient that stays as it was."""
        if value not in self or (value.requires_grad and not torch.is_grad_enabled()):
            return False
        others = (weight.value for weight in self._found.values() if weight.value is not value)
        try:
            place = value.untyped_storage().data_ptr()
            return all(other.untyped_storage().data_ptr() != place for other in (*others, *self._found[id(value)].roots))
        except (RuntimeError, NotImplementedError):
            return False  # a tensor that does not say where it lies

    def settled(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yield parameter, per-example gradient (n, *shape) and whether autograd has not added it up; forget all recorded."""
        recorded, self._factors = self._factors, {}
        for weight, factors in recorded.values():
            apart = not weight.affine and weight.is_moved
            for root, gradient in zip(weight.roots, self._pulled_back(weight, combine(factors).dense()), strict=True):
                yield root, gradient, apart

    def _pulled_back(self, weight: DerivedWeight, gradients: Tensor) -> Sequence[Tensor]:
        """Return J_f^T G_i with respect to every root."""

        def pull(gradient: Tensor, *roots: Tensor) -> tuple[Tensor, ...]:
            output, back, *_ = vjp(weight.of, *roots)
            return back(gradient.to(output.dtype))

        return each(pull, (gradients, True), *self._roots_of(weight))

    def _roots_of(self, weight: DerivedWeight) -> Iterable[tuple[Tensor, bool]]:
        """Return the roots as they were met: every example's own, True, where they are perturbed."""
        if not weight.is_moved:
            return [(root.detach(), False) for root in weight.roots]
        return [
            (_moved_root(root, factor), factor is not None) for root, factor in zip(weight.roots, weight.moved, strict=True)
        ]


class _End(Function):
    """Where autograd ends at w + eps_i: behind it every example has a Jacobian of its own, and `settled` goes on."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor | None) -> Any:
        del ctx
        if output_gradients[0] is not None:
            raise RuntimeError("a rule returns a weight's summed gradient where tape.shares(weight) is False")
        return None


def _moved_root(root: Tensor, factor: Factor | None) -> Tensor:
    return root.detach() if factor is None else root.detach() + factor.dense().to(root.dtype)
