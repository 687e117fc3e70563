"""Gradients by plain autograd, and what its graph tells of where it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import sparse_gradient
from noisesam.gradients.norms import norm_of
from noisesam.gradients.per_example_gradient import LARGEST_SQUARE, SMALLEST_SQUARE

_VIEWS = (
    "Alias", "AsStrided", "Diagonal", "Expand", "Imag", "Narrow", "Permute", "Real", "ReshapeAlias", "Select", "Slice", "Split",
    "SplitWithSizes", "Squeeze", "T", "Transpose", "Unbind", "Unfold", "Unsqueeze", "View", "ViewAs", "ViewAsComplex",
    "ViewAsReal",
)  # fmt: skip


def named_plain_gradients(
    parameters: Mapping[str, Tensor], output: Tensor, cotangent: Tensor, *, retain_graph: bool = False
) -> dict[str, Tensor | None]:
    """Return J^T u for each of the parameters, None where one plays no part.

    Raises:
        InputError: A gradient is sparse.
    """
    found = torch.autograd.grad(output, list(parameters.values()), cotangent, allow_unused=True, retain_graph=retain_graph)
    for name, gradient in zip(parameters, found, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise sparse_gradient(name)
    return dict(zip(parameters, found, strict=True))


def whole_norm(values: Tensor) -> Tensor:
    """Return the norm of all entries in float64, also where their squares are beyond their type; a copy is made only there."""
    if values.numel() == 0:  # the largest of no entries is not defined
        return values.new_zeros((), dtype=torch.float64)
    norm = norm_of(values).double()
    if SMALLEST_SQUARE < float(norm) ** 2 < LARGEST_SQUARE:
        return norm
    largest = torch.linalg.vector_norm(values, ord=torch.inf)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return norm_of(values / scale).double() * scale.double()


def next_number() -> int:
    """Return the number from which autograd numbers the operations of this thread that are yet to come."""
    made = torch.zeros((), requires_grad=True).clone().grad_fn
    assert made is not None
    return made._sequence_nr()


def kept_view(model: nn.Module, parameters: Mapping[str, nn.Parameter], output: Tensor, start: int) -> str | None:
    """Return the name of a parameter of which the model keeps a view from before a forward pass, None where it keeps none.

    Args:
        model: The model.
        parameters: Its trainable parameters.
        output: What the forward pass returned.
        start: `next_number()` before it.

    Raises:
        InputError: The model keeps something else that was made of a parameter: it would be that of w at w + eps_i.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: str | None = None
    for node in _nodes(output.grad_fn):
        if _number(node, start) >= start:
            continue
        for leaf in (getattr(below, "variable", None) for below in _nodes(node)):
            if id(leaf) not in names:
                continue
            found = found or names[id(leaf)]
            if node.name().rstrip("0123456789").removesuffix("Backward") not in _VIEWS:
                raise InputError(
                    f"{type(model).__name__} uses {names[id(leaf)]!r} by way of a copy that was made of it before the step",
                    expected="a forward pass that starts from its parameters: at w + eps_i such a copy would still hold w",
                    remedy="Form it inside forward, at every call, instead of keeping it.",
                )
    return found


def _number(node: Any, otherwise: int) -> int:
    """Return a node's number; leaves have none that means anything."""
    return otherwise if hasattr(node, "variable") or not hasattr(node, "_sequence_nr") else node._sequence_nr()


def _nodes(root: Any) -> list[Any]:
    waiting, seen = [root], {}
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen[node] = True
            waiting.extend(following for following, _ in node.next_functions)
    return list(seen)
