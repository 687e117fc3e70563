"""Random crops and flips of the training batch: drawn as a function of seed, epoch and example, made where the images lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from noisesam.data import NoisyDataset
from noisesam.errors import ConfigurationError
from noisesam.methods.drawing import uniform_by_index

PADDING = 4
"""Pixels of zeros on every side, of which a crop of the image's own size is cut."""

_PLACES = 2 * PADDING + 1


class Placement(NamedTuple):
    """Where the crop of every example begins in its padded image, and whether it is mirrored."""

    top: Int[Tensor, " n"]
    left: Int[Tensor, " n"]
    flip: Bool[Tensor, " n"]


def placement(index: Int[Tensor, " n"], *, seed: int, epoch: int) -> Placement:
    """Draw crop and flip of examples in one epoch: the 9 x 9 x 2 cases are equally likely, independent of each other.

    A draw is a function of the seed, the epoch and the example's index alone. So it needs no state to resume from, does not
    depend on the batch that the example is in or on which other examples there are, and is the same on every device.

    Args:
        index: Stable indices of the examples.
        seed: Seed of the purpose "augmentation".
        epoch: Epoch, from 0.

    Returns:
        top and left in 0..8 pixels of the padded image (4 is the image where it was), and flip; on the device of `index`.

    Example:
        >>> whole = placement(torch.arange(4), seed=0, epoch=3)
        >>> part = placement(torch.tensor([2]), seed=0, epoch=3)
        >>> [int(value) for value in part] == [int(values[2]) for values in whole]
        True
    """
    number = (uniform_by_index(seed, epoch, index) * (2 * _PLACES**2)).long()
    drawn = Placement(number // (2 * _PLACES), number // 2 % _PLACES, number % 2 == 1)
    return Placement(*(values.to(index.device) for values in drawn))


def crop_flip(images: Float[Tensor, "n channels height width"], where: Placement) -> Float[Tensor, "n channels height width"]:
    """Return every image cut at its own place out of itself with 4 pixels of zeros around, and mirrored where it is said.

    x'_i[c, u, v] = P_i[c, top_i + u, left_i + v], or P_i[c, top_i + u, left_i + (width - 1 - v)] where flip_i, with P_i the
    padded image. Pixels are copied and never computed with, so that the result is exact.

    The zeros are those of the images as the model is shown them. With `data.standardise` they are the mean colour of the
    training set, without it black (of images in [0, 1]). Padding after the standardisation goes on with the value that a
    convolution's own zero padding puts around an image, so that an augmented image has no frame that a plain one has not; and
    it is what the residual networks of the reference below were trained on CIFAR-10 with.

    Args:
        images: (n, channels, height, width), on any device.
        where: One place per image, on the same device.

    Returns:
        New images of the same shape and type; `images` are left alone.

    Example:
        >>> image = torch.tensor([[[[1.0, 2.0]]]])
        >>> one = Placement(torch.tensor([4]), torch.tensor([4]), torch.tensor([True]))
        >>> crop_flip(image, one), crop_flip(image, one._replace(left=torch.tensor([5])))
        (tensor([[[[2., 1.]]]]), tensor([[[[0., 2.]]]]))

    References:
        He, Zhang, Ren, Sun 2016, "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2.
    """
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    example, channel, row, column = (torch.arange(size, device=images.device) for size in images.shape)
    rows = where.top[:, None] + row
    columns = where.left[:, None] + torch.where(where.flip[:, None], images.shape[3] - 1 - column, column)
    return padded[example[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


@dataclass(frozen=True)
class CropFlip:
    """The augmentation "crop-flip" of one training set; a function of the epoch, with nothing to save.

    Args:
        index: Stable indices of the training examples, on the device of their images.
        seed: Seed of the purpose "augmentation".
    """

    index: Int[Tensor, " n"]
    seed: int

    def __call__(
        self, images: Float[Tensor, "b channels height width"], rows: Int[Tensor, " b"], epoch: int
    ) -> Float[Tensor, "b channels height width"]:
        """Return the images of these rows of the training set as this epoch shows them."""
        if self._last.get("epoch") != epoch:
            # Once per epoch for all: on an accelerator a draw per batch would wait for the device at every step.
            self._last.update(epoch=epoch, placement=placement(self.index, seed=self.seed, epoch=epoch))
        return crop_flip(images, Placement(*(values[rows] for values in self._last["placement"])))

    @cached_property
    def _last(self) -> dict:
        """The placements drawn last: a cache, no state."""
        return {}


def refuse_no_images(dataset: NoisyDataset) -> None:
    """Refuse to cut and mirror what is no image.

    Args:
        dataset: The training set.

    Raises:
        ConfigurationError: Its inputs are not floating images (channels, height, width).

    Example:
        >>> refuse_no_images(NoisyDataset(torch.zeros(2, 5), torch.tensor([0, 1])))
        Traceback (most recent call last):
        noisesam.errors.ConfigurationError: training.augmentation = "crop-flip" with inputs of shape (5,). Expected images of
        shape (channels, height, width). Use training.augmentation = "none".
    """
    if dataset.inputs.ndim != 4 or dataset.token_ids:
        raise ConfigurationError(
            f'training.augmentation = "crop-flip" with {"token ids" if dataset.token_ids else "inputs"} of shape '
            f"{tuple(dataset.inputs.shape[1:])}",
            expected="images of shape (channels, height, width)",
            remedy='Use training.augmentation = "none".',
        )
