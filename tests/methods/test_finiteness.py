"""A perturbation along a gradient whose length float32 cannot hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import noisesam
from noisesam.errors import InputError


class Steep(nn.Module):
    """Logits of zero, with finite gradients whose squares overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 2, bias=False)
        nn.init.zeros_(self.map.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.map(inputs) * 1e25


ALONG_THE_GRADIENT = {
    "sam": {}, "m-sam": {"examples_per_shard": 2}, "esam": {}, "looksam": {}, "looklayersam": {}, "asam": {}, "gsam": {},
    "saner": {}, "vasso": {}, "gnp": {}, "ssam-d": {"epochs": 2}, "f-sam": {},
}  # fmt: skip


def step(name: str, options: dict[str, object], model: nn.Module) -> None:
    torch.manual_seed(0)
    method = noisesam.methods.make(name, model, **options)
    method.start_epoch(0)
    method.backward(torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0]), index=torch.arange(6))


@pytest.mark.parametrize("name", ALONG_THE_GRADIENT)
def test_a_gradient_too_long_to_be_normalised_is_refused_and_not_taken_for_sgds(name):
    model = Steep()
    with pytest.raises(FloatingPointError, match="ascent gradient"):
        step(name, ALONG_THE_GRADIENT[name], model)
    assert model.map.weight.grad is None


def test_1_sam_forms_that_length_in_float64_and_goes_on():
    model = Steep()
    step("1-sam", {}, model)
    assert bool(model.map.weight.grad.isfinite().all())


@pytest.mark.parametrize("name", ["sgd", "sam", "1-sam"])
def test_with_a_scaler_a_model_without_a_part_in_its_output_is_refused_in_words(name):
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.ones(2))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * 1.0

    method = noisesam.methods.make(name, Constant())
    with pytest.raises(InputError, match="takes part"):
        method.backward(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), scaler=torch.amp.GradScaler("cpu"))


def distance(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the distance to the one-hot target: zero where it is fitted, and there without a gradient."""
    return ((logits - nn.functional.one_hot(targets, 2)) ** 2).sum(1).sqrt()


ONE_PASS = {"sgd": {}, "reg-sgd": {"activation": 0.1, "weight": 0.1}, "saf": {}, "mesa": {"epochs": 3}}


@pytest.mark.parametrize("name", ONE_PASS)
@pytest.mark.parametrize("examples", [1, 4])
def test_a_finite_loss_without_a_finite_gradient_is_refused_without_a_scaler_and_skipped_with_one(name, examples):
    model = nn.Linear(3, 2)
    method = noisesam.methods.make(name, model, loss=distance, **ONE_PASS[name])
    method.start_epoch(0)
    batch, index = (torch.randn(examples, 3), torch.zeros(examples, dtype=torch.long)), torch.arange(examples)
    method.backward(*batch, index=index)
    model.zero_grad()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    with pytest.raises(FloatingPointError, match="losses are finite, and their gradient is not"):
        method.backward(*batch, index=index)
    assert model.weight.grad is None
    method.backward(*batch, index=index, scaler=torch.amp.GradScaler("cpu"))
    assert bool(model.weight.grad.isinf().all())


def test_a_loss_without_a_finite_gradient_at_its_first_batch_is_not_said_to_mix():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    method = noisesam.methods.make("sgd", model, loss=distance)
    with pytest.raises(FloatingPointError, match="losses are finite, and their gradient is not"):
        method.backward(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))

    def centred(logits: Tensor, targets: Tensor) -> Tensor:
        return distance(logits - logits.mean(0), targets)

    method = noisesam.methods.make("sgd", nn.Linear(3, 2), loss=centred)
    with pytest.raises(InputError, match="mixes the examples"):
        method.backward(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
