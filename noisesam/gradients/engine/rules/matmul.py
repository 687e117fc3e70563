"""Products x @ W with a weight as the right operand: a linear map whose weight is stored transposed."""

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
