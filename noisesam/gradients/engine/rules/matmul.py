"""Products x @ W (+ b) and contractions: linear maps where they are such, else weights that every example has of its own."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.interception import register_rule
from noisesam.gradients.engine.layout import examples_first, tape_of_rows
from noisesam.gradients.engine.lifting import lift
from noisesam.gradients.engine.rules.linear import apply_linear, apply_vector, autocast_input
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse


@register_rule(
    *(
        getattr(place, name)
        for place in (torch, torch.Tensor)
        for name in ("matmul", "mm", "mv", "__matmul__")
        if hasattr(place, name)
    ),
    needs_activation=True,
)
def matmul_rule(tape: Tape, _: Callable[..., Any], left: Tensor, right: Tensor) -> Tensor:
    """Multiply activations by a weight (d, p) at w or w + eps_i, from the right or, where they are (n, d, T), from the left.

    A vector (d,) is every example's own: its products are few.
    """
    if tape.tracks(right) and not tape.tracks(left) and right.dim() == 1:
        return apply_vector(tape, autocast_input(left), right, "'matmul'")
    if tape.tracks(left) and not tape.tracks(right) and left.dim() == 1 and right.dim() == 3 and len(right) == tape.examples:
        return torch.matmul(lift(tape, left).unsqueeze(1), right).squeeze(1)
    if tape.tracks(left) and not tape.tracks(right) and left.dim() == 2 and right.dim() == 3 and len(right) == tape.examples:
        return apply_linear(tape, autocast_input(right).transpose(1, 2), left, None).transpose(1, 2)
    inner = right.shape[1:] if right.dim() == left.dim() and right.shape[0] == 1 else right.shape
    if not tape.tracks(left) and len(inner) > 2 and left.dim() > len(inner) and len(left) == tape.examples:
        ones = [1] * (left.dim() - 1 - len(inner))
        return torch.matmul(left, lift(tape, right).view(tape.examples, *ones, *inner))
    if tape.tracks(left) or right.dim() != 2:
        raise UnsupportedParameterUse(f"'matmul' uses the parameter {tape.name(left if tape.tracks(left) else right)!r}")
    values = autocast_input(left)
    positions, back = examples_first(tape, values, 1, "'matmul'")
    return back(apply_linear(tape, positions, right, None, transposed=True))


@register_rule(torch.addmm, needs_activation=True)
def addmm_rule(
    tape: Tape,
    _: Callable[..., Any],
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
    **more: Any,
) -> Tensor:
    """Evaluate b + x W over rows (n T, d), the linear map of GPT-2, at w or w + eps_i."""
    plain = beta == 1 and alpha == 1 and not more
    if not plain or input.dim() != 1 or not tape.tracks(mat2) or tape.tracks(mat1):
        raise UnsupportedParameterUse(
            f"'addmm' uses the parameter {tape.name(next(t for t in (input, mat1, mat2) if tape.tracks(t)))!r}"
        )
    positions, back = examples_first(tape, autocast_input(mat1), 1, "'addmm'")
    return back(apply_linear(tape, positions, mat2, input, transposed=True))


@register_rule(torch.einsum, torch.functional.einsum, needs_activation=True)
def einsum_rule(tape: Tape, function: Callable[..., Any], equation: Any, *operands: Any) -> Tensor:
    """Contract activations, whose first axis is the examples', with weights: as a linear map, or one of each example's own."""
    if not isinstance(equation, str):
        raise UnsupportedParameterUse("'einsum' contracts a parameter by lists of numbers")
    values = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else list(operands)
    terms, arrow, output = equation.replace(" ", "").partition("->")
    labels = terms.split(",")
    first = {term[0] for term, value in zip(labels, values, strict=True) if not tape.tracks(value) and term}
    if len(values) == 2 and not tape.tracks(values[0]) and _is_linear(labels[0], labels[1], output):
        positions, back = examples_first(tape, autocast_input(values[0]), 1, "'einsum'")
        return back(apply_linear(tape, positions, values[1], None, transposed=labels[1][0] == labels[0][-1]))
    plain = arrow and "." not in equation and len(first) == 1 and output[:1] in first
    if not plain:
        raise UnsupportedParameterUse(f"'einsum' contracts a parameter by {equation!r}")
    rows = tape_of_rows(tape, next(value for value in values if not tape.tracks(value)), "'einsum'")
    example = first.pop()
    if any(example in term for term, value in zip(labels, values, strict=True) if tape.tracks(value)):
        raise UnsupportedParameterUse(f"'einsum' contracts a parameter over the examples by {equation!r}")
    own = [example + term if tape.tracks(value) else term for term, value in zip(labels, values, strict=True)]
    lifted = [lift(rows, value) if tape.tracks(value) else value for value in values]
    return function(",".join(own) + "->" + output, *lifted)


@register_rule(torch.tensordot, torch.functional.tensordot, needs_activation=True)
def tensordot_rule(tape: Tape, _: Callable[..., Any], a: Tensor, b: Tensor, dims: Any = 2, out: Any = None) -> Tensor:
    """Contract activations with a weight over some axes: as the einsum that it is."""
    if isinstance(dims, Tensor) or out is not None or a.dim() + b.dim() > len(string.ascii_letters):
        raise UnsupportedParameterUse("'tensordot' contracts a parameter over axes in a tensor, or into one")
    pairs = (range(a.dim() - dims, a.dim()), range(dims)) if isinstance(dims, int) else dims
    left, right = ([pair] if isinstance(pair, int) else list(pair) for pair in pairs)
    first = list(string.ascii_letters[: a.dim()])
    second = list(string.ascii_letters[a.dim() : a.dim() + b.dim()])
    for one, other in zip(left, right, strict=True):
        second[other] = first[one]
    output = [letter for letter in first if letter not in second] + [letter for letter in second if letter not in first]
    equation = f"{''.join(first)},{''.join(second)}->{''.join(output)}"
    return einsum_rule(tape, torch.einsum, equation, a, b)


def _is_linear(inputs: str, weight: str, output: str) -> bool:
    """Whether a matrix meets the last axis of the inputs and puts another in its place."""
    seen, others = inputs[-1:], inputs[:-1]
    if len(set(inputs)) < len(inputs) or "." in inputs or not others or len(weight) != 2 or weight.count(seen) != 1:
        return False
    return output == others + weight.replace(seen, "")
