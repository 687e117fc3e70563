"""One parameter, met more than once or made into something else: right at w + eps_i too, or refused before the first step."""

from __future__ import annotations

import pytest
import torch
from reference.loop import PLACES, example_terms, mean_term, relative_error
from torch import Tensor, nn
from torch.nn import functional

from noisesam.gradients import mixed_point_gradient, register_rule
from noisesam.gradients.engine import engine_for, interception
from noisesam.gradients.engine.rules.linear import apply_linear
from noisesam.gradients.engine.tape import Tape

pytestmark = pytest.mark.usefixtures("double")


def images(channels: int, side: int, *, last: bool = False) -> Tensor:
    drawn = torch.randn(4, channels, side, side)
    return drawn.contiguous(memory_format=torch.channels_last) if last else drawn


class TwoBiases(nn.Module):
    """One weight meets the data twice, each time with a bias of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.first(x)) + torch.sigmoid(self.second(x)))


class WithAndWithoutBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x)) * torch.sigmoid(functional.linear(x, self.layer.weight)))


class BothDirections(nn.Module):
    """A square weight as it is and transposed."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.head((torch.tanh(functional.linear(x, self.weight)) + torch.sigmoid(x @ self.weight)).mean(1))


class TwoDilations(nn.Module):
    """A frozen kernel that looks at the data from near and from far."""

    def __init__(self):
        super().__init__()
        self.near, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.near.weight.requires_grad_(False)

    def forward(self, x):
        far = functional.conv2d(x, self.near.weight, self.near.bias, padding=2, dilation=2)
        return self.head((torch.tanh(self.near(x)) * torch.sigmoid(far)).mean((2, 3)))


class ComputedKernels(nn.Module):
    """Frozen kernels that are computed anew at every call: the memory of one may become that of the next."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]), nn.Linear(8, 3)
        for layer in self.layers:
            layer.weight.requires_grad_(False)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(functional.conv2d(x, 2 * layer.weight, layer.bias, padding=1))
        return self.head(x.mean((2, 3)))


class DetachedAtAnotherDilation(nn.Module):
    """Many channels over few pixels, and a gate of the same kernel that has no gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        gate = functional.conv2d(x, self.second.weight, padding=2, dilation=2).detach()
        return self.head((torch.tanh(self.second(x)) * torch.sigmoid(3 * gate)).mean((2, 3)))


class DetachedOnSmallerImages(DetachedAtAnotherDilation):
    def forward(self, x):
        x = torch.tanh(self.first(x))
        with torch.no_grad():
            gate = self.second(functional.avg_pool2d(x, 2)).mean((2, 3), keepdim=True)
        return self.head((torch.tanh(self.second(x)) * torch.sigmoid(3 * gate)).mean((2, 3)))


class DetachedTiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 6), nn.Linear(6, 3)

    def forward(self, tokens):
        x = self.embedding(tokens).mean(1)
        gate = functional.linear(x, self.embedding.weight).detach().softmax(1).amax(1, keepdim=True)
        return self.head(torch.tanh(x) * gate)


class SlowConvolution(nn.Module):
    """Float64 over one pixel, channels last: torch leaves it to a function that wants kernels without gaps."""

    def __init__(self):
        super().__init__()
        pooled = nn.AdaptiveAvgPool2d(1)
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), pooled, nn.Conv2d(6, 6, 3, padding=1), nn.Flatten())
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(x))


