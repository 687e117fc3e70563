"""Convolutions with a kernel for every example: one result, whichever way is taken and however the images lie in memory."""

from __future__ import annotations

import pytest
import torch
from reference.loop import PLACES, example_terms, mean_term, relative_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import kernels, strided
from noisesam.gradients.engine.kernels import (
    OwnKernels,
    convolve_each,
    kernel_gradients,
    pull_back_each,
    quicker_in_planes,
)
from noisesam.gradients.engine.patches import Geometry, written_patches
from noisesam.gradients.engine.rules import convolution
from noisesam.gradients.engine.strided import pull_back_by_phases
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.factors import Dense
from noisesam.gradients.memory_order import channels_last, reordered
from noisesam.methods import make
from noisesam.models import make as make_model

ORDERS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
GEOMETRIES = {
    "plain": Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": Geometry((3, 2), (2, 1), (1, 0), (1, 1), 1),
    "dilated": Geometry((2, 3), (1, 2), (2, 1), (2, 1), 1),
    "wide steps": Geometry((2, 4), (3, 3), (0, 3), (1, 2), 1),
}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("way", ["grouped", "loop", "unfolded", "phases"])
def test_every_way_is_one_convolution_per_example(monkeypatch, way, geometry, order):
    monkeypatch.setattr(kernels, "_way", lambda *_, **__: way)
    monkeypatch.setattr(kernels, "_way_back", lambda *_, **__: way)
    chosen = GEOMETRIES[geometry]
    n, inputs, outputs = 3, 5, 4
    x = drawn(n, inputs, 7, 6, seed=0).contiguous(memory_format=ORDERS[order])
    weight, eps = drawn(outputs, inputs, *chosen.kernel, seed=1), drawn(n, outputs, inputs, *chosen.kernel, seed=2)
    own = OwnKernels(weight, Dense(eps).scaled(torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)))
    scale = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64).view(3, 1, 1, 1, 1)
    leaves = x.clone().requires_grad_(), (weight + scale * eps).requires_grad_()
    pairs = zip(*leaves, strict=True)
    expected = torch.stack([chosen.convolve(one[None], kernel, None)[0] for one, kernel in pairs])
    dy = drawn(*expected.shape, seed=3).contiguous(memory_format=ORDERS[order])
    input_gradient, kernel_gradient = torch.autograd.grad(expected, leaves, dy)
    close = {"rtol": 1e-12, "atol": 1e-12}  # some thirty products summed in another order
    torch.testing.assert_close(convolve_each(x, own, chosen), expected.detach(), **close)
    torch.testing.assert_close(pull_back_each(dy, x, own, chosen), input_gradient, **close)
    found = kernel_gradients(dy, x, weight, chosen)
    torch.testing.assert_close(found, kernel_gradient, **close)
    torch.testing.assert_close(Dense(found).squared_norm(), kernel_gradient.flatten(1).square().sum(1), **close)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(30))
def test_phases_are_the_reverse_of_a_strided_convolution(monkeypatch, seed, axes):
    monkeypatch.setattr(strided, "AT_ONCE", strided.AT_ONCE if seed % 3 else 1)  # at once, or one example after the other
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(torch.randint(low, high, (axes,), generator=generator).tolist())

    kernel, holes, groups = draw(1, 5), draw(1, 3), 1 + seed % 2
    geometry = Geometry(kernel, draw(1, 4), draw(0, 3), holes, groups)
    reach = [1 + hole * (size - 1) for size, hole in zip(kernel, holes, strict=True)]
    sides = [max(1, size + more - 2 * p) for size, more, p in zip(reach, draw(0, 5), geometry.padding, strict=True)]
    check_phases(geometry, sides, seed)


def test_phases_leave_out_what_falls_into_the_padding_alone():
    """With kernels wider than the images some of their offsets meet no pixel from anywhere."""
    check_phases(Geometry((4, 4), (1, 2), (3, 3), (2, 2), 1), [2, 3], seed=0)


