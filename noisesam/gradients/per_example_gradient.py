"""The gradient of every example over all parameters: its norm, and the perturbation along it.

A network has many parameters of a few numbers, the scales and shifts of its layers. Theirs are copied into one matrix, so
that norm and perturbation take one operation for all of them: on small models, and on a GPU, calls are what a step costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from noisesam.gradients.factors import Dense, Factor, OuterProducts
from noisesam.gradients.losses import accurate
from noisesam.gradients.norms import row_norms

SMALLEST_SQUARE, LARGEST_SQUARE = 1e-24, 1e36
"""Squared norms between which float32, whose numbers end at 1e-38 and 3e38, adds squares without losing any that matter."""

LEFT_AFTER_CANCELLING = 1e-2
"""Share of the spread of its terms below which a squared norm that is summed in float32 has lost two digits or more."""

GATHERED_ON_CPU, GATHERED = 2**15, 2**19
"""Numbers, of all examples together, up to which copying a parameter's gradient costs less than calls of its own."""


class AlongOwnGradient(dict[str, Factor]):
    """eps_i of every example, along its own gradient: a parameter whose gradient is next to nothing hardly moves."""


@dataclass(frozen=True)
class PerExampleGradient:
    """J_i^T u_i of every example of a chunk, parameter by parameter (a parameter that plays no part has no entry)."""

    factors: Mapping[str, Factor]
    examples: int

    def norm(self) -> Float[Tensor, " n"]:
        """Return the global norm of every example over all trainable parameters."""
        return self._norm

    @cached_property
    def _norm(self) -> Float[Tensor, " n"]:
        gathered = self._gathered
        found = [factor.squared_norm_and_spread() for name, factor in self._exact.items() if name not in gathered.places]
        squares = [one for one, _ in found] + gathered.squared_norms()
        total = _sum_in_double(squares)
        kept = (total > SMALLEST_SQUARE) & (total < LARGEST_SQUARE)
        spreads = [spread for _, spread in found if spread is not None]
        if spreads:
            kept &= total > LEFT_AFTER_CANCELLING * _sum_in_double(spreads)
        if not bool(kept.all()):
            total = torch.stack([factor.in_double().squared_norm() for factor in self._exact.values()]).sum(0)
        # In the first parameter's precision, whether that is gathered or not: which are is a matter of the batch size.
        kind = squares[-1 if next(iter(self.factors)) in gathered.places else 0].dtype
        return total.sqrt().to(kind)

    def perturbation(self, radii: Mapping[str, float], norm: Float[Tensor, " n"]) -> AlongOwnGradient:
        """Return eps_i = rho g_i / ||g_i||, each parameter with its own radius; a zero gradient is not perturbed."""
        inverse = torch.where(norm > 0, 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), torch.zeros_like(norm))
        scales = {radius: radius * inverse for radius in {radii[name] for name in self.factors}}
        together: dict[str, Factor] = {}
        within = {radii[name] for name in self._gathered.places}
        if len(within) == 1:
            together = self._gathered.scaled(scales[within.pop()])
        return AlongOwnGradient(
            (name, together[name] if name in together else factor.scaled(scales[radii[name]]))
            for name, factor in self._exact.items()
        )

    @cached_property
    def _exact(self) -> Mapping[str, Factor]:
        """The factors; in float64, beyond which there is nothing to sum up in, products are formed where their terms cancel."""
        return {name: _formed_where_it_cancels(factor) for name, factor in self.factors.items()}

    @cached_property
    def _gathered(self) -> _Gathered:
        return _Gathered.of(self.factors)


@dataclass(frozen=True)
class _Gathered:
    """The gradients of the small parameters, side by side in one matrix (n, numbers); without any, no matrix."""

    matrix: Tensor | None
    places: Mapping[str, tuple[int, torch.Size]]
    """Where each parameter's columns begin, and the shape of its gradients (n, *shape)."""

    @classmethod
    def of(cls, factors: Mapping[str, Factor]) -> _Gathered:
        small: dict[str, Tensor] = {}
        for name, factor in factors.items():
            tensor = factor.unscaled if isinstance(factor, Dense) else None
            # Kernels whose channels lie last are left so: the copy would lie otherwise.
            if tensor is None or not tensor.is_contiguous() or tensor.numel() > _most_gathered(tensor):
                continue
            if not small or _alike(tensor, next(iter(small.values()))):
                small[name] = tensor
        if len(small) < 2:
            return cls(None, {})
        places, start = {}, 0
        for name, tensor in small.items():
            places[name] = (start, tensor.shape)
            start += math.prod(tensor.shape[1:])
        return cls(
            torch.cat([tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in small.values()], 1), places
        )

    def squared_norms(self) -> list[Float[Tensor, " n"]]:
        """Return the squared norm over all of them, as a list that is empty without any."""
        return [] if self.matrix is None else [row_norms(accurate(self.matrix)).square()]

    def scaled(self, scale: Float[Tensor, " n"]) -> dict[str, Factor]:
        """Return c_i G_i of each parameter: views of one product."""
        assert self.matrix is not None
        product = self.matrix * scale.to(self.matrix.dtype)[:, None]
        return {
            name: Dense(product[:, start : start + math.prod(shape[1:])].view(shape))
            for name, (start, shape) in self.places.items()
        }


def _formed_where_it_cancels(factor: Factor) -> Factor:
    if not isinstance(factor, OuterProducts) or factor.right.dtype != torch.float64:
        return factor
    squares, spread = factor.squared_norm_and_spread()
    return factor if spread is None or bool((squares >= LEFT_AFTER_CANCELLING * spread).all()) else Dense(factor.dense())


def _most_gathered(tensor: Tensor) -> int:
    return GATHERED_ON_CPU if tensor.device.type == "cpu" else GATHERED


def _alike(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.device == second.device and first.shape[0] == second.shape[0]


def _sum_in_double(parts: list[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
    """Return the sum of (n,) tensors, added up in float64."""
    kinds = {part.dtype for part in parts}
    alike = parts if len(kinds) == 1 else [part.double() for part in parts]
    return torch.stack(alike).double().sum(0)
