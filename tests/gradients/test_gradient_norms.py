"""Gradient norms keep float32's digits: where squares leave its range, and where the terms of a Gram matrix cancel."""

from __future__ import annotations

import pytest
import torch
from reference.loop import example_terms, mean_term, norm, relative_error
from torch import Tensor, nn

from noisesam import decompose
from noisesam.gradients import mixed_point_gradient, per_example_gradient
from noisesam.gradients.engine import engine_for
from noisesam.gradients.factors import Dense, OuterProducts
from noisesam.gradients.per_example_gradient import PerExampleGradient
from noisesam.gradients.plain import whole_norm
from noisesam.methods import make
from noisesam.methods.weights import global_norm

pytestmark = pytest.mark.usefixtures("double")


def linear(scale: float = 1.0) -> nn.Linear:
    layer = nn.Linear(8, 3).float()
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer


def test_norms_that_come_with_sgds_own_step_do_not_vanish_for_fitted_examples():
    layer, x, y = linear(0.01), torch.randn(2, 8, dtype=torch.float32), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([60.0, 0.0, 0.0]))
    found = make("sgd", layer, gradient_norms=True).backward(x, y).gradient_norms
    residual = layer.double()(x.double()).softmax(1)
    residual[:, 0] = -residual[:, 1:].sum(1)  # p_y - 1 has no digits left even in float64
    wanted = residual.norm(dim=1) * (x.double().square().sum(1) + 1).sqrt()
    assert wanted.max() < 1e-20  # squares leave float32
    # exp(-60) of a margin that float32 keeps to seven digits
    torch.testing.assert_close(found.double(), wanted.detach(), rtol=60 * 1e-6, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-18, 1e-21])
def test_the_share_of_a_micro_batch_changes_no_norm(scale):
    layer, x, y = linear(), torch.randn(2, 8, dtype=torch.float32), torch.zeros(2, dtype=torch.long)
    wanted = make("sgd", layer, gradient_norms=True).backward(x, y).gradient_norms
    found = make("sgd", layer, gradient_norms=True).backward(x, y, scale=scale).gradient_norms
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1e20, 1e-24])
@pytest.mark.filterwarnings("ignore:Linear runs on the exact reference engine")
def test_inputs_of_any_size_are_perturbed(size):
    """Squares of such gradients are beyond float32, the gradients are not; products of two such inputs need the reference."""
    layer, x, y = linear(1 / size if size > 1 else 1.0), torch.randn(3, 8, dtype=torch.float32) * size, torch.arange(3)
    with torch.no_grad():
        layer.bias.zero_()
    layer.bias.requires_grad_(False)
    rho = 0.1 / max(size, 1 / size)
    found = mixed_point_gradient(layer, x, y, rho=rho, jacobian_at="perturbed", residual_at="perturbed")
    norms = make("1-sam", layer, rho=rho).backward(x, y).gradient_norms
    exact = example_terms(layer.double(), x.double(), y, rho)
    # Rounding of float32 over eight products.
    assert relative_error({"weight": found["weight"].double()}, mean_term(exact, "1-sam")) <= 1e-5
    torch.testing.assert_close(norms.double(), torch.stack([norm(row["sgd"]) for row in exact]), rtol=1e-5, atol=0)


def test_a_norm_in_double_is_asked_for_only_where_squares_leave_float32(monkeypatch):
    asked = []
    kinds = (Dense, OuterProducts)
    for kind in kinds:
        monkeypatch.setattr(kind, "in_double", lambda self, whole=kind.in_double: asked.append(self) or whole(self))
    rows = torch.randn(3, 4, dtype=torch.float32)
    PerExampleGradient({"dense": Dense(rows), "outer": OuterProducts(rows[:, None], rows[:, None])}, 3).norm()
    several = torch.randn(3, 4, 5, dtype=torch.float32)
    PerExampleGradient({"outer": OuterProducts(several, several)}, 3).norm()
    assert not asked
    tiny = PerExampleGradient({"dense": Dense(rows * 1e-25)}, 3).norm()
    assert asked
    torch.testing.assert_close(tiny.double(), rows.double().norm(dim=1) * 1e-25, rtol=1e-6, atol=0)


class BeforeInstanceNorm(nn.Module):
    """Output gradients that sum to zero over the positions: a constant in the inputs changes nothing."""

    def __init__(self, images: bool):
        super().__init__()
        self.map = nn.Conv2d(64, 64, 3) if images else nn.Linear(64, 64)
        self.images, self.head = images, nn.Linear(64, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        mapped = self.map(x) if self.images else self.map(x).transpose(1, 2)
        return self.head(torch.tanh(nn.functional.instance_norm(mapped)).flatten(2).mean(2))


@pytest.mark.parametrize("images", [False, True])
def test_a_norm_whose_terms_cancel_is_summed_in_double(images: bool, monkeypatch: pytest.MonkeyPatch):
    model = BeforeInstanceNorm(images).float()
    x = torch.randn((6, 64, 6, 6) if images else (6, 8, 64), dtype=torch.float32) + 100
    y = torch.arange(6) % 3
    assert engine_for(model, x, "fast").name == "fast"

    def found() -> Tensor:
        return decompose(model, x, y, engine="fast").gradient_norm.double()

    kept = found()
    monkeypatch.setattr(per_example_gradient, "LEFT_AFTER_CANCELLING", 0.0)
    lost = found()
    exact = decompose(model.double(), x.double(), y).gradient_norm
    # The forward pass itself rounds sums of 64 inputs of 100 to 6e-8 of their size, which the normalisation divides by 1.
    torch.testing.assert_close(kept, exact, rtol=1e-4, atol=0)
    assert ((lost - exact) / exact).abs().max() > 2e-4


@pytest.mark.parametrize("sizes", [(3_000_000,), (2**15,) * 100, (9000, 5000)])
def test_norms_over_many_numbers_keep_their_digits_in_float32(sizes):
    tensors = {str(place): torch.randn(1, size, dtype=torch.float32) + 1 for place, size in enumerate(sizes)}
    found = PerExampleGradient({name: Dense(tensor) for name, tensor in tensors.items()}, 1).norm()
    wanted = torch.stack([tensor.double().square().sum() for tensor in tensors.values()]).sum().sqrt()
    # Norms of blocks, rounded in float32 each; added up one after the other they would be 5e-5 off.
    assert abs(float(found) / float(wanted) - 1) <= 1e-6


@pytest.mark.parametrize("n", [1, 2000])
def test_the_precision_of_norms_is_the_first_parameters_whatever_the_batch_size(n):
    rows = torch.randn(n, 100, dtype=torch.float32)
    for first, second in ((rows, rows.double()), (rows.double(), rows)):
        mixed = PerExampleGradient({"a": Dense(first), "b": Dense(second), "c": Dense(first)}, n)
        assert mixed.norm().dtype == first.dtype


def test_the_length_that_a_batch_perturbation_is_divided_by_keeps_its_digits_in_float32():
    gradient = {"large": torch.randn(1500, 2000, dtype=torch.float32).t() + 1, "small": torch.ones(3, dtype=torch.float32)}
    wanted = torch.stack([value.double().square().sum() for value in gradient.values()]).sum().sqrt()
    assert abs(float(global_norm(gradient)) / float(wanted) - 1) <= 1e-6  # 5e-5 added up one after the other
    assert abs(float(whole_norm(gradient["large"])) / float(gradient["large"].double().norm()) - 1) <= 1e-6
