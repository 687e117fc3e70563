"""From stored pixels to tensors: float32 in [0, 1], channels first."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from noisesam.data.dataset import NoisyDataset


def unit_pixels(pixels: UInt8[np.ndarray, " ..."]) -> Float32[Tensor, " ..."]:
    """Scale bytes 0..255 to float32 in [0, 1].

    Example:
        >>> unit_pixels(np.array([0, 255], dtype=np.uint8))
        tensor([0., 1.])
    """
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).div_(255.0)


def benchmark(
    pixels: UInt8[np.ndarray, "n channels height width"],
    labels: Int64[np.ndarray, " n"],
    *,
    classes: tuple[str, ...],
    name: str,
) -> NoisyDataset:
    """Make the data set of a benchmark, whose labels are taken as true and whose ids are the original positions."""
    observed = torch.from_numpy(labels)
    return NoisyDataset(unit_pixels(pixels), observed, clean_labels=observed.clone(), classes=classes, name=name)
