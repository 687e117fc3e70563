"""Inner products between the patches of two images, without forming the patches.

With stride 1 the Gram matrix of k x k patches is a sum of shifted Gram matrices of single pixels, separable in the two
axes; its adjoint is the same sum with the complementary padding. A stride s splits image and kernel into s x s phases, each
of which has stride 1. Dilated patches are written out, and on a GPU strided ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import fold, pad

from noisesam.gradients.memory_order import settled


@dataclass(frozen=True)
class Geometry:
    """The options of a convolution, one entry per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def strided(self) -> bool:
        """Whether neighbouring patches are more than one pixel apart."""
        return any(step != 1 for step in self.stride)

    @property
    def dilated(self) -> bool:
        """Whether patches have holes."""
        return any(step != 1 for step in self.dilation)

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is a single pixel without padding: a linear map over positions."""
        return all(k == 1 for k in self.kernel) and not any(self.padding)

    def positions(self, image: Tensor) -> tuple[int, ...]:
        """Return the number of patches along each axis of (n, C, ...)."""
        sides = zip(image.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + 2 * p - d * (k - 1) - 1) // step + 1 for size, k, step, p, d in sides)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int | None = None) -> Tensor:
        """Return the convolution of (n, C, ...)."""
        return torch.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, False, [0] * len(self.kernel), groups or self.groups
        )

    def pull_back(
        self, dy: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool], groups: int | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of the input and of the weight, as wanted."""
        if (groups or self.groups) > 1:
            # torch's kernel for groups reads kernels' gradients in the wrong order where an axis has length one and its stride
            # suggests another order than the one in which the images lie (float64, torch 2.11 and 2.13).
            dy, x = settled(dy), settled(x)
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy, x, weight, None, self.stride, self.padding, self.dilation, False, [0] * len(self.kernel),
            groups or self.groups, [*wanted, False],
        )  # fmt: skip
        return dx, dw


@dataclass(frozen=True)
class _Phase:
    """The pixels that one residue class of kernel offsets meets: a convolution of stride 1 without padding."""

    offset: tuple[int, int]
    kernel: tuple[int, int]

    def of(self, padded: Tensor, geometry: Geometry, positions: tuple[int, int]) -> Tensor:
        """Return a view of the phase's pixels, just as many as its patches meet."""
        rows, columns = (p + k - 1 for p, k in zip(positions, self.kernel, strict=True))
        (down, across), (top, left) = geometry.stride, self.offset
        return padded[..., top : top + rows * down : down, left : left + columns * across : across][..., :rows, :columns]


