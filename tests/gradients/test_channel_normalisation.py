"""LayerNorm over channels that lie in planes: torch's numbers, per example, and the images stay as they lie."""

from __future__ import annotations

import pytest
import torch
from reference.dispatched import Dispatched
from reference.loop import PLACES, cross_entropy, example_terms, mean_term, norm, relative_error
from torch import Tensor, nn

from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for, proven
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.rules.channel_normalisation import FEW_CHANNELS, lies_in_planes
from noisesam.methods import make
from noisesam.models.options import ChannelLayerNorm

ROWS = "aten.native_layer_norm.default"


class Seen(nn.Module):
    """Remember how the images that come through lie in memory."""

    in_planes: bool | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.in_planes = images.is_contiguous()
        return images


def network(
    affine: str = "weight and bias", *, channels: int = 5, inplace: bool = False, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    torch.manual_seed(0)
    layer = ChannelLayerNorm(channels)
    for name in ("weight", "bias"):
        if name in affine:
            nn.init.normal_(getattr(layer.norm, name))
        else:
            setattr(layer.norm, name, None)
    convolution, second = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 4, 3)
    return nn.Sequential(convolution, layer, nn.ReLU(inplace=inplace), Seen(), second, nn.Flatten(), nn.Linear(36, 3)).to(dtype)


def batch(n: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 5, 5, generator=generator, dtype=dtype), torch.arange(n) % 3


@pytest.mark.parametrize("inplace", [False, True], ids=["", "activation in place"])
@pytest.mark.parametrize("affine", ["weight and bias", "weight", "bias"])
def test_planes_give_the_steps_and_norms_of_one_example_at_a_time(affine, inplace, monkeypatch):
    monkeypatch.setattr(proven, "is_due", lambda _batch: False)  # the functions of a step alone are looked at
    model, (x, y) = network(affine, inplace=inplace), batch()
    assert engine_for(model, x, "auto").name == "fast"
    rows = example_terms(model, x, y, 0.1)
    for method, (jacobian, residual) in PLACES.items():
        with Dispatched() as called:
            found = mixed_point_gradient(model, x, y, rho=0.1, jacobian_at=jacobian, residual_at=residual, engine="fast")
        assert (ROWS in called.names) == (method == "sgd")
        # Rounding of float64 over some hundred products.
        assert relative_error(found, mean_term(rows, method)) <= 1e-12, method
    norms = make("sgd", model, gradient_norms=True).backward(x, y).gradient_norms
    torch.testing.assert_close(norms, torch.stack([norm(row["sgd"]) for row in rows]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("perturbed_passes", [2, 0], ids=["planes", "rows"])
def test_one_pass_for_both_gradients_gives_the_batch_and_every_example(perturbed_passes):
    model, (x, y) = network(), batch()
    parameters = dict(model.named_parameters())
    with Dispatched() as called:
        point = FastEngine(model, parameters).at(x, perturbed_passes=perturbed_passes)
    assert (ROWS in called.names) == (perturbed_passes == 0)  # images lie in planes for the sake of a perturbation
    cotangent = point.logits.softmax(1) - torch.nn.functional.one_hot(y, 3)
    summed, each = point.both_gradients(cotangent, perturbed_passes=perturbed_passes)
    wanted = torch.autograd.grad(len(x) * cross_entropy(model(x), y).mean(), list(parameters.values()))
    assert relative_error(summed, dict(zip(summed, wanted, strict=True))) <= 1e-12
    rows = example_terms(model, x, y, 0.1)
    torch.testing.assert_close(each.norm(), torch.stack([norm(row["sgd"]) for row in rows]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_normalisation_of_the_data_with_half_of_it_frozen(frozen):
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)).double()
    getattr(model[0], frozen).requires_grad_(requires_grad=False)
    x, y = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64), torch.arange(4) % 3
    rows = example_terms(model, x, y, 0.1)
    for method, (jacobian, residual) in PLACES.items():
        found = mixed_point_gradient(model, x, y, rho=0.1, jacobian_at=jacobian, residual_at=residual, engine="fast")
        assert relative_error(found, mean_term(rows, method)) <= 1e-12, method


def test_sums_of_sixteen_bits_are_not_made_of_rounded_examples():
    model = nn.LayerNorm(8).bfloat16()
    x = torch.randn(64, 5, 8, generator=torch.Generator().manual_seed(4)).bfloat16()
    point = FastEngine(model, dict(model.named_parameters())).at(x, perturbed_passes=0)
    cotangent = torch.randn_like(point.logits)
    summed, _ = point.both_gradients(cotangent, perturbed_passes=0)
    wanted = torch.autograd.grad(model(x), list(model.parameters()), cotangent)
    assert all(torch.equal(found, expected) for found, expected in zip(summed.values(), wanted, strict=True))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["in planes", "channels last"])
def test_images_stay_as_they_lie(order):
    model, (x, _) = network(), batch()
    FastEngine(model, dict(model.named_parameters())).at(x.contiguous(memory_format=order))
    assert model[3].in_planes == (order == torch.contiguous_format)


def test_planes_far_from_zero_are_normalised_as_exactly_as_rows():
    """In float32 the mean is taken off before anything is squared: no digits go but those that the mean itself took."""
    layer = ChannelLayerNorm(16)
    values = torch.randn(3, 16, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 1000
    rounded = values.float()
    wanted = ChannelLayerNorm(16).double()(rounded.double())
    found = FastEngine(layer, dict(layer.named_parameters())).at(rounded).output
    rows = layer(rounded)
    error, error_of_rows = ((one.double() - wanted).abs().max() for one in (found, rows))
    # Sums in another order: twice what torch's rows lose, or a few units of the mean's last place.
    assert error <= max(2 * error_of_rows, 4 * 1000 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize(
    ("shape", "normalised", "dtype", "expected"),
    [
        ((2, 4, 5, 6), (4,), torch.float32, True),
        ((2, FEW_CHANNELS, 5, 6), (FEW_CHANNELS,), torch.float32, True),
        ((2, FEW_CHANNELS + 1, 5, 6), (FEW_CHANNELS + 1,), torch.float32, False),  # rows cost little
        ((2, 4, 5, 6), (4,), torch.bfloat16, False),  # torch sums rows of sixteen bits in thirty-two
        ((2, 4, 1, 1), (4,), torch.float32, False),  # one pixel is a row
        ((2, 1, 5, 6), (1,), torch.float32, False),
    ],
)
def test_planes_are_taken_by_shape_and_type(shape, normalised, dtype, expected):
    values = torch.zeros(shape, dtype=dtype).flatten(2).transpose(1, 2)
    assert lies_in_planes(values, normalised) == expected
    assert not lies_in_planes(values.contiguous(), normalised)
