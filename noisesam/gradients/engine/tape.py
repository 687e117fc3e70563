"""What one evaluation of one chunk carries: its perturbation going in, the factors of its gradients coming out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.engine.constants import Constants
from noisesam.gradients.engine.derived_weights import DerivedWeights
from noisesam.gradients.engine.guess import Guess
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.engine.way import Way
from noisesam.gradients.factors import Dense, Factor, combine
from noisesam.gradients.memory_order import laid_out
from noisesam.gradients.per_example_gradient import PerExampleGradient

Use = tuple[str, int]
"""A parameter's name, and which of the contributions to its gradient, or to that of a weight derived from it, is meant, in the
order of the reverse pass."""


class Tape:
    """The state that the rules of one evaluation share.

    A pull-back records the per-example gradients (`recording`), forms the shared weight gradients (`sharing`), or both.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        examples: int,
        perturbation: Mapping[str, Factor] | None = None,
        previous: Tape | None = None,
        guess: Guess = Guess.EXAMPLES_FIRST,
        consume: bool = False,
        constants: Constants | None = None,
    ) -> None:
        self.examples = examples
        self.guess = guess
        self.recording = False
        self.sharing = True
        self.perturbed_passes = 2
        """How many passes at the examples' own weights may follow: 0, 1 (forward) or 2 (forward and back)."""
        self.way = Way()
        self.orders: list[tuple[int, ...]] = []
        """The strides of what the rules have returned, call by call."""
        self.draws = False
        """Whether the pass at w has drawn random numbers."""
        self.sized_by_data = ""
        """The function, if any, by which the data decide how many positions a layer sees."""
        self.unheard = False
        """Whether there was an operation of which no function of torch told, where that was looked for."""
        self.constants_in_doubt = False
        """Whether a weight has met a constant of the model with as many rows as there are examples."""
        self.hooked = False
        """Whether the model has registered a hook on a tensor."""
        self.rewrites = 0
        """How many such hooks have put another gradient in the place of theirs, in the last pull-back."""
        self.heard_of: Container[Use] = ()
        """The uses of parameters whose norms a pull-back tells."""
        self.use_norms: dict[Use, Tensor] = {}
        """Those norms, squared, (n,), of the last pull-back."""
        self.temporary_bytes = 0
        """The largest gradient that was formed only to be summed up."""
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        # What is used up is to go from the caller's hands, too.
        self._perturbation = perturbation if consume and isinstance(perturbation, dict) else dict(perturbation or {})
        self._used_up: set[str] = set()
        self._factors: dict[str, list[Factor]] = defaultdict(list)
        self._places: Counter[str] = Counter()
        self._first_outputs: list[_FirstOutput] = []
        self._channels_last: dict[int, tuple[Tensor, Tensor, int]] = {}
        self._previous = previous
        self._consume = consume
        self._uses: Counter[int] = Counter()
        self.constants = constants or Constants()
        self._derived = DerivedWeights(self.constants)

    @property
    def trace(self) -> int:
        """What the model has called, with what, and the shapes that the rules have met: equal where a proof holds again."""
        return self.way.number

    @property
    def why_sized_by_data(self) -> str:
        """That the data decide by some function where rows belong, in words; "" where they do not."""
        return self.sized_by_data and f"the data decide by {self.sized_by_data} how many positions a layer sees"

    @contextmanager
    def mode(self, *, recording: bool, sharing: bool, perturbed_passes: int = 2) -> Iterator[None]:
        """Say for the length of a block what a pull-back forms; an exception leaves no half of a record behind."""
        before = self.recording, self.sharing, self.perturbed_passes
        self.recording, self.sharing, self.perturbed_passes = recording, sharing, perturbed_passes
        self._places.clear()
        self.use_norms = {}
        try:
            yield
        finally:
            self.recording, self.sharing, self.perturbed_passes = before
            self._factors.clear()
            self._derived.forget()

    @property
    def prefers_second(self) -> bool:
        """Whether of two axes as long as the batch the second is taken for the examples'."""
        return self.guess is Guess.POSITIONS_FIRST

    def tracks(self, value: object) -> bool:
        """Whether this object is a trainable parameter of the model, or derived from such alone."""
        return id(value) in self._names

    def first_tracked(self, values: Sequence[Tensor]) -> Tensor | None:
        """Return the first of these that is a trainable parameter, or derived from such alone."""
        for value in values:
            if id(value) in self._names:
                return value
        return None

    def in_order(self, result: Tensor) -> Tensor:
        """Return what a rule has made, at w + eps_i as it lay at w: a mask is drawn in the order of memory."""
        self.orders.append(result.stride())
        before = self._previous
        if before is None or not before.draws or len(before.orders) < len(self.orders):
            return result
        return laid_out(result, before.orders[len(self.orders) - 1])

    def watched(self, hook: Callable[..., Any]) -> Callable[[Tensor], Any]:
        """Return a hook of the model's that tells when it puts another gradient in the place of its own."""
        self.hooked = True

        def watch(gradient: Tensor) -> Any:
            version = gradient._version
            other = hook(gradient)
            self.rewrites += other is not None or gradient._version != version
            return other

        return watch

    def name(self, parameter: Tensor) -> str:
        """Return the parameter's name."""
        return self._names[id(parameter)]

    def perturbation(self, parameter: Tensor | None) -> Factor | None:
        """Return eps_i of this parameter, or None where it is not perturbed; of a derived weight f(w + eps_i) - f(w)."""
        if parameter is None or id(parameter) not in self._names:
            return None
        if parameter in self._derived:
            return self._derived.perturbation(parameter, self.perturbation, self.examples)
        self._uses[id(parameter)] += 1
        name = self._names[id(parameter)]
        if name in self._used_up:
            raise UnsupportedParameterUse(f"{name!r} is used more often at w + eps than at w")
        factor = self._perturbation.get(name)
        if factor is None or not self._consume or self._previous is None or self._previous._uses[id(parameter)] != 1:
            return factor
        # Held by nobody but the layer from here on: its memory is free again as soon as nothing there needs it.
        self._used_up.add(name)
        del self._perturbation[name]
        return factor.for_one_use() if isinstance(factor, Dense) else factor

    def _is_perturbed(self, parameter: Tensor) -> bool:
        return self.name(parameter) in self._perturbation or self.name(parameter) in self._used_up

    def records(self, parameter: Tensor | None) -> bool:
        """Whether this pull-back forms the per-example gradient of this tensor."""
        if parameter is None or id(parameter) not in self._names or not parameter.requires_grad:
            return False
        return self.recording or (self.sharing and self._derived.needs_each(parameter))

    def shares(self, parameter: Tensor | None) -> bool:
        """Whether this pull-back forms the gradient of this tensor summed over the examples."""
        return self.sharing and parameter is not None and not self._derived.needs_each(parameter)

    def record(self, parameter: Tensor, factor: Factor) -> None:
        """Add one contribution to the parameter's per-example gradient."""
        name = self._names[id(parameter)]
        use = name, self._places[name]
        self._places[name] += 1
        if use in self.heard_of:
            self.use_norms[use] = factor.squared_norm()
        if parameter in self._derived:
            found = self._derived.record(parameter, factor)
            if found is None:
                return
            parameter, factor = found
        self._factors[self._names[id(parameter)]].append(factor)

    def forget_derived(self) -> None:
        """Drop what a pull-back that was broken off has recorded of derived weights."""
        self._derived.forget()

    def derive(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """Call a function that receives parameters; False beside it where it is none of parameters alone."""
        found = self._derived.derive(function, args, kwargs, self.tracks, self._is_perturbed)
        if found is None:
            return None, False
        result, weights = found
        for weight in weights:
            self._names[id(weight)] = self.name(self._derived[weight].roots[0])
        return result, True

    def lead_back(self) -> dict[str, Tensor]:
        """Lead the gradients of derived weights back to their parameters; return what autograd has not added up of them."""
        totals: dict[str, Tensor] = {}
        for root, gradient, apart in self._derived.settled():
            if self.recording:
                self.record(root, Dense(gradient))
            if apart and self.sharing:
                before, total = totals.get(self.name(root)), gradient.sum(0)
                totals[self.name(root)] = total if before is None else before + total
        return totals

    def take_gradient(self) -> PerExampleGradient:
        """Return what was recorded, summed over uses, and forget it."""
        factors = {name: combine(found) for name, found in self._factors.items()}
        self._factors.clear()
        return PerExampleGradient(factors, self.examples)

    def remember_first(self, use: Sequence[object], inputs: Tensor, outputs: Tensor) -> None:
        """Keep what a layer made of the data themselves: at w + eps_i its input is the same.

        `use` is all that the output depends on beside the inputs: weight, bias and options. One weight may meet the same data
        twice, each time with another bias, stride or direction.
        """
        if torch.is_grad_enabled() and not inputs.requires_grad:  # without gradients nothing tells the data from the rest
            # Detached, but with the same version counter: a tape that held its own graph would never be freed.
            self._first_outputs.append(_FirstOutput(tuple(use), _versions(use), inputs, outputs.detach(), outputs._version))

    def recall_first(self, use: Sequence[object], inputs: Tensor) -> Tensor | None:
        """Return the previous evaluation's output of this use if it saw the very same data and nothing changed any of it."""
        if self._previous is None or inputs.requires_grad:
            return None
        found = [kept.outputs for kept in self._previous._first_outputs if kept.holds(use, inputs)]
        return found[0] if found else None

    def channels_last(self, kernel: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a convolution's kernel with its channels last in memory.

        A parameter's is written out once for all passes of a step. What a model computes anew at every call is not kept.
        """
        if not isinstance(kernel, nn.Parameter):
            return _written_channels_last(kernel, dtype)
        for tape in (self, self._previous):
            found = None if tape is None else tape._channels_last.get(id(kernel))
            # The kernel itself is kept beside: an object of another layer may come to have the number of one that is gone.
            if found is not None and found[0] is kernel and found[1].dtype == dtype and found[2] == kernel._version:
                self._channels_last[id(kernel)] = found
                return found[1]
        arranged = _written_channels_last(kernel, dtype)
        self._channels_last[id(kernel)] = (kernel, arranged, kernel._version)
        return arranged


@dataclass(frozen=True)
class _FirstOutput:
    """What one use of a layer made of the data, with all that must be unchanged for it to hold again."""

    use: tuple[object, ...]
    versions: tuple[int, ...]
    inputs: Tensor
    outputs: Tensor
    version: int

    def holds(self, use: Sequence[object], inputs: Tensor) -> bool:
        """Whether this is the output of that use for these inputs."""
        before = self.inputs
        same = before.data_ptr() == inputs.data_ptr() and before.shape == inputs.shape and before.stride() == inputs.stride()
        if not same or before.dtype != inputs.dtype or before._version != inputs._version:
            return False
        return self.outputs._version == self.version and _same_use(self.use, use) and self.versions == _versions(use)


def _same_use(first: Sequence[object], second: Sequence[object]) -> bool:
    """Whether both hold the same tensors, by identity, and equal options."""
    if len(first) != len(second):
        return False
    return all(a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b for a, b in zip(first, second, strict=True))


def _versions(use: Sequence[object]) -> tuple[int, ...]:
    return tuple(part._version for part in use if isinstance(part, Tensor))


def _written_channels_last(kernel: Tensor, dtype: torch.dtype) -> Tensor:
    return kernel.detach().to(dtype).contiguous(memory_format=torch.channels_last)
