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
