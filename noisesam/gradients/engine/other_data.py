"""What holds for the first batch is asked of other data of its shape: that something is in order there may be chance.

A model may bring rows into an order that the data choose, by whatever means, and put them back. Where the first batch is in
that order already nothing moves, and no comparison on it tells of what happens to others. So the tokens of its examples are
exchanged among them, and changed in sign. Such a batch goes for a comparison if the model takes it the way it took the first;
another way is proven when it is gone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noisesam.gradients.batch import Inputs, batch_size, devices_of, each_tensor, take
from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.comparison import compare
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.mixing import refuse_mixing
from noisesam.gradients.engine.twins import total_alone
from noisesam.gradients.engine.unsupported import FAILURES
from noisesam.gradients.plain import whole_norm
from noisesam.gradients.randomness import RandomState
from noisesam.gradients.recomputation import evaluate


def differs_on_other_data(engine: FastEngine, inputs: Inputs, trace: int) -> str:
    """Return why the engine is wrong where examples have other data of this batch, "" where it is right or nothing is told.

    Args:
        engine: The engine, with the guess that holds for the batch.
        inputs: The batch.
        trace: The way that the model went on it.

    Raises:
        InputError: The model mixes examples there.
    """
    size = batch_size(inputs)
    if size == 1:
        return ""
    reasons = [_difference(engine, _exchanged(inputs, signs=signs), trace) for signs in (False, True)]
    if reasons == [None, None]:  # a model that takes no such data takes the examples themselves, the other way round
        backwards = torch.arange(size - 1, -1, -1, device=tensors_in([inputs])[0].device)
        reasons.append(_difference(engine, take(inputs, backwards), trace))
    reason = next(filter(None, reasons), "")
    return f"{reason}, once the data of its examples are exchanged" if reason else ""


def _difference(engine: FastEngine, inputs: Inputs, trace: int) -> str | None:
    """Return why the engine is wrong there, "" where it is right, None where nothing is told."""
    try:
        twins = total_alone(engine, inputs)
        finite = all(math.isfinite(float(whole_norm(gradient))) for gradient in twins.total.values())
        found = compare(engine, inputs, twins, perturbed=False) if finite else None
    except torch.OutOfMemoryError:
        raise
    except FAILURES:
        return None  # not every model takes any data
    if found is None or found.noticed or found.trace != trace:
        return None
    if not found.verdict.fast:
        state = RandomState.capture(devices_of(engine.model))
        refuse_mixing(engine.model, inputs, evaluate(engine.model, inputs).detach(), {}, state)
    return found.verdict.reason


def _exchanged(inputs: Inputs, *, signs: bool) -> Inputs:
    """Return the batch with its tokens exchanged, those of one place in all inputs together.

    With other signs, too, the last example becomes the first once more: examples that meet where they are alike shall meet.
    """
    generator, orders = torch.Generator().manual_seed(0), dict[int, Tensor]()
    size = batch_size(inputs)

    def exchange(value: Tensor) -> Tensor:
        if value.dim() == 0 or len(value) != size:
            return value
        tokens = value.shape[1] if value.dim() > 1 else 1
        if tokens not in orders:
            orders[tokens] = torch.randperm(size * tokens, generator=generator)
        rows = value.detach().reshape(size * tokens, *value.shape[2:])
        found = rows[orders[tokens].to(value.device)].view(value.shape)
        if signs and value.is_floating_point():
            drawn = torch.randint(0, 2, value.shape, generator=generator, dtype=torch.int8)  # an eighth of the memory
            found = found.mul_((2 * drawn - 1).to(found))
        if signs:
            found[-1] = found[0]
        return found

    return each_tensor(inputs, exchange)
