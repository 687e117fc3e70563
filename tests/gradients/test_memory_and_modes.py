"""Chunks by a stated budget, determinism, autocast, compiled modules, and a layer that a user registers."""

from __future__ import annotations

import pytest
import torch
from reference.loop import example_terms, mean_term, relative_error
from torch import nn

import noisesam
from noisesam.bench.memory import _level, _peak
from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient, register_rule
from noisesam.gradients.engine import engine_for
from noisesam.gradients.engine.rules.linear import apply_linear
from noisesam.gradients.memory import automatic_chunk, bytes_of_an_example

ONE_SAM = {"rho": 0.1, "jacobian_at": "perturbed", "residual_at": "perturbed"}


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(1, 16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2),
        nn.Flatten(),
        nn.Linear(216, 4),
    )


def test_automatic_chunks_follow_the_budget_alone_and_change_nothing_beyond_rounding():
    model, x, y = convolutional().double(), torch.randn(9, 3, 8, 8).double(), torch.arange(9) % 4
    assert automatic_chunk(model, x) == 9
    sizes = [automatic_chunk(model, x, budget) for budget in (1, 300_000, 600_000, 10**9)]
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert 1 < sizes[2] < 9
    whole = mixed_point_gradient(model, x, y, **ONE_SAM)
    for budget in (1, 300_000, 600_000):
        chunked = mixed_point_gradient(model, x, y, chunk_size="auto", memory_budget=budget, **ONE_SAM)
        assert relative_error(chunked, whole) <= 1e-12


def test_the_estimate_of_an_examples_memory_covers_what_the_engine_adds():
    model, x, y = convolutional(), torch.randn(256, 3, 32, 32), torch.arange(256) % 4
    model[5] = nn.Linear(24 * 15 * 15, 4)
    per_example = bytes_of_an_example(model, x[:1]).needed
    mixed_point_gradient(model, x[:2], y[:2], **ONE_SAM)
    before = _level("cpu")  # the peak starts again from here
    mixed_point_gradient(model, x, y, **ONE_SAM)
    grown = _peak("cpu") - before
    # An estimate: half as much again is allowed for the allocator.
    assert grown <= 1.5 * 256 * per_example


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "resnet8", "vit"])
def test_two_runs_give_the_same_bits(name):
    x, y = torch.randn(6, 3, 16, 16), torch.arange(6) % 4
    results = []
    for _ in range(2):
        model = noisesam.models.make(name, input_shape=(3, 16, 16), classes=4, seed=3)
        results.append(mixed_point_gradient(model, x, y, **ONE_SAM))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_channels_last_images_come_out_right(order):
    model = noisesam.models.make("resnet8", input_shape=(3, 16, 16), classes=4, seed=3, width=32).double()
    x, y = torch.randn(3, 3, 16, 16).double().contiguous(memory_format=order), torch.arange(3)
    assert engine_for(model, x).name == "fast"
    found = mixed_point_gradient(model, x, y, **ONE_SAM)
    assert relative_error(found, mean_term(example_terms(model, x, y, 0.1), "1-sam")) <= 1e-12


@pytest.mark.parametrize("method", ["sgd", "1-sam", "l-sam", "j-sam"])
def test_bfloat16_autocast_is_close_to_float32_on_every_layer_kind(method):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.place, self.head = nn.Parameter(torch.randn(1, 64, 8) * 0.1), nn.Linear(8, 4)

        def forward(self, x):
            h = torch.tanh(self.norm(self.convolution(x))).flatten(2).transpose(1, 2)
            return self.head(self.layer(h + self.place).mean(1))

    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(16, 3, 8, 8), torch.arange(16) % 4
    options = {} if method == "sgd" else {"rho": 0.1}

    def gradient() -> dict[str, torch.Tensor]:
        model.zero_grad()
        noisesam.methods.make(method, model, **options).backward(x, y)
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradient()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient()
    # bfloat16 keeps 8 bits, 0.4% a rounding, over a dozen layers in a row.
    assert relative_error(found, expected) <= 0.06
    assert all(value.dtype == torch.float32 for value in found.values())


