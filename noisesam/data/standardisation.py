"""Inputs with mean 0 and standard deviation 1 per channel, by the statistics of the training set."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float64
from torch import Tensor

from noisesam.data.dataset import NoisyDataset
from noisesam.errors import InputError


def channel_statistics(dataset: NoisyDataset) -> tuple[Float64[Tensor, " channels"], Float64[Tensor, " channels"]]:
    """Return mean and standard deviation (over the population) of each channel of images or each feature of a table.

    Args:
        dataset: Inputs of shape (n, channels, height, width) or (n, features), n at least 1.

    Returns:
        (mean, std), each of shape (channels,) in float64.

    Raises:
        InputError: For other shapes, token ids, or no example.
    """
    inputs = dataset.inputs
    if dataset.token_ids or inputs.ndim not in (2, 4) or len(dataset) == 0:
        raise InputError(
            f"inputs of type {inputs.dtype} and shape {tuple(inputs.shape)}",
            expected="floating images (n, channels, height, width) or features (n, features), n at least 1",
            remedy="Bring the inputs into one of these shapes first",
        )
    by_channel = inputs.transpose(0, 1).flatten(1)
    # One channel at a time: a float64 copy of a whole image set would double its memory twice.
    if inputs.ndim == 2:
        values = by_channel.double()
        return values.mean(1), values.std(1, correction=0)
    means, stds = zip(*((c.double().mean(), c.double().std(correction=0)) for c in by_channel), strict=True)
    return torch.stack(means), torch.stack(stds)


def standardise(train: NoisyDataset, *others: NoisyDataset) -> tuple[NoisyDataset, ...]:
    """Subtract the training set's channel mean and divide by its channel standard deviation, in all sets alike.

    A channel that is constant in the training set is centred and not scaled.

    Args:
        train: The set whose statistics are used.
        others: Sets that are transformed by the same numbers, for example validation and test.

    Returns:
        (train, *others), transformed; always a tuple.

    Raises:
        InputError: For token ids, shapes other than images and features, or sets of different shapes.

    Example:
        >>> data = NoisyDataset(torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([0, 1]))
        >>> (scaled,) = standardise(data)
        >>> scaled.inputs
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """
    mean, std = channel_statistics(train)
    # A constant channel's float64 deviation is rounding of its mean, not exactly zero.
    std = torch.where(std > 1e-12 * mean.abs(), std, torch.ones_like(std))
    shape = (1, -1, *([1] * (train.inputs.ndim - 2)))
    scaled = []
    for dataset in (train, *others):
        if dataset.inputs.shape[1:] != train.inputs.shape[1:]:
            raise InputError(
                f"inputs of shape {tuple(dataset.inputs.shape[1:])} beside training inputs of {tuple(train.inputs.shape[1:])}",
                expected="one shape",
                remedy="Standardise only sets of the same data together",
            )
        values = dataset.inputs
        to = {"device": values.device, "dtype": values.dtype}
        scaled.append(dataclasses.replace(dataset, inputs=(values - mean.to(**to).view(shape)) / std.to(**to).view(shape)))
    return tuple(scaled)
