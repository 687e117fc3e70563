"""By how much two computations of the same model may differ: as much as the coarsest numbers that it computes with round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDINGS = 1000
"""Roundings of the largest by which a small part may be off."""
COARSE = 1e-2
"""A tolerance above this belongs to products rounded to few bits (sixteen bits, TF32): it is relative to the largest alone."""


@dataclass(frozen=True)
class Rounding:
    """What a comparison allows."""

    tolerance: float
    """Between a batch and an example alone, relative to the largest; a wrong axis is off by order one."""
    eps: float
    """The distance of 1 from the next number, of the coarsest numbers."""

    @property
    def noise(self) -> float:
        """The share of the largest below which a small part is rounding."""
        return min(self.tolerance, ROUNDINGS * self.eps)

    def allowed_difference(self, own: float, largest: float) -> float:
        """Return by how much two computations of one part may differ, of its own size and beside the largest."""
        return self.tolerance * largest if self.tolerance > COARSE else self.tolerance * own + self.noise * largest

    def quiet(self, *, reused: bool) -> float:
        """Return the share of the whole up to which a wrong use of a parameter, the only one or one of several, goes unseen."""
        return 2 * (self.tolerance if reused or self.tolerance > COARSE else self.noise)


def has_few_bits(kind: torch.dtype) -> bool:
    """Whether a small perturbation of such numbers may change no more than rounding does."""
    return kind.is_floating_point and torch.finfo(kind).eps >= torch.finfo(torch.float16).eps


def rounding_of(parameters: Iterable[Tensor], output: Tensor) -> Rounding:
    """Return what is allowed where these weights take part, which may be of coarser numbers than the outputs are.

    Args:
        parameters: The trainable ones, where gradients and what a perturbation changes are compared: coarse numbers in a
            frozen part are the same to both sides, and no reason to look less closely. All, where a batch is compared with
            an example alone.
        output: The model's outputs, under the present autocast.
    """
    kinds = {parameter.dtype for parameter in parameters if parameter.is_floating_point()} | {output.dtype}
    eps = max(torch.finfo(kind).eps for kind in kinds)
    return Rounding(_tolerance(output, eps), eps)


def _tolerance(output: Tensor, eps: float) -> float:
    if eps >= torch.finfo(torch.float16).eps or torch.is_autocast_enabled(output.device.type):
        return 5e-2
    if eps <= torch.finfo(torch.float64).eps:
        return 1e-8
    # TF32 rounds factors to 10 bits of mantissa; torch allows it in CUDA's convolutions unless it is told otherwise.
    if output.is_cuda and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32):
        return 5e-2
    return 2e-3
