"""What is proven beside the example axis: outputs at w + eps_i.

A rule may be right at w and wrong at w + eps_i, where it alone knows the perturbation. The twin is the model itself with its
weights moved for a moment, example by example: plain torch, whatever the model does with its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Inputs, take
from noisesam.gradients.engine.rounding import COARSE, ROUNDINGS, Rounding, rounding_of
from noisesam.gradients.engine.terms import WithoutDropout, finite, tells
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.factors import Factor
from noisesam.gradients.moved_weights import movable
from noisesam.gradients.per_example_gradient import PerExampleGradient
from noisesam.gradients.points import Engine, Point
from noisesam.gradients.randomness import undisturbed
from noisesam.gradients.recomputation import evaluate

SHARE = 0.05
"""Length of the perturbation as a share of that of the weights, or of 1 where they are zero."""
AT_W = 4
"""How many times as far as at w a batch and an example alone may be apart elsewhere, by the roundings of a frozen part."""


def agrees_at_perturbed_weights(
    engine: Engine, inputs: Inputs, point: Point, gradient: PerExampleGradient, rows: list[int]
) -> bool:
    """Whether some examples, run alone with their own weights, have the outputs that the engine finds in the batch.

    Args:
        engine: The engine in question.
        inputs: The batch.
        point: The batch at w, which the engine may re-use.
        gradient: The direction of the perturbation, of every example.
        rows: The examples that are compared.
    """
    parameters, rounding = engine.parameters, rounding_of(engine.parameters.values(), point.logits)
    if not gradient.factors:
        return True
    length = math.hypot(*(float(torch.linalg.vector_norm(parameter.detach())) for parameter in parameters.values()))
    radii = dict.fromkeys(parameters, SHARE * (length or 1.0))
    eps = gradient.perturbation(radii, gradient.norm())
    with torch.enable_grad():  # as a model runs at w: without gradients it may be another
        alone = [_alone(engine.model, parameters, inputs, eps, row) for row in rows]
        apart = _apart_at_w(engine, inputs, point, rows, rounding)
    for graph in (False, True):  # without a graph every layer may meet what it has met before; the last may use up eps
        with torch.set_grad_enabled(graph):
            moved = engine.at(inputs, eps, previous=point, consume=graph).logits
        if not all(
            _agree(point, moved, row, expected, rounding, apart.get(row, 0.0))
            for row, expected in zip(rows, alone, strict=True)
        ):
            return False
    return True


def agrees_for_all_examples(engine: Engine, inputs: Inputs, perturbation: Mapping[str, Factor]) -> bool:
    """Whether every example, run alone with its own weights, has the output that the engine finds for it in the batch."""
    model, parameters = engine.model, engine.parameters
    with undisturbed(model), torch.enable_grad(), WithoutDropout():
        point = engine.at(inputs)
        try:
            moved = engine.at(inputs, dict(perturbation), previous=point).logits
        except UnsupportedParameterUse:
            return False
        rounding = rounding_of(parameters.values(), point.logits)
        apart = _apart_at_w(engine, inputs, point, range(len(point.logits)), rounding)
        return all(
            _agree(point, moved, row, _alone(model, parameters, inputs, perturbation, row), rounding, apart.get(row, 0.0))
            for row in range(len(point.logits))
        )


def _apart_at_w(engine: Engine, inputs: Inputs, point: Point, rows: Iterable[int], rounding: Rounding) -> dict[int, float]:
    """Return by how much the output of an example alone differs at w, where a frozen part computes in coarser numbers."""
    if rounding_of(engine.model.parameters(), point.logits).eps == rounding.eps:
        return {}
    with torch.enable_grad():
        alone = {row: evaluate(engine.model, take(inputs, slice(row, row + 1))).detach() for row in rows}
    return {row: float((finite(own) - finite(point.logits[row : row + 1])).abs().max()) for row, own in alone.items()}


def _agree(point: Point, moved: Tensor, row: int, expected: Tensor, rounding: Rounding, apart: float) -> bool:
    """Whether an output is as expected, to a share of how far it is from that at w, where they are `apart` already."""
    if not tells(expected):
        return True
    there, at_w = moved[row : row + 1], point.logits[row : row + 1]
    ruled_out = expected.isinf()
    if not torch.equal(there.isinf(), ruled_out):
        return False
    there, at_w, expected = (finite(values.masked_fill(ruled_out, 0.0)) for values in (there, at_w, expected))
    change, level = (expected - at_w).abs().max(), expected.abs().max()
    size = torch.maximum(level, change) if rounding.tolerance > COARSE else change
    allowed = rounding.tolerance * size + ROUNDINGS * rounding.eps * level + AT_W * apart
    return bool((there - expected).abs().max() <= allowed)


def _alone(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], inputs: Inputs, eps: Mapping[str, Factor], row: int
) -> Tensor:
    rows = slice(row, row + 1)
    with movable({name: parameters[name] for name in eps}) as move:
        for name, factor in eps.items():
            move(name, factor.of(rows).dense()[0])
        return evaluate(model, take(inputs, rows)).detach().clone()  # it may be a view of a weight