def _phases(geometry: Geometry) -> Iterator[_Phase]:
    (down, across), (high, wide) = geometry.stride, geometry.kernel
    for top in range(min(down, high)):
        for left in range(min(across, wide)):
            yield _Phase((top, left), (-(-(high - top) // down), -(-(wide - left) // across)))


def _padded(image: Tensor, geometry: Geometry, positions: tuple[int, int]) -> Tensor:
    """Pad so that every phase of every patch lies inside."""
    extra: list[int] = []
    for axis in (1, 0):
        step, kernel, before = geometry.stride[axis], geometry.kernel[axis], geometry.padding[axis]
        needed = step * (positions[axis] - 1) + step * -(-kernel // step)
        extra += [before, max(0, needed - before - image.shape[2 + axis])]
    return pad(image, extra)


def patch_products(first: Tensor, second: Tensor, geometry: Geometry, positions: tuple[int, int]) -> Float[Tensor, "n T T"]:
    """Return <patch_t(first), patch_s(second)> for every example, for convolutions with `positions` output pixels."""
    if writes_patches(first, geometry):
        patches = written_patches(first, geometry)
        return torch.bmm(patches.transpose(1, 2), patches if second is first else written_patches(second, geometry))
    count = positions[0] * positions[1]
    if not geometry.strided:
        return _shift_sum(_pixel_products(first, second), geometry.kernel, geometry.padding).reshape(-1, count, count)
    total: Tensor | None = None
    before, after = _padded(first, geometry, positions), _padded(second, geometry, positions)
    for phase in _phases(geometry):
        pixels = _pixel_products(phase.of(before, geometry, positions), phase.of(after, geometry, positions))
        products = _shift_sum(pixels, phase.kernel, (0, 0))
        total = products if total is None else total.add_(products)
    assert total is not None
    return total.reshape(-1, count, count)


def patch_adjoint(
    image: Tensor,
    mixing: Float[Tensor, "n T T"],
    geometry: Geometry,
    positions: tuple[int, int],
    *,
    onto: Tensor | None = None,
) -> Tensor:
    """Return sum_t fold(patch_t(image) mixing[t, s]): the adjoint of `patch_products` in its second image.

    `onto` is a tensor of the image's shape that the result is added to, in place where its layout allows.
    """
    n, channels, height, width = image.shape
    if onto is not None and not (onto.is_contiguous() and not geometry.dilated and not geometry.strided):
        return onto.add_(patch_adjoint(image, mixing, geometry, positions))
    if writes_patches(image, geometry):
        columns = torch.bmm(written_patches(image, geometry), mixing)
        return fold(columns, (height, width), geometry.kernel, geometry.dilation, geometry.padding, geometry.stride)
    mixing = mixing.view(n, *positions, *positions)
    if not geometry.strided and all(p < k for p, k in zip(geometry.padding, geometry.kernel, strict=True)):
        opposite = tuple(k - 1 - p for k, p in zip(geometry.kernel, geometry.padding, strict=True))
        spread = _shift_sum(mixing, geometry.kernel, opposite).reshape(n, height * width, height * width)
        if onto is not None:
            onto.flatten(2).baddbmm_(image.flatten(2), spread)
            return onto
        return torch.bmm(image.flatten(2), spread).view(image.shape)
    if onto is not None:
        return onto.add_(patch_adjoint(image, mixing, geometry, positions))
    padded = _padded(image, geometry, positions)
    result = torch.zeros_like(padded, memory_format=torch.contiguous_format)
    for phase in _phases(geometry):
        pixels = phase.of(padded, geometry, positions)
        size = pixels.shape[2] * pixels.shape[3]
        around = (phase.kernel[0] - 1, phase.kernel[1] - 1)
        spread = _shift_sum(mixing, phase.kernel, around).reshape(n, size, size)
        part = torch.bmm(pixels.flatten(2), spread).view(n, channels, *pixels.shape[2:])
        phase.of(result, geometry, positions).add_(part)
    top, left = geometry.padding
    return result[..., top : top + height, left : left + width]


def writes_patches(image: Tensor, geometry: Geometry) -> bool:
    """Whether patches are formed: dilated ones, and on a GPU, where nine small operations cost more, strided ones."""
    return geometry.dilated or (geometry.strided and image.device.type != "cpu")


def _pixel_products(first: Tensor, second: Tensor) -> Tensor:
    n, _, height, width = first.shape
    return torch.bmm(first.flatten(2).transpose(1, 2), second.flatten(2)).view(n, height, width, height, width)


def written_patches(image: Tensor, geometry: Geometry) -> Float[Tensor, "n patch T"]:
    """Return every patch of two-dimensional images as a column: `torch.nn.functional.unfold` in one copy."""
    (high, wide), (down, across), (below, beside) = geometry.kernel, geometry.stride, geometry.dilation
    rows, columns = geometry.positions(image)
    padded = pad(image, [side for around in reversed(geometry.padding) for side in (around, around)])
    example, channel, row, column = padded.stride()
    seen = padded.as_strided(
        (*image.shape[:2], high, wide, rows, columns),
        (example, channel, row * below, column * beside, row * down, column * across),
    )
    return seen.reshape(len(image), -1, rows * columns)


def _shift_sum(pixels: Tensor, kernel: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """Sum the pixel products (n, H, W, H, W) over the offsets of a patch, one axis after the other."""
    high, wide = kernel
    above, left = padding
    if above or left:
        pixels = pad(pixels, (left, left, above, above, left, left, above, above))
    rows, columns = pixels.shape[1] - high + 1, pixels.shape[2] - wide + 1
    if pixels.device.type != "cpu":
        return _shifts(pixels, kernel, (rows, columns)).sum((1, 2))  # one operation for the four below
    if high > 1:
        total = pixels[:, 0:rows, :, 0:rows] + pixels[:, 1 : 1 + rows, :, 1 : 1 + rows]
        for i in range(2, high):
            total += pixels[:, i : i + rows, :, i : i + rows]
        pixels = total
    if wide > 1:
        total = pixels[:, :, 0:columns, :, 0:columns] + pixels[:, :, 1 : 1 + columns, :, 1 : 1 + columns]
        for j in range(2, wide):
            total += pixels[:, :, j : j + columns, :, j : j + columns]
        pixels = total
    return pixels


def _shifts(pixels: Tensor, kernel: tuple[int, ...], sides: tuple[int, int]) -> Tensor:
    """View the pixel products (n, H, W, H, W) as (n, kh, kw, h, w, h, w): entry a, b is shifted by a rows and b columns."""
    example, row, column, other_row, other_column = pixels.stride()
    strides = (example, row + other_row, column + other_column, row, column, other_row, other_column)
    return pixels.as_strided((len(pixels), *kernel, *sides, *sides), strides)
