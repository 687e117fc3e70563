"""Functions whose result has a size that the values decide: tokens that are kept, experts that are asked.

The rows of such a result belong to examples in a way that its shape does not tell: 20 of 24 tokens are five for each of four
examples in one batch, and three, five, six and six in the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.constants import Constants

_NAMES = {
    "nonzero", "argwhere", "masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive", "_pack_padded_sequence",
}  # fmt: skip
_MASKS = (torch.bool, torch.uint8)


def sized_by_values(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], constants: Constants) -> bool:
    """Whether values that are no constants of the model decide the size of the result."""
    name = getattr(function, "__name__", "")
    if name == "__getitem__":
        return any(index.dtype in _MASKS and index not in constants for index in tensors_in(args[1:]))
    if name in _NAMES or (name == "where" and len(args) + len(kwargs) == 1):
        return any(value not in constants for value in tensors_in((args, kwargs)))
    if name == "repeat_interleave":
        repeats = kwargs.get("repeats", args[1] if len(args) > 1 else None)
        return isinstance(repeats, Tensor) and repeats not in constants
    return False
