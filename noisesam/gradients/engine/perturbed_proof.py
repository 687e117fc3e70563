"""What is proven beside the example axis: outputs at w + eps_i, and the gradient of the engine that is fallen back on.

A rule may be right at w and wrong at w + eps_i, where it alone knows the perturbation. The twin is the model itself with its
weights moved for a moment, example by example: plain torch, whatever the model does with its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs, call_model, sparse_gradient, take
from noisesam.gradients.factors import LARGEST_SQUARE, SMALLEST_SQUARE, Factor, OuterProducts, PerExampleGradient
from noisesam.gradients.points import Engine, Point
from noisesam.gradients.reference import ReferenceEngine, Vectorisation

SHARE = 0.05
"""Length of the perturbation as a share of that of the weights, or of 1 where they are zero."""
ROUNDINGS = 1000
"""Roundings of the outputs that a batch and an example alone may differ by where a small part of a model hardly moves them."""
COARSE = 1e-2
"""A tolerance above this belongs to products rounded to few bits (TF32): it is then relative to the outputs themselves."""


def agrees_at_perturbed_weights(
    engine: Engine, inputs: Inputs, point: Point, gradient: PerExampleGradient, rows: list[int], tolerance: float
) -> bool:
    """Whether some examples, run alone with their own weights, have the outputs that the engine finds in the batch.

    Args:
        engine: The engine in question.
        inputs: The batch.
        point: The batch at w, which the engine may re-use.
        gradient: The direction of the perturbation, of every example.
        rows: The examples that are compared.
        tolerance: Relative to the change of the outputs.
    """
    parameters = engine.parameters
    if not gradient.factors:
        return True
    length = math.hypot(*(float(torch.linalg.vector_norm(parameter.detach())) for parameter in parameters.values()))
    radii = dict.fromkeys(parameters, SHARE * (length or 1.0))
    eps = gradient.perturbation(radii, gradient.norm())
    with torch.no_grad():
        alone = [_alone(engine.model, parameters, inputs, eps, row) for row in rows]
    for graph in (False, True):  # without a graph every layer may meet what it has met before; the last may use up eps
        with torch.set_grad_enabled(graph):
            moved = engine.at(inputs, eps, previous=point, consume=graph).logits
        for row, expected in zip(rows, alone, strict=True):
            if not bool(expected.isfinite().all()):
                continue
            change, level = (expected - point.logits[row : row + 1]).abs().max(), expected.abs().max()
            size = torch.maximum(level, change) if tolerance > COARSE else change
            allowed = tolerance * size + ROUNDINGS * torch.finfo(expected.dtype).eps * level
            if not bool((moved[row : row + 1] - expected).abs().max() <= allowed):
                return False
    return True


def _alone(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], inputs: Inputs, eps: Mapping[str, Factor], row: int
) -> Tensor:
    rows = slice(row, row + 1)
    with _moved(parameters, eps, rows):
        return call_model(model, take(inputs, rows)).detach()


@contextmanager
def _moved(parameters: Mapping[str, nn.Parameter], eps: Mapping[str, Factor], one: slice) -> Iterator[None]:
    """Give the parameters for a moment the memory of w + eps of one example; theirs is never written to."""
    own = {name: parameters[name].data for name in eps}
    try:
        for name, factor in eps.items():
            eps_of_one = factor.of(one)
            if isinstance(eps_of_one, OuterProducts):  # multiplied out anew: the product becomes the moved weight
                parameters[name].data = eps_of_one.dense()[0].to(own[name].dtype).add_(own[name])
            else:
                parameters[name].data = own[name] + eps_of_one.dense()[0].to(own[name].dtype)
        yield
    finally:
        for name, memory in own.items():
            parameters[name].data = memory


def whole_norm(values: Tensor) -> Tensor:
    """Return the norm of all entries in float64, also where their squares are beyond their type; a copy is made only there."""
    norm = torch.linalg.vector_norm(values).double()
    if SMALLEST_SQUARE < float(norm) ** 2 < LARGEST_SQUARE:
        return norm
    largest = torch.linalg.vector_norm(values, ord=torch.inf)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(values / scale).double() * scale.double()


def plain_gradient_norms(parameters: Mapping[str, nn.Parameter], output: Tensor, cotangent: Tensor) -> dict[str, float]:
    """Return the norm of the gradient of every parameter by plain autograd, 0 where it plays no part; the graph stays.

    Raises:
        InputError: A gradient is sparse.
    """
    found = torch.autograd.grad(output, list(parameters.values()), cotangent, allow_unused=True, retain_graph=True)
    norms = {}
    for name, gradient in zip(parameters, found, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise sparse_gradient(name)
        norms[name] = 0.0 if gradient is None else float(whole_norm(gradient))
    return norms


def reference_gradient_norms(
    model: nn.Module, parameters: dict[str, nn.Parameter], one: Inputs, cotangent: Tensor
) -> dict[str, float]:
    """Return the same of the reference engine, one example at a time: the very operations of the model itself."""
    point = ReferenceEngine(model, parameters, Vectorisation(possible=False)).at(one)
    found = point.per_example_gradient(cotangent).factors
    return {name: float(found[name].in_double().squared_norm().sum().sqrt()) if name in found else 0.0 for name in parameters}


def kept_from_before(model: nn.Module, name: str) -> InputError:
    """Build the error for a model that holds something made of a parameter before the step."""
    return InputError(
        f"{type(model).__name__} uses {name!r} by way of a tensor that was made of it before the step",
        expected="a forward pass that starts from its parameters: at w + eps_i such a tensor would still hold w",
        remedy=f"Form it inside forward, at every call, instead of keeping it (a view or a transpose of {name!r}, say).",
    )
