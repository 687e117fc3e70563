"""On what terms two computations of the same model are compared: no dropout, a fixed direction, no entry apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DROPOUTS: set[Callable[..., Any]] = {
    torch.nn.functional.dropout,
    torch.nn.functional.dropout1d,
    torch.nn.functional.dropout2d,
    torch.nn.functional.dropout3d,
    torch.nn.functional.alpha_dropout,
    torch.nn.functional.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
    torch.feature_dropout,
    torch.alpha_dropout,
    torch.feature_alpha_dropout,
}


_FRACTIONS = {
    "rand", "rand_like", "randn", "randn_like", "bernoulli", "bernoulli_", "normal", "normal_", "uniform_", "exponential_",
}  # fmt: skip
DRAWN = 0.6
"""What stands for a number between zero and one that is drawn."""


def _drawn_number(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Return a number that the function might have drawn, of whatever range."""
    if getattr(function, "__name__", "") != "uniform_":
        return DRAWN
    low, high = (kwargs.get(key, args[at] if len(args) > at else default) for at, (key, default) in
                 enumerate((("from", 0.0), ("to", 1.0)), start=1))  # fmt: skip
    return float(low) + DRAWN * (float(high) - float(low))


def drops(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call draws a mask: at a rate above zero, and in training mode."""
    if function is torch.nn.functional.scaled_dot_product_attention:
        return kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0) != 0
    if function is torch.nn.functional.multi_head_attention_forward:
        rate = kwargs.get("dropout_p", args[10] if len(args) > 10 else 0.0)
        return bool(kwargs.get("training", args[13] if len(args) > 13 else True)) and rate != 0
    if function not in DROPOUTS:
        return False
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    return bool(training) and rate != 0


_AS_DRAWN: ContextVar[bool] = ContextVar("as_drawn", default=False)


@contextmanager
def as_drawn() -> Iterator[None]:
    """For the length of a block, inside `WithoutDropout`, numbers are those that are drawn."""
    token = _AS_DRAWN.set(True)
    try:
        yield
    finally:
        _AS_DRAWN.reset(token)


class WithoutDropout(TorchFunctionMode):
    """While active, nothing is dropped, and random fractions are all one number: a batch and an example alone draw others.

    A mask of stochastic depth or noise is then the same for all, and neither zero nor one, so that what it is multiplied with
    and what it leaves out both have their part. Whole numbers, which choose, and the model's own generators are left alone.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Pass the input on where it would be masked."""
        kwargs = kwargs or {}
        if func in DROPOUTS and drops(func, args, kwargs):
            values = args[0] if args else kwargs["input"]
            # Another tensor, as where something is dropped: what is written to it later is not written to the values.
            in_place = func is torch.dropout_ or kwargs.get("inplace", args[3] if len(args) > 3 else False)
            return values if in_place else values.clone()
        if func is torch.nn.functional.scaled_dot_product_attention:
            args, kwargs = args[:4], {name: value for name, value in kwargs.items() if name != "dropout_p"}
        if func is torch.nn.functional.multi_head_attention_forward:
            # It attends by functions that this mode does not see; its rate is the eleventh argument.
            args = (*args[:10], 0.0, *args[11:])
        result = func(*args, **kwargs)
        drawn = getattr(func, "__name__", "") in _FRACTIONS and kwargs.get("generator") is None and not _AS_DRAWN.get()
        if drawn and isinstance(result, Tensor) and result.is_floating_point() and not result.requires_grad:
            result.fill_(_drawn_number(func, args, kwargs))
        return result


def fixed_cotangent(output: Tensor) -> Tensor:
    """Return a fixed direction that weighs every output of every example differently."""
    rows = torch.arange(output.shape[0], device=output.device, dtype=torch.float64)
    columns = torch.arange(output[0].numel(), device=output.device, dtype=torch.float64)
    cotangent = torch.cos(1 + rows[:, None] + 2.3 * columns).view(output.shape).to(output.dtype)
    return cotangent.masked_fill_(output.isinf(), 0.0)  # no loss has a gradient at a class that is ruled out


def tells(output: Tensor) -> bool:
    """Whether a comparison of outputs would tell something of every example: no NaN, and a logit that is not ruled out."""
    finite = output.isfinite()
    if bool(finite.all()):
        return True
    return not bool(output.isnan().any()) and bool(finite.flatten(1).any(1).all() if output.dim() > 1 else finite.all())


def finite(output: Tensor) -> Tensor:
    """Return the output with zeros where it is infinite: classes that are ruled out by -inf."""
    infinite = output.isinf()
    return output.masked_fill(infinite, 0.0) if bool(infinite.any()) else output


def close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether no entry differs by more than the tolerance, relative to the largest; infinite ones have to be the same."""
    ruled_out = first.isinf()
    if bool(ruled_out.any()) or bool(second.isinf().any()):
        if not torch.equal(first[ruled_out], second[ruled_out]):
            return False
        first, second = first.masked_fill(ruled_out, 0.0), second.masked_fill(ruled_out, 0.0)
    scale = torch.maximum(first.abs().max(), second.abs().max()).clamp_min(torch.finfo(first.dtype).tiny)
    return bool(((first - second).abs().max() <= tolerance * scale).item())
