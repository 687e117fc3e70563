"""What is finite is found by sums, which only finite numbers leave finite; where a sum is not, every number is asked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from noisesam.methods.finiteness import is_finite
from noisesam.methods.result import Outcome


def step_with(*gradients: Tensor) -> Outcome:
    named = {str(place): gradient for place, gradient in enumerate(gradients)}
    return Outcome(named, logits=torch.zeros(2, 3), losses=torch.ones(2), forward_examples=2, backward_examples=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_numbers_are_finite_also_where_their_sum_is_not(dtype: torch.dtype):
    largest = torch.full((5, 4), torch.finfo(dtype).max, dtype=dtype)
    assert not bool(largest.sum().isfinite())
    assert is_finite(step_with(torch.ones(3), largest, -largest))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("entries", [(math.nan, 0.0), (math.inf, 0.0), (-math.inf, 0.0), (math.inf, -math.inf)])
def test_no_number_that_is_not_finite_is_passed_over(dtype: torch.dtype, entries: tuple[float, float]):
    gradient = torch.zeros(4, 3, dtype=dtype)
    gradient[1, 2], gradient[3, 0] = entries
    assert not is_finite(step_with(torch.ones(3), gradient))


def test_infinities_of_two_parameters_do_not_cancel():
    assert not is_finite(step_with(torch.tensor([math.inf]), torch.tensor([-math.inf]), torch.ones(2, dtype=torch.float64)))


def test_a_step_without_gradients_is_judged_by_its_losses():
    assert is_finite(step_with())
    assert is_finite(step_with(torch.zeros(0)))
