"""Interception of the torch functions that receive a trainable parameter, by the parameter's identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.data_sizes import dispatches, sized_by_values
from noisesam.gradients.engine.guess import Guess
from noisesam.gradients.engine.pooling import in_quick_order
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import FAILURES, UnsupportedParameterUse, mark_as_of_a_function
from noisesam.gradients.frozen_batch_norm import as_arithmetic
from noisesam.gradients.recomputation import refuse_recomputation

Rule = Callable[..., Any]
"""rule(tape, function, *args, **kwargs) -> what the function returns, per-example exact."""

_RULES: dict[Callable[..., Any], Rule] = {}
_NEEDS_ACTIVATION: set[Callable[..., Any]] = set()

# Questions about a parameter, which compute nothing from its values.
_HARMLESS: set[Callable[..., Any]] = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.is_floating_point,
    torch.Tensor.is_complex,
    torch.Tensor.is_contiguous,
    torch.Tensor.stride,
    torch.Tensor.element_size,
}
for _attribute in (
    "shape", "dtype", "device", "requires_grad", "ndim", "is_sparse", "layout", "is_cuda", "is_cpu", "is_nested", "is_leaf",
    "is_meta", "is_quantized", "is_mkldnn", "grad_fn", "names", "is_mps", "is_xpu",
):  # fmt: skip
    if hasattr(torch.Tensor, _attribute):  # not every attribute exists in every version of torch
        _HARMLESS.add(getattr(torch.Tensor, _attribute).__get__)


def register_rule(*functions: Callable[..., Any], needs_activation: bool = False) -> Callable[[Rule], Rule]:
    """Register the exact rule of one or more torch functions.

    A rule is called as rule(tape, function, *args, **kwargs) in place of the function whenever one of the arguments is a
    trainable parameter. It returns the function's value at w + eps_i (`tape.perturbation(parameter)`), and on the way back
    records the parameter's per-example gradient (`tape.record`) where `tape.records(parameter)`, and returns its gradient
    summed over the examples where `tape.shares(parameter)`.

    Args:
        functions: What the rule stands for.
        needs_activation: Without an activation among its arguments the function returns what is as much a weight as they
            are; then the rule is not asked.

    Example:
        >>> @register_rule(torch.Tensor.diag)
        ... def diagonal_rule(tape, function, parameter):
        ...     raise UnsupportedParameterUse("diag")
        >>> _ = _RULES.pop(torch.Tensor.diag)
    """

    def register(rule: Rule) -> Rule:
        for function in functions:
            _RULES[function] = rule
        if needs_activation:
            _NEEDS_ACTIVATION.update(functions)
        return rule

    return register


class Interception(TorchFunctionMode):
    """While active, every torch function that receives a trainable parameter goes through its rule."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the function by its rule where a trainable parameter is among its arguments."""
        kwargs = kwargs or {}
        if func in _HARMLESS:
            return func(*args, **kwargs)
        tensors = tensors_in((args, kwargs) if kwargs else args)
        parameter = self.tape.first_tracked(tensors)
        self.tape.way.step(func, args, kwargs, tensors, shapes=parameter is not None)
        try:
            result = self._result(func, args, kwargs, tensors, parameter)
        except FAILURES as error:
            mark_as_of_a_function(error)
            raise
        self.tape.way.made(func, args, result)
        return result

    def _result(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        parameter: Tensor | None,
    ) -> Any:
        if func is torch.Tensor.register_hook and parameter is None and callable(args[-1]):
            args = (*args[:-1], self.tape.watched(args[-1]))
        if parameter is None:
            if not self.tape.sized_by_data:
                fixed = self.tape.constants.fixed
                if sized_by_values(func, args, kwargs, fixed, self.tape.examples):
                    self.tape.sized_by_data = _describe(func)
                elif asked := fixed.asked():
                    self.tape.way.meet(asked)
            result = self.tape.constants.call(in_quick_order(as_arithmetic(func)), args, kwargs, tensors)
            if not self.tape.sized_by_data and dispatches(func, result, tensors, self.tape.constants.fixed, self.tape.examples):
                self.tape.sized_by_data = _describe(func)
            return result
        refuse_recomputation()
        rule, reason = _RULES.get(func), None
        if rule is not None and not (func in _NEEDS_ACTIVATION and self._all_weights(tensors)):
            try:
                made = rule(self.tape, func, *args, **kwargs)
                own = isinstance(made, Tensor) and not any(made is value for value in tensors)
                return self.tape.in_order(made) if own else made
            except UnsupportedParameterUse as unsupported:
                reason = str(unsupported)  # the exception itself would hold this frame, and the model's with it
        result, derived = self.tape.derive(func, args, kwargs)
        if not derived:
            raise UnsupportedParameterUse(reason or f"{_describe(func)} uses the parameter {self.tape.name(parameter)!r}")
        return result

    def _all_weights(self, tensors: list[Tensor]) -> bool:
        return all(self.tape.tracks(value) or self._is_beside_examples(value) for value in tensors)

    def _is_beside_examples(self, value: Tensor) -> bool:
        """Whether this is a constant of the model without the examples' axis; where it has as many rows it is guessed."""
        if not self.tape.constants.holds(value):
            return False
        if value.dim() < 2 or value.shape[0] != self.tape.examples or value.shape[0] == 1:
            return True
        self.tape.constants_in_doubt = True
        return self.tape.guess is not Guess.EXAMPLES_IN_CONSTANTS


def _describe(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", repr(function))
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    return f"{name!r}"
