"""What is known of torch functions that receive weights alone: which are affine, which only copy, which have no value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.terms import drops


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


_TRANSPOSES = {getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH")}
_VALUES = {getattr(torch.Tensor, name).__get__ for name in ("data", "real")}
_LAYOUT = words(
    "t transpose swapaxes swapdims permute movedim moveaxis view reshape flatten unflatten ravel squeeze unsqueeze narrow "
    "select index_select __getitem__ getitem chunk split tensor_split unbind expand repeat tile cat concat concatenate stack "
    "hstack vstack contiguous clone detach sum mean"
)
_COPIES = words("contiguous clone float double half bfloat16 to type type_as")
_SUMS = words("add sub neg __add__ __radd__ __sub__ __rsub__ __neg__ subtract negative")
_PRODUCTS = words("mul __mul__ __rmul__ multiply matmul mm mv __matmul__ linear")
_QUOTIENTS = words("div __truediv__ true_divide divide")
_NO_VALUES = words(
    "__get__ __set__ __delete__ __setitem__ setitem register_hook register_post_accumulate_grad_hook retain_grad backward "
    "detach_ requires_grad_ set_ resize_ as_strided as_strided_"
)
RANDOM = words(
    "bernoulli bernoulli_ normal normal_ uniform_ random_ exponential_ geometric_ cauchy_ log_normal_ rand_like randn_like "
    "randint_like multinomial poisson binomial rrelu rrelu_ gumbel_softmax empty_like new_empty new_empty_strided"
)
_KEEPING_STATISTICS = words("batch_norm instance_norm")
_IN_PLACE = words("__iadd__ __isub__ __imul__ __itruediv__ __imatmul__ __ipow__")


def name_of(function: Callable[..., Any]) -> str:
    """Return the function's name; getters by the method that does the same."""
    return "t" if function in _TRANSPOSES else "detach" if function in _VALUES else getattr(function, "__name__", "")


def is_in_place(function: Callable[..., Any]) -> bool:
    """Whether the function's name says that it writes to its first argument."""
    name = name_of(function)
    return (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE


def is_repeatable(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a value comes of calling the function and nothing else: no record is changed, no number drawn."""
    name = name_of(function)
    statistics = (kwargs.get("running_mean", args[1] if len(args) > 1 else None)) if name in _KEEPING_STATISTICS else None
    refused = name in _NO_VALUES or name in RANDOM or drops(function, args, kwargs)
    return kwargs.get("out") is None and statistics is None and not refused


def copies(function: Callable[..., Any]) -> bool:
    """Whether a result of the same shape holds the same entries, up to rounding."""
    return name_of(function) in _COPIES


def is_affine(function: Callable[..., Any], args: tuple[Any, ...], received: Sequence[Tensor]) -> bool:
    """Whether the function is affine in all the weights that it receives together; False where that is not known."""
    name = name_of(function)
    if name in _LAYOUT or name in _COPIES or name in _SUMS:
        return True
    alone = len(received) == 1
    return alone and (name in _PRODUCTS or (name in _QUOTIENTS and bool(args) and args[0] is received[0]))