def check_phases(geometry: Geometry, sides: list[int], seed: int) -> None:
    groups = geometry.groups
    x = drawn(2, 2 * groups, *sides, seed=seed).requires_grad_()
    own = drawn(2, 3 * groups, 2, *geometry.kernel, seed=seed + 100)
    outputs = torch.cat([geometry.convolve(one[None], each, None) for one, each in zip(x, own, strict=True)])
    dy = drawn(*outputs.shape, seed=seed + 200)
    (expected,) = torch.autograd.grad(outputs, x, dy)
    found = pull_back_by_phases(dy, own, tuple(sides), geometry)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # some hundred products summed in another order


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_written_patches_are_those_of_unfold(geometry):
    x, chosen = drawn(2, 3, 7, 6, seed=4), GEOMETRIES[geometry]
    expected = torch.nn.functional.unfold(x, chosen.kernel, chosen.dilation, chosen.padding, chosen.stride)
    assert torch.equal(written_patches(x, chosen), expected)
    assert torch.equal(written_patches(x.contiguous(memory_format=torch.channels_last), chosen), expected)


def test_gradients_that_lie_channels_last_are_added_without_a_change_of_order():
    rows = drawn(2, 4, 3, 3, 5, seed=5).permute(0, 1, 4, 2, 3)
    assert Dense(rows).order_of_each == torch.channels_last
    assert Dense(rows.contiguous()).order_of_each == torch.contiguous_format
    assert Dense(rows[..., :1, :1].contiguous()).order_of_each == torch.contiguous_format  # one pixel lies both ways


def test_few_grouped_channels_are_left_to_the_ways_that_know_groups():
    """Patches are written out for one group alone."""
    images = drawn(2, 4, 5, 5, seed=10)
    assert kernels._few_inputs(images, GEOMETRIES["plain"])
    assert not kernels._few_inputs(images, Geometry((3, 3), (1, 1), (1, 1), (1, 1), 2))