CASES = {
    "one weight, two biases": (TwoBiases, lambda: torch.randn(4, 6)),
    "with and without its bias": (WithAndWithoutBias, lambda: torch.randn(4, 6)),
    "as it is and transposed": (BothDirections, lambda: torch.randn(4, 2, 6)),
    "two dilations": (TwoDilations, lambda: images(3, 5)),
    "computed kernels": (ComputedKernels, lambda: images(8, 6, last=True)),
    "detached at another dilation": (DetachedAtAnotherDilation, lambda: images(3, 4)),
    "detached on smaller images": (DetachedOnSmallerImages, lambda: images(3, 4)),
    "detached tied embedding": (DetachedTiedEmbedding, lambda: torch.randint(0, 10, (4, 5))),
    "slow convolution": (SlowConvolution, lambda: images(6, 4, last=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_use_has_the_perturbation_of_its_example(case):
    build, draw = CASES[case]
    model, x, y = build(), draw(), torch.arange(4) % 3
    assert engine_for(model, x, "auto").name == "fast"
    rows = example_terms(model, x, y, 0.3)
    for method, (jacobian, residual) in PLACES.items():
        wanted = mean_term(rows, method)
        found = mixed_point_gradient(model, x, y, rho=0.3, jacobian_at=jacobian, residual_at=residual)
        # Rounding of float64; what is confused here is off by 1e-5 and more.
        assert relative_error({name: found[name] for name in wanted}, wanted) <= 1e-12, method


def test_a_kernel_is_kept_with_its_object_and_only_where_it_is_a_parameter():
    """A tensor computed at every call is gone before the next one, which may then have its number and its version."""
    parameter, tape = nn.Parameter(torch.randn(4, 3, 3, 3)), Tape({}, 2)
    for _ in range(3):
        computed = torch.randn(4, 3, 3, 3)
        assert torch.equal(tape.channels_last(computed, torch.float64), computed)
    assert not tape._channels_last
    kept = tape.channels_last(parameter, torch.float64)
    assert tape.channels_last(parameter, torch.float64) is kept
    assert tape._channels_last[id(parameter)][0] is parameter
    other = nn.Parameter(torch.randn(4, 3, 3, 3))
    tape._channels_last[id(other)] = tape._channels_last[id(parameter)]  # as if the first were gone and its number free
    assert torch.equal(tape.channels_last(other, torch.float64), other)


def zero_biases() -> nn.Module:
    """Biases alone are trained, from zero: their own length says nothing of a perturbation's."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    for parameter in model.parameters():
        parameter.data.zero_() if parameter.dim() == 1 else parameter.requires_grad_(False)
    return model


def small_part() -> nn.Module:
    """What is trained hardly moves the outputs: in float32 by little more than they are rounded."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).requires_grad_(False)
    model[2].weight.data.mul_(1e4)
    model[2].bias.requires_grad_(True).data.mul_(1e-3)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [zero_biases, small_part])
def test_a_trained_part_that_is_zero_or_small_keeps_the_fast_engine(build, dtype):
    assert engine_for(build().to(dtype), torch.randn(4, 6, dtype=dtype), "auto").name == "fast"


def outside(x: Tensor, weight: Tensor) -> Tensor:
    """Stand for somebody's own function."""
    if torch.overrides.has_torch_function((x, weight)):
        return torch.overrides.handle_torch_function(outside, (x, weight), x, weight)
    return x @ weight.t()


class Outside(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(5, 6)), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(outside(x, self.weight)))


def test_a_rule_that_is_right_at_w_alone_is_found_out():
    @register_rule(outside)
    def forgets_its_perturbation(tape, _, x, weight):
        return apply_linear(tape, x, weight, None) if not tape.perturbation(weight) else x @ weight.t()

    try:
        model, x, y = Outside(), torch.randn(4, 6), torch.arange(4) % 3
        with pytest.warns(UserWarning, match="outputs at perturbed weights"):
            found = mixed_point_gradient(model, x, y, rho=0.1, jacobian_at="perturbed", residual_at="perturbed")
        assert relative_error(found, mean_term(example_terms(model, x, y, 0.1), "1-sam")) <= 1e-12
    finally:
        del interception._RULES[outside]


def test_the_proof_leaves_every_weight_as_it_was():
    model, x = TwoBiases(), torch.randn(4, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output = model(x).sum()
    engine_for(model, x, "auto")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    output.backward()  # a graph that was there before is not spoilt
