"""Random numbers of a step: a function of the seed and the step's number alone.

Nothing is left to save: a resumed run, a repeated call and the micro-batches of one step draw the same numbers, and torch's
own generators, which the model's dropout uses, do not move.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from noisesam.methods.checks import check_count


def check_seed(seed: object) -> int:
    """Return a seed that is a whole number of at least 0."""
    return check_count("seed", seed, at_least=0)


def generator_at(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator of one step.

    Args:
        seed: The method's seed.
        step: Number of the step (or of the epoch, for what is drawn by epoch), from 0.
        device: Where the numbers are drawn; they differ between kinds of device.

    Returns:
        A generator of its own.

    Example:
        >>> first, again = (torch.rand(2, generator=generator_at(0, 7)) for _ in range(2))
        >>> bool((first == again).all())
        True
    """
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state) & (2**63 - 1))


def uniform_by_index(seed: int, step: int, index: Integer[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return a number in [0, 1) for every example, a function of seed, step and the example's index alone.

    So the order of a batch, or how it is cut into micro-batches, does not change what is drawn for an example.

    Example:
        >>> numbers = uniform_by_index(0, 3, torch.tensor([7, 2]))
        >>> bool((uniform_by_index(0, 3, torch.tensor([2, 7])) == numbers.flip(0)).all())
        True
    """
    key = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    bits = index.to("cpu").numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the mixing of SplitMix64
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)