class Kernels(TorchDispatchMode):
    """The kernels of 48 x 48 channels that meet images with channels last, and how often one is written out so."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[Tensor] = []
        self.written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if str(func) == "aten.clone.default":
            self.written += found.shape == (48, 48, 3, 3) and found.is_contiguous(memory_format=torch.channels_last)
        if "convolution" in str(func):
            images, kernel = (args[0], args[1]) if str(func) == "aten.convolution.default" else (args[1], args[2])
            if kernel.shape == (48, 48, 3, 3) and channels_last(images):
                self.met.append(kernel)
        return found


def test_a_kernel_is_written_channels_last_once_for_all_passes_of_a_step():
    torch.manual_seed(0)
    model = make_model("resnet8", input_shape=(3, 16, 16), classes=3, width=12).float()  # the last stage has 48 channels
    method, batch = make("1-sam", model, rho=0.1), (torch.randn(4, 3, 16, 16).float(), torch.arange(4) % 3)
    method.backward(*batch)  # the engine is proven for this model first
    model.zero_grad()
    with Kernels() as seen:
        method.backward(*batch)
    assert len(seen.met) >= 4  # forward and reverse, at w and at w + eps
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in seen.met)
    assert seen.written == 1


def test_a_kernel_that_has_changed_is_written_anew():
    weight = nn.Parameter(torch.randn(4, 4, 3, 3))
    tape = Tape({"weight": weight}, 1)
    before = tape.channels_last(weight, torch.float32)
    assert Tape({"weight": weight}, 1, previous=tape).channels_last(weight, torch.float32) is before
    with torch.no_grad():
        weight.add_(1)
    after = Tape({"weight": weight}, 1, previous=tape).channels_last(weight, torch.float32)
    assert torch.equal(after, weight.detach())
    assert torch.equal(tape.channels_last(weight, torch.float64), weight.detach().double())


@pytest.mark.parametrize("way", ["grouped", "loop", "unfolded"])
def test_patches_written_out_in_parts_give_what_all_at_once_give(monkeypatch, way):
    monkeypatch.setattr(kernels, "_way", lambda *_, **__: way)
    monkeypatch.setattr(kernels, "_way_back", lambda *_, **__: way)
    chosen, weight = GEOMETRIES["plain"], drawn(4, 3, 3, 3, seed=6)
    x, dy, eps = drawn(5, 3, 6, 6, seed=7), drawn(5, 4, 6, 6, seed=8), drawn(5, 4, 3, 3, 3, seed=9)
    found = []
    for numbers in (2**18, 2 * x[0].numel() * 9):  # all five at once; two by two, and one
        monkeypatch.setattr(kernels, "UNFOLDED_ON_CPU", numbers)
        own = OwnKernels(weight, Dense(eps))
        found.append(
            (kernel_gradients(dy, x, weight, chosen), convolve_each(x, own, chosen), pull_back_each(dy, x, own, chosen))
        )
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("before", "after"), [tuple(ORDERS), tuple(reversed(ORDERS))])
def test_gradients_of_reordered_images_lie_as_the_images_did(before, after):
    x = drawn(2, 3, 4, 5, seed=0).contiguous(memory_format=ORDERS[before]).requires_grad_()
    found = reordered(x, ORDERS[after])
    assert reordered(x, ORDERS[before]) is x
    assert torch.equal(found, x)
    assert channels_last(found) == (after == "channels last")
    (dx,) = torch.autograd.grad(found, x, 2 * found.detach())
    assert torch.equal(dx, 2 * x)
    assert channels_last(dx) == (before == "channels last")


@pytest.mark.parametrize("last", [False, True], ids=["", "weights channels last"])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_what_comes_of_few_pixels_may_be_written_to(side, last):
    model = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256 * side**2, 3))
    if last:
        model[0].to(memory_format=torch.channels_last)
    x = torch.randn(4, 256, side, side, generator=torch.Generator().manual_seed(5))
    for images in (x, x.contiguous(memory_format=torch.channels_last)):  # proven in one order, met in the other
        make("1-sam", model, rho=0.1, engine="fast").backward(images, torch.arange(4) % 3)


class FewPixels(nn.Module):
    """Convolutions over images of few pixels whose channels lie last, with and without steps, holes and biases."""

    def __init__(self):
        super().__init__()
        self.first, self.strided = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False)
        self.dilated, self.head = nn.Conv2d(5, 4, 2, dilation=2), nn.Linear(4, 3)
        self.orders: list[bool] = []

    def forward(self, x):
        for layer in (self.first, self.strided, self.dilated):
            x = torch.tanh(layer(x.contiguous(memory_format=torch.channels_last)))
            self.orders.append(channels_last(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.usefixtures("double")
def test_images_of_few_pixels_come_back_as_they_lay(monkeypatch):
    model, x, y = FewPixels(), torch.randn(4, 3, 8, 8), torch.arange(4) % 3
    rows = example_terms(model, x, y, 0.1)
    seen: list[bool] = []

    def always(images: Tensor, *_: object) -> bool:
        seen.append(channels_last(images))
        return seen[-1]

    monkeypatch.setattr(convolution, "quicker_in_planes", always)
    model.orders.clear()
    for method, (jacobian, residual) in PLACES.items():
        found = mixed_point_gradient(model, x, y, rho=0.1, jacobian_at=jacobian, residual_at=residual, engine="fast")
        # Rounding of float64 over some hundred products.
        assert relative_error(found, mean_term(rows, method)) <= 1e-12, method
    assert seen
    assert all(seen + model.orders)


@pytest.mark.parametrize(
    ("examples", "channels", "side", "changes", "expected"),
    [
        (4, 256, 5, {}, True),
        (4, 256, 10, {"stride": (2, 2)}, True),  # 25 positions
        (4, 256, 6, {}, False),  # too many positions
        (4, 240, 5, {}, False),  # too small a kernel
        (3, 256, 5, {}, False),  # too few images
        (4, 256, 2, {"stride": (2, 2)}, False),  # one position, which lies both ways
        (4, 1024, 5, {"kernel": (1, 1), "padding": (0, 0)}, False),  # a linear map
        (4, 512, 5, {"groups": 2}, False),
    ],
)
def test_small_images_under_large_kernels_are_taken_by_shape_and_type(examples, channels, side, changes, expected):
    options = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1} | changes
    geometry = Geometry(**options)
    x = torch.zeros(examples, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(channels, channels // geometry.groups, *geometry.kernel)
    assert quicker_in_planes(x, weight, geometry) == expected
    assert not quicker_in_planes(x.contiguous(), weight, geometry)
    assert not quicker_in_planes(x.double(), weight, geometry)
    assert not quicker_in_planes(x, weight.contiguous(memory_format=torch.channels_last), geometry) or geometry.pointwise
