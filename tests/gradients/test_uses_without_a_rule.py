"""Uses of a parameter that no function of torch shows, and hooks that see its gradients: heard in every step."""

from __future__ import annotations

import pytest
import torch
from reference.loop import example_terms, mean_term, relative_error
from reference.own_functions import LearnedScale
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine"),
]
LABELS = torch.tensor([0, 1, 2, 0])
PLACES = {"1-sam": ("perturbed", "perturbed"), "l-sam": ("w", "perturbed"), "j-sam": ("perturbed", "w")}
TOLERANCE = 1e-12
"""Rounding of float64 over sums of a few dozen products."""


def error(model: nn.Module, inputs, method: str = "1-sam") -> float:
    """Return how far a method is off from the loop over examples."""
    jacobian, residual = PLACES[method]
    found = mixed_point_gradient(model, inputs, LABELS, rho=0.3, jacobian_at=jacobian, residual_at=residual)
    return relative_error(found, mean_term(example_terms(model, inputs, LABELS, 0.3), method))


class SecondModality(nn.Module):
    """A second input that may be missing, scaled by a function of the model's own."""

    frozen = False

    def __init__(self):
        super().__init__()
        self.l, self.h, self.scale = nn.Linear(5, 6), nn.Linear(6, 3), nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, both):
        x, other = both[:, :5], both[:, 5:]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            scaled = LearnedScale.apply(other, self.scale)
        return self.h(torch.tanh(self.l(x)) + scaled)


@pytest.mark.parametrize("method", PLACES)
def test_a_function_of_the_model_s_own_is_heard_when_its_input_is_no_longer_zero(method):
    model = SecondModality()
    assert error(model, torch.cat([torch.randn(4, 5), torch.zeros(4, 6)], 1), method) <= TOLERANCE
    for _ in range(2):
        assert error(model, torch.randn(4, 11), method) <= TOLERANCE


@pytest.mark.parametrize("method", PLACES)
def test_a_function_of_the_model_s_own_is_heard_when_it_is_no_longer_frozen(method):
    model, inputs = SecondModality(), torch.randn(4, 11)
    for model.frozen in (True, False, True):
        assert error(model, inputs, method) <= TOLERANCE


class OwnHook(nn.Module):
    """A hook on an activation, which may act on what it sees."""

    def __init__(self, hook):
        super().__init__()
        self.l, self.h, self.hook = nn.Linear(5, 6), nn.Linear(6, 3), hook

    def forward(self, x):
        z = torch.tanh(self.l(x))
        if z.requires_grad:
            z.register_hook(self.hook)
        return self.h(z)


def step(model: nn.Module, x: Tensor, method: str):
    jacobian, residual = PLACES[method]
    return mixed_point_gradient(model, x, LABELS, rho=0.3, jacobian_at=jacobian, residual_at=residual)


@pytest.mark.parametrize("method", PLACES)
def test_a_hook_that_clips_what_is_large_alone_is_refused_in_whatever_pass_it_does(method):
    seen: list[float] = []
    passes = {"bound": float("inf")}

    def clips(gradient: Tensor):
        seen.append(float(gradient.abs().max()))
        return gradient.clamp(-passes["bound"], passes["bound"]) if seen[-1] > passes["bound"] else None

    model, x = OwnHook(clips), torch.randn(4, 5)
    assert error(model, x, method) <= TOLERANCE
    seen.clear()
    step(model, x, method)
    for bound in sorted(set(seen))[:-1] or [seen[0] / 2]:  # some passes of the step are clipped, and others not
        passes["bound"] = bound
        with pytest.raises(InputError, match=r"change the gradients of some reverse passes alone|is not linear"):
            step(model, x, method)


def test_a_hook_that_clips_in_place_is_none_that_only_looks():
    switched = {"on": False}

    def clips(gradient: Tensor) -> None:
        if switched["on"]:
            gradient.clamp_(-0.05, 0.05)

    model, x = OwnHook(clips), torch.randn(4, 5)
    assert error(model, x) <= TOLERANCE
    switched["on"] = True
    with pytest.raises(InputError, match="OwnHook is not linear"):
        step(model, x, "1-sam")


def test_a_module_s_hook_in_the_place_of_another_is_another_hook():
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(4, 5)
    looks = model[2].register_full_backward_hook(lambda *_: None)
    assert error(model, x) <= TOLERANCE
    looks.remove()
    model[2].register_full_backward_hook(lambda _, inner, __: (inner[0].clamp(-0.05, 0.05),))
    with pytest.raises(InputError, match="is not linear"):
        step(model, x, "1-sam")


@pytest.mark.parametrize("method", PLACES)
def test_a_hook_on_a_weight_sees_gradients_from_the_first_step_on(method):
    switched, seen = {"scale": None}, []

    def hook(gradient: Tensor):
        seen.append(gradient.shape)
        return None if switched["scale"] is None else gradient * switched["scale"]

    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(4, 5)
    model[0].weight.register_hook(hook)
    for switched["scale"] in (None, 0.5, None):
        assert error(model, x, method) <= TOLERANCE
    assert seen
    assert engine_for(model, x).name != "fast"
