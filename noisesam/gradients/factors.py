"""Per-example tensors in the form in which they are cheap: as outer products where possible, dense elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from noisesam.gradients.losses import accurate
from noisesam.gradients.memory_order import order_of
from noisesam.gradients.norms import row_norms


class Factor(ABC):
    """One tensor G_i of a parameter's shape for every example i of a chunk."""

    @abstractmethod
    def squared_norm(self) -> Float[Tensor, " n"]:
        """Return ||G_i||^2 for every example."""

    def squared_norm_and_spread(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
        """Return ||G_i||^2 with the size that its rounding is relative to, None where that is no larger than itself."""
        return self.squared_norm(), None

    @abstractmethod
    def dense(self) -> Tensor:
        """Return all G_i as one tensor (n, *shape)."""

    @abstractmethod
    def bytes_kept(self) -> int:
        """Return the memory of what is kept."""

    @abstractmethod
    def scaled(self, scale: Float[Tensor, " n"]) -> Factor:
        """Return c_i G_i."""

    def of(self, rows: slice) -> Factor:
        """Return the tensors of some of the examples."""
        return Dense(self.dense()[rows])

    def weighted_sum(self, weights: Float[Tensor, " n"]) -> Tensor:
        """Return sum_i c_i G_i, of the parameter's shape, with one example's tensor there at a time."""
        first, *others = range(len(weights))
        total = self.of(slice(first, first + 1)).dense()[0] * weights[first]
        for row in others:
            total += self.of(slice(row, row + 1)).dense()[0] * weights[row]
        return total

    def in_double(self) -> Factor:
        """Return the same numbers in float64, where their squares neither overflow nor vanish."""
        return Dense(self.dense().double())


class GramFactor(Factor):
    """A factor whose squared norm is a sum of products of both signs: where they cancel, it has few digits left."""

    @abstractmethod
    def gram_products(self) -> Float[Tensor, "n ..."]:
        """Return the terms whose sum is ||G_i||^2 for every example."""

    def squared_norm(self) -> Float[Tensor, " n"]:
        """Return the sum of the terms."""
        return self.squared_norm_and_spread()[0]

    def squared_norm_and_spread(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
        """Return the sum of the terms, and the root of the sum of their squares."""
        terms = self.gram_products().flatten(1)
        return terms.sum(1).clamp_min(0), torch.linalg.vector_norm(terms, dim=1)


class Dense(Factor):
    """Materialised per-example tensors (n, *shape), with a scale that is multiplied in where they are used."""

    def __init__(self, tensor: Tensor, scale: Float[Tensor, " n"] | None = None, *, overwritable: bool = False) -> None:
        self._tensor = tensor
        self._scale = scale
        self._overwritable = overwritable

    def squared_norm(self) -> Float[Tensor, " n"]:
        """Return the sum of squares of every row."""
        tensor = accurate(self._tensor)
        # In memory order, whatever order the axes are in: a norm does not mind, and nothing is written out anew.
        order = sorted(range(1, tensor.dim()), key=lambda axis: -tensor.stride(axis))
        rows = tensor.permute(0, *order).reshape(tensor.shape[0], -1)  # a scalar parameter has no further axis
        squares = row_norms(rows).square()
        return squares if self._scale is None else squares * self._scale.square()

    def dense(self) -> Tensor:
        """Return the tensors, scaled."""
        return self._tensor if self._scale is None else self._tensor * self._aligned_scale()

    @property
    def unscaled(self) -> Tensor | None:
        """The tensors, where no scale is to be multiplied in."""
        return self._tensor if self._scale is None else None

    @property
    def in_full_precision(self) -> bool:
        """Whether a sum over the examples loses nothing to their having been rounded to sixteen bits one by one."""
        return self._tensor.element_size() >= 4

    def weighted_sum(self, weights: Float[Tensor, " n"]) -> Tensor:
        """Return sum_i c_i G_i as one product."""
        weights = weights if self._scale is None else weights * self._scale
        return torch.tensordot(weights.to(self._tensor.dtype), self._tensor, 1)

    def total(self) -> Tensor:
        """Return the sum over the examples, of the parameter's shape."""
        return self.dense().sum(0)

    def bytes_kept(self) -> int:
        """Return the memory of the tensors."""
        return self._tensor.numel() * self._tensor.element_size()

    def added_to(self, weight: Tensor) -> Tensor:
        """Return weight + c_i G_i, (n, *shape), in one pass over the memory; in place of G where that is allowed."""
        tensor = self._tensor.to(weight.dtype)
        if self._overwritable and self._scale is not None and tensor is self._tensor:
            return torch.addcmul(weight.detach(), tensor, self._aligned_scale(), out=tensor)
        return weight + tensor if self._scale is None else torch.addcmul(weight, tensor, self._aligned_scale().to(weight.dtype))

    def one_added_to(self, weight: Tensor, example: int, out: Tensor) -> Tensor:
        """Write weight + c_i G_i of one example into `out`."""
        tensor = self._tensor[example].to(weight.dtype)
        if self._scale is None:
            return torch.add(weight, tensor, out=out)
        return torch.addcmul(weight, tensor, self._scale[example].to(weight.dtype), out=out)

    def scaled(self, scale: Float[Tensor, " n"]) -> Dense:
        """Return the rows times their scale."""
        return Dense(self._tensor, scale if self._scale is None else self._scale * scale)

    def of(self, rows: slice) -> Dense:
        """Return the tensors of some of the examples, with their scale."""
        return Dense(self._tensor[rows], None if self._scale is None else self._scale[rows])

    def in_double(self) -> Dense:
        """Return the same tensors and scales in float64."""
        return Dense(self._tensor.double(), None if self._scale is None else self._scale.double())

    @property
    def order_of_each(self) -> torch.memory_format:
        """The order in which every example's tensor lies in memory."""
        return order_of(self._tensor[0])

    def for_one_use(self) -> Dense:
        """Return the same tensors, to be used once: `added_to` may then overwrite them, which saves their memory again."""
        return Dense(self._tensor, self._scale, overwritable=True)

    def _aligned_scale(self) -> Tensor:
        assert self._scale is not None
        return self._scale.to(self._tensor.dtype).view(-1, *[1] * (self._tensor.dim() - 1))


class OuterProducts(GramFactor):
    """G_i = c_i sum_t left_it right_it^T over T positions: the gradient of a linear map (left: outputs, right: inputs).

    The scale stays apart: it enters the products of positions, T times T, and no copy of a factor is kept for it.
    """

    def __init__(
        self,
        left: Float[Tensor, "n positions p"],
        right: Float[Tensor, "n positions d"],
        shape: tuple[int, ...] | None = None,
        scale: Float[Tensor, " n"] | None = None,
    ) -> None:
        self.unscaled_left = left
        self.right = right
        self.shape = shape or (left.shape[2], right.shape[2])
        self.scale = scale

    @property
    def left(self) -> Float[Tensor, "n positions p"]:
        """The left factor times the scale, formed anew where there is one."""
        scale = self.scale
        return self.unscaled_left if scale is None else self.unscaled_left * scale.to(self.unscaled_left.dtype).view(-1, 1, 1)

    def gram_products(self) -> Float[Tensor, "n positions positions"]:
        """Return left left^T times right right^T, entry by entry and without the scale."""
        left, right = accurate(self.unscaled_left), accurate(self.right)
        return torch.bmm(left, left.transpose(1, 2)).mul_(torch.bmm(right, right.transpose(1, 2)))

    def squared_norm_and_spread(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
        """Return c^2 <left left^T, right right^T>, for one position the product of the squared norms."""
        if self.right.shape[1] == 1:
            left, right = accurate(self.unscaled_left[:, 0]), accurate(self.right[:, 0])
            norms = torch.linalg.vector_norm(left, dim=1) * torch.linalg.vector_norm(right, dim=1)
            squares, spread = norms.square(), None
        else:
            squares, spread = super().squared_norm_and_spread()
        if self.scale is None:
            return squares, spread
        squared_scale = self.scale.square()
        return squares * squared_scale, None if spread is None else spread * squared_scale

    def dense(self) -> Tensor:
        """Return the sum of the outer products, (n, *shape)."""
        product = torch.bmm(self.unscaled_left.transpose(1, 2), self.right)
        if self.scale is not None:
            product.mul_(self.scale.to(product.dtype).view(-1, 1, 1))
        return product.view(-1, *self.shape)

    def weighted_sum(self, weights: Float[Tensor, " n"]) -> Tensor:
        """Return sum_i c_i G_i as one product over the positions of all examples."""
        weights = weights if self.scale is None else weights * self.scale
        left = self.unscaled_left * weights.to(self.unscaled_left.dtype).view(-1, 1, 1)
        return (left.flatten(0, 1).t() @ self.right.flatten(0, 1)).view(self.shape)

    def bytes_kept(self) -> int:
        """Return the memory of both factors."""
        return sum(part.numel() * part.element_size() for part in (self.unscaled_left, self.right))

    def scaled(self, scale: Float[Tensor, " n"]) -> OuterProducts:
        """Return the same factors with the scale beside them."""
        return OuterProducts(self.unscaled_left, self.right, self.shape, scale if self.scale is None else self.scale * scale)

    def of(self, rows: slice) -> OuterProducts:
        """Return the factors of some of the examples."""
        scale = None if self.scale is None else self.scale[rows]
        return OuterProducts(self.unscaled_left[rows], self.right[rows], self.shape, scale)

    def in_double(self) -> OuterProducts:
        """Return the same factors in float64."""
        scale = None if self.scale is None else self.scale.double()
        return OuterProducts(self.unscaled_left.double(), self.right.double(), self.shape, scale)


class Shared(Factor):
    """One tensor for all examples: the perturbation of batch SAM."""

    def __init__(self, tensor: Tensor, examples: int) -> None:
        self.tensor = tensor
        self.examples = examples

    def squared_norm(self) -> Float[Tensor, " n"]:
        """Return the same squared norm for every example."""
        return accurate(self.tensor).square().sum().expand(self.examples)

    def dense(self) -> Tensor:
        """Return a view (n, *shape) of the one tensor."""
        return self.tensor.expand(self.examples, *self.tensor.shape)

    def bytes_kept(self) -> int:
        """Return the memory of the one tensor."""
        return self.tensor.numel() * self.tensor.element_size()

    def scaled(self, scale: Float[Tensor, " n"]) -> Dense:
        """Return the tensor times each example's scale."""
        return Dense(self.dense()).scaled(scale)


def known_form(factor: Factor | None, *kinds: type[Factor]) -> Factor | None:
    """Return the factor as it is where a layer knows its form, multiplied out where another kind of layer recorded it."""
    return factor if factor is None or isinstance(factor, kinds) else Dense(factor.dense())


def combine(factors: list[Factor]) -> Factor:
    """Return the sum of several contributions to one parameter: used twice, or tied."""
    if len(factors) == 1:
        return factors[0]
    outer = [factor for factor in factors if isinstance(factor, OuterProducts)]
    if len(outer) == len(factors):
        left = torch.cat([factor.left for factor in outer], 1)
        right = torch.cat([factor.right for factor in outer], 1)
        if left.shape[1] * (left.shape[2] + right.shape[2]) <= left.shape[2] * right.shape[2]:
            return OuterProducts(left, right, outer[0].shape)
    total = factors[0].dense().clone()
    for factor in factors[1:]:
        total += factor.dense()
    return Dense(total)
