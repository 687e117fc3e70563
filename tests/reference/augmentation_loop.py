"""Crop and flip by loops over images and pixels, the draws in Python's whole numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 2**64


def drawn(seed: int, epoch: int, index: int) -> tuple[int, int, bool]:
    """Top, left and flip of one example in one epoch: one 64-bit number by SplitMix64, its first 53 bits cut into 162 parts."""
    key = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    bits = (index * 0x9E3779B97F4A7C15 + key) % WORD
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % WORD
    bits ^= bits >> 31
    case = (bits >> 11) * 162 // 2**53
    top, rest = divmod(case, 18)
    left, flip = divmod(rest, 2)
    return top, left, bool(flip)


def augmented(images: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
    """The images as the epoch shows them, pixel by pixel."""
    result = torch.zeros_like(images)
    _, channels, height, width = images.shape
    for place, image in enumerate(images):
        top, left, flip = drawn(seed, epoch, int(index[place]))
        for row in range(height):
            for column in range(width):
                # Four zeros on every side: pixel (0, 0) of the image is pixel (4, 4) of the padded one.
                y, x = top + row - 4, left + (width - 1 - column if flip else column) - 4
                if 0 <= y < height and 0 <= x < width:
                    for channel in range(channels):
                        result[place, channel, row, column] = image[channel, y, x]
    return result