def test_compiled_modules_are_refused_with_the_remedy():
    class OptimizedModule(nn.Module):  # what torch.compile returns is known by this name
        def __init__(self, original):
            super().__init__()
            self._orig_mod = original

        def forward(self, x):
            return self._orig_mod(x)

    model = OptimizedModule(nn.Linear(3, 2))
    with pytest.raises(InputError, match=r"torch\.compile \(Linear\).*Pass the original module"):
        noisesam.decompose(model, torch.zeros(2, 3), torch.tensor([0, 1]))
    inplace = nn.Linear(3, 2)
    inplace._compiled_call_impl = lambda x: x
    with pytest.raises(InputError, match=r"torch\.compile"):
        engine_for(inplace, torch.zeros(2, 3))


def scaled_product(x: torch.Tensor, weight: torch.Tensor, factor: float) -> torch.Tensor:
    """A user's own function of activations and a weight."""
    if torch.overrides.has_torch_function((x, weight)):
        return torch.overrides.handle_torch_function(scaled_product, (x, weight), x, weight, factor)
    return factor * x @ weight.t()


class UsersLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(5, 3)), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(torch.tanh(scaled_product(x, self.weight, 0.5)))


def test_a_users_function_falls_back_until_its_rule_is_registered():
    model, x, y = UsersLayer().double(), torch.randn(4, 3).double(), torch.arange(4)
    expected = mean_term(example_terms(model, x, y, 0.1), "1-sam")
    with pytest.warns(UserWarning, match="'scaled_product' uses the parameter 'weight'"):
        assert relative_error(mixed_point_gradient(model, x, y, **ONE_SAM), expected) <= 1e-12

    @register_rule(scaled_product)
    def rule(tape, _function, x, weight, factor):
        return apply_linear(tape, factor * x, weight, None)

    fresh = UsersLayer().double()
    fresh.load_state_dict(model.state_dict())
    assert engine_for(fresh, x, "fast").name == "fast"
    assert relative_error(mixed_point_gradient(fresh, x, y, **ONE_SAM), expected) <= 1e-12


def test_a_wrong_rule_is_found_out_by_the_proof():
    def doubled(x, weight):
        if torch.overrides.has_torch_function((x, weight)):
            return torch.overrides.handle_torch_function(doubled, (x, weight), x, weight)
        return 2 * (x @ weight.t())

    @register_rule(doubled)
    def wrong(tape, _function, x, weight):
        return 2 * apply_linear(tape, x, weight, None).detach() + apply_linear(tape, x, weight, None) * 0.0

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return doubled(x, self.weight)

    model, x, y = Net().double(), torch.randn(4, 3).double(), torch.arange(4)
    with pytest.warns(UserWarning, match="does not separate by example"):
        found = mixed_point_gradient(model, x, y, **ONE_SAM)
    assert relative_error(found, mean_term(example_terms(model, x, y, 0.1), "1-sam")) <= 1e-12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", ["mlp", "small-cnn", "resnet8", "resnet18", "vit"])
def test_on_cuda_the_engine_equals_the_loop_over_examples(name):
    model = noisesam.models.make(name, input_shape=(3, 16, 16), classes=4, seed=3).double().cuda()
    x, y = torch.randn(4, 3, 16, 16).double().cuda(), (torch.arange(4) % 4).cuda()
    rows = example_terms(model, x, y, 0.1)
    for method, places in {
        "1-sam": ("perturbed", "perturbed"),
        "l-sam": ("w", "perturbed"),
        "j-sam": ("perturbed", "w"),
    }.items():
        found = mixed_point_gradient(model, x, y, rho=0.1, jacobian_at=places[0], residual_at=places[1])
        assert relative_error(found, mean_term(rows, method)) <= 1e-12


def test_gradient_norms_come_from_sgds_own_pass():
    model, x, y = convolutional().double(), torch.randn(7, 3, 8, 8).double(), torch.arange(7) % 4
    plain = noisesam.SGD(model)
    plain.backward(x, y)
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    tapped = noisesam.SGD(model, gradient_norms=True).backward(x, y, scale=0.5)
    assert relative_error({name: 2 * p.grad for name, p in model.named_parameters()}, expected) <= 1e-13
    norms = noisesam.decompose(model, x, y).gradient_norm
    torch.testing.assert_close(tapped.gradient_norms, norms, rtol=1e-12, atol=0)
    assert (tapped.forward_examples, tapped.backward_examples) == (7, 7)
