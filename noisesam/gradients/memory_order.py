"""In which order images and kernels lie in memory: oneDNN computes in the order it is given, and changing it costs a pass."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(values: Tensor) -> bool:
    """Whether images (n, C, H, W), or a kernel, lie in memory with their channels last, and not both ways."""
    return values.dim() == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last)


def order_of(values: Tensor) -> torch.memory_format:
    """Return the order in which to allocate what is to lie as these images or this kernel do."""
    return torch.channels_last if channels_last(values) else torch.contiguous_format
