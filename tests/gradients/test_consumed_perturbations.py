"""The memory of per-example gradients becomes that of w + eps_i; a model that changes between the passes is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine.tape import UnrepeatableForwardError
from noisesam.gradients.factors import Dense


def test_overwriting_gives_the_bits_of_a_fresh_tensor():
    weight, tensor, scale = torch.randn(3, 2), torch.randn(4, 3, 2), torch.rand(4)
    fresh = Dense(tensor.clone(), scale).added_to(weight)
    factor = Dense(tensor, scale).for_one_use()
    assert torch.equal(factor.added_to(weight), fresh)
    assert torch.equal(tensor, fresh)  # in the memory of the gradient


class Grows(nn.Module):
    """Uses its layer once in the first passes, twice from a chosen forward on."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.twice_from = nn.Linear(4, 4), 0, 10**9

    def forward(self, x):
        self.calls += 1
        hidden = self.layer(x)
        return self.layer(hidden) if self.calls >= self.twice_from else hidden


def test_a_parameter_that_is_used_more_often_at_the_perturbed_weights_is_refused():
    torch.manual_seed(0)
    # Eight positions of four features: the gradient is kept multiplied out, and its memory is used again.
    model, x, y = Grows().double(), torch.randn(3, 8, 4).double(), torch.zeros(3).double()

    def loss(logits, targets):
        return logits.square().sum((1, 2)) - targets

    options = {"rho": 0.1, "jacobian_at": "perturbed", "residual_at": "perturbed", "loss": loss}
    mixed_point_gradient(model, x, y, **options)
    model.twice_from = model.calls + 2
    with pytest.raises(UnrepeatableForwardError, match="used more often at w"):
        mixed_point_gradient(model, x, y, **options)
