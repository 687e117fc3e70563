"""Dropout masks are the same in all passes of a step, in whatever order the activations lie in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from noisesam.gradients import decompose
from noisesam.gradients.engine import engine_for
from noisesam.gradients.memory_order import laid_out

SMALL = 1e-7
"""A radius at which losses at w and at w + eps_i agree to about as many digits, if their masks do."""
NEAR = 1e-4
"""Masks that differ move these losses by 1e-3 and more."""


class Images(nn.Module):
    """Convolutions with dropout between, whose images lie as they are given."""

    def __init__(self, layer: nn.Module, channels: int):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.dropout(torch.tanh(self.layer(x)), 0.5).mean((2, 3)))


class MixFeedForward(nn.Module):
    """Tokens seen as images for one convolution, whose dropout meets them there: no order of memory is asked for."""

    def __init__(self):
        super().__init__()
        self.l, self.depthwise, self.head = nn.Linear(5, 8), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        images = self.l(x).transpose(1, 2).view(len(x), 8, 4, 4)
        return self.head(functional.dropout(functional.gelu(self.depthwise(images)), 0.5).flatten(2).mean(2))


LAYERS = {
    "a kernel": lambda: nn.Conv2d(4, 8, 3, padding=1),
    "a strided kernel": lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1),
    "a kernel for each channel": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "a kernel of one pixel": lambda: nn.Conv2d(4, 8, 1),
    "kernel and GroupNorm": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8)),
    "kernel and InstanceNorm": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)),
}


def masks_agree(model: nn.Module, x: Tensor) -> None:
    labels = torch.arange(len(x)) % 3
    parts = decompose(model, x, labels, rho=SMALL)
    assert engine_for(model, x).name == "fast"
    assert parts.perturbed_losses is not None
    torch.testing.assert_close(parts.perturbed_losses, parts.losses, rtol=0, atol=NEAR)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("given", ["images", "weights", "both", "neither"])
@pytest.mark.parametrize("examples", [1, 4])
@pytest.mark.parametrize("layer", LAYERS)
def test_masks_of_images_in_either_order(layer, examples, given):
    model, x = Images(LAYERS[layer](), 8), torch.randn(examples, 4, 8, 8)
    if given in ("images", "both"):
        x = x.contiguous(memory_format=torch.channels_last)
    if given in ("weights", "both"):
        model = model.to(memory_format=torch.channels_last)
    masks_agree(model, x)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("examples", [1, 4])
def test_masks_of_tokens_seen_as_images(examples):
    masks_agree(MixFeedForward(), torch.randn(examples, 16, 5))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_what_is_laid_out_anew_keeps_entries_and_gradients(order):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    like = torch.empty(2, 3, 4, 5).contiguous(memory_format=order)
    found = laid_out(x * 1, like.stride())
    assert found.stride() == like.stride()
    assert torch.equal(found, x)
    dy = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad(found, x, dy)[0], dy)


def test_what_lies_in_that_order_is_left_alone():
    x = torch.randn(2, 1, 4, 5)
    assert laid_out(x, (20, 1, 5, 1)) is x  # an axis of one entry has no place in the order
