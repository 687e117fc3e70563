"""What was proven of one batch is compared again on later ones, ever more seldom.

A proof sees one batch. What later ones do to it is noticed where it shows in the way that the model goes; this is the net under
that: examples that mix, or tokens that change their row, in some batches only, by something that no function of torch tells.
"""

from __future__ import annotations

import math

import torch

from noisesam.gradients.batch import Inputs, batch_size
from noisesam.gradients.engine.comparison import compare, outputs_alone
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.terms import WithoutDropout
from noisesam.gradients.engine.twins import twins_of
from noisesam.gradients.plain import whole_norm
from noisesam.gradients.randomness import undisturbed

TIMES, EVERY = 4, 1024
"""Batches 4, 16, 64, 256 and 1024 of a signature are compared, and from then on every 1024th: each costs two to three steps."""

_GOLDEN = 0.6180339887498949


def is_due(batch: int) -> bool:
    """Whether this batch, counted from 1, is one that is compared.

    Example:
        >>> [batch for batch in range(1, 3100) if is_due(batch)]
        [4, 16, 64, 256, 1024, 2048, 3072]
    """
    if batch >= EVERY:
        return batch % EVERY == 0
    while batch > TIMES and batch % TIMES == 0:
        batch //= TIMES
    return batch == TIMES


def last_due(batch: int) -> int:
    """Return the last batch before this one that was compared, or 1, which was proven.

    Example:
        >>> last_due(64), last_due(4), last_due(2048)
        (16, 1, 1024)
    """
    return next((before for before in range(batch - 1, 1, -1) if is_due(before)), 1)


def still_agrees(engine: FastEngine, inputs: Inputs, batch: int) -> bool:
    """Whether the engine gives on this batch what plain autograd gives: for the weighted sum of all examples, and for one.

    The sum tells of every example whose gradient is counted to another, and so of every eps_i that would move another's
    weights; the example alone, another one from batch to batch, tells of outputs.

    Raises:
        InputError: An example does not run alone any more, or the reverse pass is not linear.
    """
    with undisturbed(engine.model), torch.enable_grad(), WithoutDropout():
        torch.clear_autocast_cache()  # a cast from before is no copy that the model keeps
        row = int(batch * _GOLDEN % 1.0 * batch_size(inputs))
        twins = twins_of(engine, inputs, outputs_alone(engine, inputs, [row]))
        norms = [*twins.of_rows[row].norms.values(), *(float(whole_norm(gradient)) for gradient in twins.total.values())]
        if not all(map(math.isfinite, norms)):
            return True  # what has diverged says nothing of those before
        found = compare(engine, inputs, twins, perturbed=False)
    return found is None or found.verdict.fast or found.noticed
