"""The memory of per-example gradients becomes that of w + eps_i; a model that changes between the passes falls back."""

from __future__ import annotations

import pytest
import torch
from reference.loop import example_terms, mean_term, relative_error
from torch import nn

from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for
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


def energy(logits, targets):
    return logits.square().sum((1, 2)) - targets


@pytest.mark.parametrize("positions", [8, 1])  # of four features: the gradient is kept multiplied out, or as factors
def test_a_parameter_that_is_used_more_often_at_the_perturbed_weights_falls_back(positions):
    model, x, y = Grows().double(), torch.randn(3, positions, 4).double(), torch.zeros(3).double()
    options = {"rho": 0.1, "jacobian_at": "perturbed", "residual_at": "perturbed", "loss": energy}
    mixed_point_gradient(model, x, y, **options)
    model.twice_from = model.calls + 2
    with pytest.warns(UserWarning, match="used more often at w|another way at w"):
        found = mixed_point_gradient(model, x, y, **options)
    assert relative_error(found, mean_term(example_terms(model, x, y, 0.1, loss=energy), "1-sam")) <= 1e-12
    model = Grows().double()
    mixed_point_gradient(model, x, y, **options)
    model.twice_from = model.calls + 2
    with pytest.raises(InputError, match=r"engine='fast'.*(used more often at w|another way at w)"):
        mixed_point_gradient(model, x, y, engine="fast", **options)


@pytest.mark.parametrize("consume", [True, False])
def test_what_has_served_of_a_perturbation_is_gone_from_the_callers_hands(consume):
    model = nn.Sequential(nn.Embedding(7, 6), nn.LayerNorm(6), nn.Flatten(), nn.Linear(30, 4))
    tokens = torch.randint(0, 7, (3, 5))
    engine = engine_for(model, tokens)
    point = engine.at(tokens)
    gradient = point.per_example_gradient(torch.ones(3, 4))
    eps = gradient.perturbation(dict.fromkeys(engine.parameters, 0.1), gradient.norm())
    engine.at(tokens, eps, previous=point, consume=consume)
    assert eps.keys() == (set() if consume else engine.parameters.keys())
