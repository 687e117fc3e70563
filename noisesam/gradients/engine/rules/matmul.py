"""Products x @ W (+ b) with a weight as the right operand: a linear map whose weight is stored transposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noisesam.gradients.engine.interception import UnsupportedParameterUse, register_rule
from noisesam.gradients.engine.layout import examples_first
from noisesam.gradients.engine.rules.linear import apply_linear, autocast_input
from noisesam.gradients.engine.tape import Tape


@register_rule(torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)
def matmul_rule(tape: Tape, _: Callable[..., Any], left: Tensor, right: Tensor) -> Tensor:
    """Multiply activations by a weight (d, p) at w or w + eps_i."""
    if tape.tracks(left) or right.dim() != 2:
        raise UnsupportedParameterUse(f"'matmul' uses the parameter {tape.name(left if tape.tracks(left) else right)!r}")
    values = autocast_input(left)
    positions, back = examples_first(tape, values, 1, "'matmul'")
    return back(apply_linear(tape, positions, right, None, transposed=True))


@register_rule(torch.addmm)
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
