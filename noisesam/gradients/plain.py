"""Gradients by plain autograd, whatever the model does on the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import sparse_gradient
from noisesam.gradients.factors import LARGEST_SQUARE, SMALLEST_SQUARE


def plain_gradients(
    model: nn.Module, output: Tensor, tensors: Sequence[Tensor], cotangent: Tensor, *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """Return J^T u for each of the tensors, None where one plays no part.

    A re-entrant checkpoint (`use_reentrant=True`) runs a reverse pass of its own, which can only add to the `.grad` of the
    leaves and of the model's parameters: there the gradients are read from it, and what it held before is put back.
    """
    leaves = _leaves_of_reentrant_graph(output)
    if leaves is None:
        return torch.autograd.grad(output, tensors, cotangent, allow_unused=True, retain_graph=retain_graph)
    kept = {id(leaf): (leaf, leaf.grad) for leaf in (*leaves, *tensors, *model.parameters())}
    try:
        for leaf, _ in kept.values():
            leaf.grad = None
        torch.autograd.backward(output, cotangent, retain_graph=retain_graph)
        return tuple(tensor.grad for tensor in tensors)
    finally:
        for leaf, gradient in kept.values():
            leaf.grad = gradient


def named_plain_gradients(
    model: nn.Module, parameters: Mapping[str, Tensor], output: Tensor, cotangent: Tensor, *, retain_graph: bool = False
) -> dict[str, Tensor | None]:
    """Return the same by name.

    Raises:
        InputError: A gradient is sparse.
    """
    found = plain_gradients(model, output, list(parameters.values()), cotangent, retain_graph=retain_graph)
    for name, gradient in zip(parameters, found, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise sparse_gradient(name)
    return dict(zip(parameters, found, strict=True))


def whole_norm(values: Tensor) -> Tensor:
    """Return the norm of all entries in float64, also where their squares are beyond their type; a copy is made only there."""
    norm = torch.linalg.vector_norm(values).double()
    if SMALLEST_SQUARE < float(norm) ** 2 < LARGEST_SQUARE:
        return norm
    largest = torch.linalg.vector_norm(values, ord=torch.inf)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(values / scale).double() * scale.double()


def has_reentrant_checkpoint(output: Tensor) -> bool:
    """Whether the graph of an output holds a checkpoint with `use_reentrant=True`."""
    return _leaves_of_reentrant_graph(output) is not None


def _leaves_of_reentrant_graph(output: Tensor) -> list[Tensor] | None:
    """Return the leaves that the graph shows, or None where it has no re-entrant checkpoint."""
    waiting, seen, leaves, reentrant = [output.grad_fn], set(), [], False
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        reentrant = reentrant or node.name() == "CheckpointFunctionBackward"
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            leaves.append(leaf)
        waiting.extend(following for following, _ in node.next_functions)
    return leaves if reentrant else None
