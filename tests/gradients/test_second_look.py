"""A gradient that float32 leaves in doubt behind a kink is looked at in float64; what is wrong there stays wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from reference.exactness import engine_met
from torch import Tensor, nn
from torch.nn import functional

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs
from noisesam.gradients.engine import products, second_look
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.rounding import rounding_of
from noisesam.gradients.engine.rules import linear as linear_rule
from noisesam.gradients.engine.torch_rounding import with_torch_rounding

EXAMPLES, WIDTH, HIDDEN = 8, 6, 40


def rounded_otherwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the product as a library might round it whose float32 ends a little above torch's."""
    found = functional.linear(x, weight, bias)
    return found + 1e-8 if found.dtype == torch.float32 else found


def at_the_kink() -> nn.Sequential:
    """Return a network with one hidden unit whose input is zero for every example."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3))
    with torch.no_grad():
        model[0].weight[7] = 0.0
        model[0].bias[7] = 0.0
    return model


def batch() -> Tensor:
    return torch.randn(EXAMPLES, WIDTH, generator=torch.Generator().manual_seed(1))


def test_one_rounding_at_a_kink_is_no_reason_for_a_slower_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "linear", rounded_otherwise)
    assert engine_met(at_the_kink(), batch()) == "fast"


class InSinglePrecision(nn.Module):
    """Multiplies with a constant that is float32 whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = at_the_kink()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x @ torch.eye(WIDTH, dtype=torch.float32))


class EndsInSinglePrecision(InSinglePrecision):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).float()


@pytest.mark.filterwarnings("ignore:.*exact reference engine")
@pytest.mark.parametrize("kind", [at_the_kink, EndsInSinglePrecision])
def test_a_gradient_that_is_a_little_wrong_in_float64_too_is_wrong(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[], nn.Module]
):
    right = linear_rule.product_factors

    def too_long(*pair: Tensor, **options):
        return right(1.01 * pair[0], *pair[1:], **options)

    assert engine_met(kind(), batch()) == "fast"
    monkeypatch.setattr(linear_rule, "product_factors", too_long)
    assert engine_met(kind(), batch()) == "reference"


@pytest.mark.filterwarnings("ignore:.*exact reference engine")
def test_a_model_of_float32_alone_is_judged_at_first_sight(monkeypatch: pytest.MonkeyPatch):
    assert engine_met(InSinglePrecision(), batch()) == "fast"
    monkeypatch.setattr(products, "linear", rounded_otherwise)
    assert engine_met(InSinglePrecision(), batch()) == "reference"


def looked_at(compared: Callable[[FastEngine, Inputs], Tensor | None], model: nn.Module, inputs: Tensor) -> bool:
    engine = FastEngine(model, dict(model.named_parameters()))
    logits = model(inputs).detach()
    return second_look.agrees_in_double(engine, inputs, logits, compared, rounding_of(model.parameters(), logits))


def held(model: nn.Module) -> list[tuple[int, int, int, torch.dtype]]:
    tensors = itertools.chain(model.parameters(), model.buffers())
    return [(id(value), value.data_ptr(), value._version, value.dtype) for value in tensors]


def seen(engine: FastEngine, inputs: Inputs) -> Tensor:
    assert isinstance(inputs, Tensor)
    tensors = [inputs, *engine.parameters.values(), *engine.model.buffers()]
    assert {value.dtype for value in tensors if value.is_floating_point()} == {torch.float64}
    assert all(engine.parameters[name] is own for name, own in engine.model.named_parameters())
    return engine.model(inputs).detach()


def with_buffers_and_a_tied_weight() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH)).eval()
    model[2].weight = model[0].weight
    return model


def test_the_model_has_its_own_tensors_again_after_the_second_look():
    model = with_buffers_and_a_tied_weight()
    before = held(model)
    assert looked_at(seen, model, batch())
    assert held(model) == before

    def breaks_off(engine: FastEngine, inputs: Inputs) -> None:
        raise torch.OutOfMemoryError("no room")

    assert not looked_at(breaks_off, model, batch())
    assert held(model) == before
    assert model[2].weight is model[0].weight


def test_what_is_another_function_in_float64_tells_nothing():
    def another(engine: FastEngine, inputs: Inputs) -> Tensor:
        return 1.1 * seen(engine, inputs)

    assert not looked_at(another, with_buffers_and_a_tied_weight(), batch())


def test_what_an_input_error_ends_tells_nothing():
    def refuses(engine: FastEngine, inputs: Inputs) -> None:
        raise InputError("this", expected="that", remedy="do")

    assert not looked_at(refuses, with_buffers_and_a_tied_weight(), batch())


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(256, 256), (64, 256)),
        (nn.Conv2d(256, 512, 3, stride=2, padding=1, bias=False), (16, 256, 8, 8)),
    ],
    ids=["linear", "convolution"],
)
def test_in_a_comparison_shared_weights_multiply_as_torch_does_to_the_bit(model: nn.Module, shape: tuple[int, ...]):
    torch.manual_seed(0)
    inputs = torch.randn(shape)
    inputs = inputs.to(memory_format=torch.channels_last) if len(shape) == 4 else inputs
    engine = FastEngine(model, dict(model.named_parameters()))
    with with_torch_rounding():
        point = engine.at(inputs)
    assert torch.equal(point.logits, model(inputs))
    assert engine.at(inputs).tape.trace == point.tape.trace, "what is proven there holds for steps"
