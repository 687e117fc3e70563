"""BatchNorm with its running statistics is exact in every memory order, for one example and for many, float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from reference.exactness import TOLERANCE, check
from reference.loop import relative_error
from torch import Tensor, nn

import noisesam
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.frozen_batch_norm import written_out

pytestmark = pytest.mark.usefixtures("double")


def drawn(layer: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    for parameter in layer.parameters():
        parameter.data.normal_()
    return layer.eval()


def in_order(values: Tensor, order: tuple[int, ...]) -> Tensor:
    """Lay the axes out in memory in this order."""
    return values.permute(order).contiguous().permute([order.index(axis) for axis in range(len(order))])


@pytest.mark.parametrize("shape", [(1, 4, 5, 5), (1, 4, 1, 5), (2, 4, 5, 1), (3, 4, 5, 5), (1, 4, 7), (2, 4)])
def test_gradients_are_those_of_a_scale_and_a_shift_whatever_the_memory_order(shape):
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    layer, images, slopes = drawn(kind(4)), torch.randn(shape), torch.randn(shape)
    others = [axis for axis in range(len(shape)) if axis != 1]
    view = [1, -1] + [1] * (len(shape) - 2)
    scale = (layer.weight / torch.sqrt(layer.running_var + layer.eps)).detach()
    normalised = (images - layer.running_mean.view(view)) / torch.sqrt(layer.running_var + layer.eps).view(view)
    expected = (slopes * scale.view(view), (slopes * normalised).sum(others), slopes.sum(others))
    for first, second in itertools.product(itertools.permutations(range(len(shape))), repeat=2):
        leaf = in_order(images, first).requires_grad_()
        with written_out(layer):
            output = layer(leaf)
        found = torch.autograd.grad(output, [leaf, layer.weight, layer.bias], in_order(slopes, second))
        for own, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-13)  # sums of 75 terms


def test_a_function_without_a_layer_is_written_out_in_per_example_passes():
    weight, mean, variance = nn.Parameter(torch.randn(4)), torch.randn(4), torch.rand(4) + 0.5

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = weight, nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            images = torch.nn.functional.batch_norm(x, mean, variance, self.weight)
            return self.head(images.flatten(2).transpose(1, 2).contiguous().tanh()).mean(1)

    model, x, y = Functional(), torch.randn(3, 4, 1, 5), torch.arange(3)
    whole, alone = (
        mixed_point_gradient(model, x, y, rho=0.1, jacobian_at="perturbed", residual_at="perturbed", chunk_size=size)
        for size in (None, 1)
    )
    assert relative_error(alone, whole) <= TOLERANCE


class Tokens(nn.Module):
    """Images, normalised, then read as tokens: their output gradients come back with the channels last."""

    def __init__(self):
        super().__init__()
        self.convolution, self.normalisation = nn.Conv2d(2, 4, 3, padding=1), drawn(nn.BatchNorm2d(4))
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        images = self.normalisation(self.convolution(x))
        tokens = torch.tanh(self.inner(images.flatten(2).transpose(1, 2).contiguous()))
        return self.head(tokens).mean(1)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("frozen", [False, True])
def test_examples_alone_have_the_gradients_of_the_batch(engine, frozen):
    model, x, y = Tokens().eval(), torch.randn(4, 2, 5, 5), torch.arange(4) % 3
    for parameter in model.normalisation.parameters():
        parameter.requires_grad_(not frozen)
    for rule in ("w", "perturbed"):
        whole, alone = (
            mixed_point_gradient(model, x, y, rho=0.1, jacobian_at=rule, residual_at=rule, engine=engine, chunk_size=size)
            for size in (None, 1)
        )
        assert relative_error(alone, whole) <= TOLERANCE
    norms = noisesam.decompose(model, x, y).gradient_norm
    each = torch.cat([noisesam.decompose(model, x[i : i + 1], y[i : i + 1]).gradient_norm for i in range(4)])
    torch.testing.assert_close(each, norms, rtol=TOLERANCE, atol=0)


def test_a_normalisation_over_rows_that_positions_are_merged_with_is_exact():
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.normalisation, self.head = nn.Linear(3, 4), drawn(nn.BatchNorm1d(4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.normalisation(self.inner(x).flatten(0, 1)).tanh()
            return self.head(rows.view(len(x), -1, 4).mean(1))

    check(Merged().eval(), torch.randn(3, 7, 3))
