"""Models that mix the examples of a batch are refused: a per-example gradient is not defined there."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs, batch_size, each_tensor, take
from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.rounding import rounding_of
from noisesam.gradients.engine.terms import as_drawn, close, finite, fixed_cotangent, tells
from noisesam.gradients.engine.unsupported import FAILURES
from noisesam.gradients.randomness import RandomState
from noisesam.gradients.recomputation import evaluate


def refuse_batch_normalisation(model: nn.Module) -> None:
    """Refuse BatchNorm in training mode: it mixes the examples of a batch, so a per-example gradient is not defined."""
    for name, module in model.named_modules():
        mixes = module.training or getattr(module, "running_mean", None) is None
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and mixes:
            raise InputError(
                f"The layer {name!r} ({type(module).__name__}) normalises over the batch",
                expected="a model whose examples do not mix: a per-example gradient is not defined otherwise",
                remedy="Use LayerNorm or GroupNorm, or freeze the statistics with that layer's .eval().",
            )


def refuse_mixing(model: nn.Module, inputs: Inputs, output: Tensor, alone: dict[int, Tensor], state: RandomState) -> None:
    """Refuse a model in which the output of one example depends on the inputs of others."""
    size = batch_size(inputs)
    if output.shape[:1] != (size,):
        if size == 1 and output.dim():
            return
        raise InputError(
            f"The model returned shape {tuple(output.shape)} for {size} examples",
            expected=f"one row of logits per example: shape ({size}, ...)",
            remedy="Make the example the first axis of the output.",
        )
    if not tells(output):
        return
    tolerance = rounding_of(model.parameters(), output).tolerance
    if not _reaches_others(model, inputs):
        alone = alone | _apart_in_halves(model, inputs, output, tolerance, state)
        apart = [row for row, own in alone.items() if not close(output[row : row + 1], own, tolerance)]
        if not apart:
            return
        row = apart[0]
        rows, own = slice(row, row + 1), alone[row]
        # The same example alone twice: a model that draws its own random numbers differs from itself.
        repeats = [evaluate(model, take(inputs, rows)).detach() for _ in range(2)]
        if not all(close(repeat, own, tolerance) for repeat in repeats):
            return
        copies = take(inputs, torch.full((size,), row, dtype=torch.long, device=output.device))
        if close(output[rows], evaluate(model, copies)[rows].detach(), tolerance):
            raise InputError(
                f"An example alone has other outputs than in its batch, whatever the others are: "
                f"{float((finite(output[rows]) - finite(own)).abs().max()):.1e} apart, "
                f"of outputs up to {float(finite(output).abs().max()):.1e}",
                expected="outputs that depend on neither the size of the batch nor on rounding",
                remedy="Take out what reads the batch size; if there is nothing, centre the inputs or compute in float64.",
            )
    raise InputError(
        f"{type(model).__name__} mixes the examples of a batch: the output of one depends on the inputs of others",
        expected="a model whose output i depends on input i alone: a per-example gradient is not defined otherwise",
        remedy="Remove what computes over the example axis (batch statistics, centring, attention across examples).",
    )


def _apart_in_halves(
    model: nn.Module, inputs: Inputs, output: Tensor, tolerance: float, state: RandomState
) -> dict[int, Tensor]:
    """Return the outputs alone of examples that have others among every second example than among all."""
    size = len(output)
    if size < 4:
        return {}  # the first, the middle and the last are run alone
    found = torch.empty_like(output)
    for start in (0, 1):
        rows = torch.arange(start, size, 2, device=output.device)
        state.restore()
        found[rows] = evaluate(model, take(inputs, rows)).detach()
    scale = finite(output).abs().max().clamp_min(torch.finfo(output.dtype).tiny)
    apart = (found - output).abs().masked_fill_(found == output, 0.0).reshape(size, -1).amax(1)  # infinities may be equal
    worst = int(apart.argmax())
    if bool(apart[worst] <= tolerance * scale):
        return {}
    state.restore()
    return {worst: evaluate(model, take(inputs, slice(worst, worst + 1))).detach()}


def _reaches_others(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the gradient of any output is other than zero at the inputs of another example."""
    size = batch_size(inputs)
    if size == 1:  # beside itself: alone it has nobody to depend on
        inputs = take(inputs, torch.zeros(2, dtype=torch.long, device=tensors_in([inputs])[0].device))
    leaves: list[Tensor] = []
    try:
        with as_drawn():  # examples may be mixed with a probability
            output = evaluate(model, _with_gradients(inputs, leaves))
    except FAILURES:
        if size == 1:
            return False  # a model for one example at a time
        raise
    if not leaves or not output.requires_grad or output.shape[:1] != (batch_size(inputs),):
        return False
    for rows in _splits(len(output)):
        inside = torch.zeros(len(output), dtype=output.dtype, device=output.device)
        for row in rows:
            inside[row] = 1.0
        cotangent = fixed_cotangent(output) * inside.view(-1, *[1] * (output.dim() - 1))
        for gradient in torch.autograd.grad(output, leaves, cotangent, allow_unused=True, retain_graph=True):
            if gradient is not None and bool(((gradient != 0) & (inside == 0).view(-1, *[1] * (gradient.dim() - 1))).any()):
                return True
    return False


def _splits(examples: int) -> list[list[int]]:
    """Return groups of examples such that of any two some group has the first without the second, in few groups.

    Every example has a set of groups of its own, all of one size, so that none lies within another (Sperner).
    """
    groups = next(k for k in range(1, examples + 2) if math.comb(k, k // 2) >= examples)
    codes = itertools.islice(itertools.combinations(range(groups), groups // 2), examples)
    members: list[list[int]] = [[] for _ in range(groups)]
    for example, code in enumerate(codes):
        for group in code:
            members[group].append(example)
    return [rows for rows in members if 0 < len(rows) < examples]


def _with_gradients(inputs: Inputs, leaves: list[Tensor]) -> Inputs:
    def leaf(value: Tensor) -> Tensor:
        if not (value.is_floating_point() and value.dim()):
            return value
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1]

    return each_tensor(inputs, leaf)
