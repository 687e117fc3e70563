"""Pooling in the quick memory order: torch's numbers, torch's gradients, and the images stay as they lie."""

from __future__ import annotations

import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference.loop import PLACES, example_terms, mean_term, relative_error
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for, pooling
from noisesam.gradients.engine.pooling import FEWEST_CHANNELS, FEWEST_NUMBERS, in_quick_order
from noisesam.methods import make

CHANNELS, HEIGHT, WIDTH = FEWEST_CHANNELS, 12, 13
EXAMPLES = -(-FEWEST_NUMBERS // (CHANNELS * HEIGHT * WIDTH))
GEOMETRIES = range(40)


class Orders(TorchDispatchMode):
    """Remember in which order the images lie that torch pools: True where their channels are last."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "pool2d" in str(func) and "backward" not in str(func):
            name = "largest" if "max" in str(func) else "average"
            self.found.append((name, args[0].is_contiguous(memory_format=torch.channels_last)))
        return func(*args, **(kwargs or {}))


def images(dtype: torch.dtype = torch.float32, *, tied: bool = False, seed: int = 0) -> Tensor:
    values = torch.randn(EXAMPLES, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (2 * values).round() if tied else values


def drawn(seed: int, kind: str) -> dict[str, object]:
    """Options of a pooling layer that torch accepts."""
    draw = random.Random(seed)
    kernel = draw.choice([1, 2, 3, 4, (2, 3), (3, 1), (HEIGHT, WIDTH)])
    options: dict[str, object] = {"kernel_size": kernel, "ceil_mode": draw.random() < 0.5}
    if kernel == (HEIGHT, WIDTH):  # one pixel, which lies both ways
        return options
    if draw.random() < 0.7:
        options["stride"] = draw.choice([1, 2, 3, (2, 1)])
    smallest = min(kernel) if isinstance(kernel, tuple) else kernel
    options["padding"] = draw.randint(0, smallest // 2)
    if kind == "largest":
        options["dilation"] = draw.choice([1, 1, 2, (2, 1)])
    else:
        options |= {"count_include_pad": draw.random() < 0.5, "divisor_override": draw.choice([None, None, 5])}
    return options


FUNCTIONS = {"largest": functional.max_pool2d, "average": functional.avg_pool2d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_outputs_and_gradients_are_those_of_torch_to_the_bit(kind, dtype):
    plain = FUNCTIONS[kind]
    for seed in GEOMETRIES:
        options = drawn(seed, kind)
        x = images(dtype, tied=seed % 2 == 0, seed=seed).requires_grad_()
        wanted = plain(x, **options)
        with Orders() as orders:
            found = in_quick_order(plain)(x, **options)
        assert orders.found == [(kind, True)]
        assert torch.equal(found, wanted), options
        assert found.stride() == wanted.stride()
        dy = torch.randn_like(wanted)
        (dx,), (expected,) = torch.autograd.grad(found, x, dy), torch.autograd.grad(wanted, x, dy)
        assert torch.equal(dx, expected), options
        assert dx.stride() == expected.stride()
        if kind == "largest":
            pairs = zip(*(pool(x, **options, return_indices=True) for pool in (plain, in_quick_order(plain))), strict=True)
            assert all(torch.equal(first, second) for first, second in pairs)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_is_not_finite_goes_where_torch_sends_it(kind):
    x = images(seed=3)
    x[0, 0, :4] = -torch.inf
    x[1, 1, 2:4, 3:5] = torch.nan
    x[2, 2, 5, 5] = torch.inf
    x.requires_grad_()
    plain = FUNCTIONS[kind]
    found, wanted = in_quick_order(plain)(x, 2), plain(x, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    dy = torch.ones_like(wanted)
    (dx,), (expected,) = torch.autograd.grad(found, x, dy), torch.autograd.grad(wanted, x, dy)
    torch.testing.assert_close(dx, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_gradients_have_gradients(kind):
    def second(pool) -> Tensor:
        x = images(torch.float64).requires_grad_()
        (first,) = torch.autograd.grad(pool(x, 2).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    plain = FUNCTIONS[kind]
    torch.testing.assert_close(second(in_quick_order(plain)), second(plain), rtol=1e-14, atol=0)


def large_images(dtype: torch.dtype = torch.float32, *, sides: tuple[int, int] = (16, 24), tied: bool = False) -> Tensor:
    values = torch.randn(EXAMPLES, CHANNELS, *sides, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return (2 * values).round() if tied else values


@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"ceil_mode": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_of_two_by_two_is_torch_s_to_the_bit(dtype, options, tied):
    x = large_images(dtype, tied=tied).requires_grad_()
    wanted = functional.max_pool2d(x, 2, **options)
    with Orders() as orders:
        found = in_quick_order(functional.max_pool2d)(x, 2, **options)
        with torch.no_grad():
            assert torch.equal(in_quick_order(functional.max_pool2d)(x, 2, **options), wanted)
    assert orders.found == []  # without torch's own pooling
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()
    dy = torch.randn_like(wanted)
    (dx,), (expected,) = torch.autograd.grad(found, x, dy), torch.autograd.grad(wanted, x, dy)
    assert torch.equal(dx, expected)
    assert dx.stride() == expected.stride()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_the_largest_of_two_by_two_among_what_is_not_finite(value):
    x = large_images()
    x[0, 0, :5, :3] = value
    x.requires_grad_()
    found, wanted = in_quick_order(functional.max_pool2d)(x, 2), functional.max_pool2d(x, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    dy = torch.ones_like(wanted)
    (dx,), (expected,) = torch.autograd.grad(found, x, dy), torch.autograd.grad(wanted, x, dy)
    assert torch.equal(dx, expected)


@pytest.mark.parametrize("options", [{"stride": 1}, {"padding": 1}, {"dilation": 2}], ids=str)
def test_other_windows_and_odd_sides_are_left_to_torch(options):
    for x, more in ((large_images(), options), (large_images(sides=(17, 16)), {}), (large_images(sides=(16, 17)), {})):
        with Orders() as orders:
            found = in_quick_order(functional.max_pool2d)(x, 2, **more)
        assert orders.found == [("largest", True)]
        assert torch.equal(found, functional.max_pool2d(x, 2, **more))


def test_gradients_of_the_largest_of_two_by_two_have_gradients():
    def second(pool) -> Tensor:
        x = large_images(torch.float64).requires_grad_()
        (first,) = torch.autograd.grad(pool(x, 2).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    torch.testing.assert_close(second(in_quick_order(functional.max_pool2d)), second(functional.max_pool2d), rtol=1e-14, atol=0)


class Pooled(nn.Module):
    """A layer with weights around each kind of pooling, called as people call them."""

    def __init__(self, *, transformed: bool = False):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.largest, self.average = nn.MaxPool2d(2), nn.AvgPool2d(2)
        self.head, self.transformed = nn.Linear(CHANNELS * 9, 3), transformed

    def forward(self, x):
        x = torch.tanh(self.first(x))
        if self.transformed:
            x = torch.vmap(lambda one: torch.max_pool2d(one[None], 2)[0])(x)
        else:
            x = self.largest(x) + torch.max_pool2d(x, 2) + functional.max_pool2d(x, 2, return_indices=True)[0]
        return self.head(self.average(torch.tanh(self.second(x))).flatten(1))


@pytest.fixture
def pooled_everywhere(monkeypatch):
    monkeypatch.setattr(pooling, "FEWEST_NUMBERS", 1)


@pytest.mark.parametrize("transformed", [False, True], ids=["", "inside vmap"])
@pytest.mark.usefixtures("double", "pooled_everywhere")
def test_steps_and_norms_are_those_of_one_example_at_a_time(transformed):
    model, x, y = Pooled(transformed=transformed), torch.randn(4, 3, 12, 12), torch.arange(4) % 3
    assert engine_for(model, x, "auto").name == "fast"
    rows = example_terms(model, x, y, 0.1)
    for method, (jacobian, residual) in PLACES.items():
        with Orders() as orders:
            found = mixed_point_gradient(model, x, y, rho=0.1, jacobian_at=jacobian, residual_at=residual, engine="fast")
        quick = {name for name, last in orders.found if last}
        assert quick == ({"average"} if transformed else {"largest", "average"})
        # Rounding of float64 over some hundred products.
        assert relative_error(found, mean_term(rows, method)) <= 1e-12, method


@pytest.mark.usefixtures("double", "pooled_everywhere")
def test_a_pooling_that_torch_refuses_is_refused_with_its_words():
    model, x, y = Pooled(), torch.randn(4, 3, 12, 12), torch.arange(4) % 3
    step = make("1-sam", model, rho=0.1)
    step.backward(x, y)
    model.largest.padding = 2
    with pytest.raises(RuntimeError, match="pad should be at most half of effective kernel size"):
        step.backward(x, y)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_one_pixel_is_read_as_it_lay(kind):
    plain = FUNCTIONS[kind]
    x = torch.randn(FEWEST_NUMBERS // CHANNELS, CHANNELS, 1, 1).requires_grad_()
    found, wanted = in_quick_order(plain)(x, 1), plain(x, 1)
    assert found.stride() == wanted.stride()
    (dx,), (expected,) = torch.autograd.grad(found.sum(), x), torch.autograd.grad(wanted.sum(), x)
    assert torch.equal(dx, expected)
    assert dx.stride() == expected.stride()


@pytest.mark.parametrize(
    "window", [np.int64(2), torch.tensor(2), (2, np.int64(2)), [2]], ids=["numpy", "torch", "in it", "list"]
)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_windows_of_other_kinds_are_left_to_torch(kind, window):
    plain = FUNCTIONS[kind]
    try:
        wanted = plain(images(), window)
    except TypeError as error:
        with pytest.raises(TypeError, match=re.escape(str(error).splitlines()[0][:40])):
            in_quick_order(plain)(images(), window)
    else:
        assert torch.equal(in_quick_order(plain)(images(), window), wanted)
    assert torch.equal(in_quick_order(plain)(input=images(), kernel_size=2), plain(images(), 2))


@pytest.mark.parametrize(
    "values",
    [
        images().contiguous(memory_format=torch.channels_last),  # lies so already
        images()[:, :-1],  # too few channels
        images()[:-1],  # too few numbers
        images()[..., 1:],  # no one order
        images().half(),
        images().to_mkldnn(),
        SimpleNamespace(),
        None,
    ],
    ids=["channels last", "few channels", "few numbers", "a slice", "float16", "another layout", "another object", "nothing"],
)
def test_only_what_gains_is_written_out(values):
    assert not pooling._gains(values)
    assert pooling._gains(images())


def test_every_other_function_stands_for_itself():
    for function in (torch.relu, functional.conv2d, functional.max_pool1d, functional.adaptive_avg_pool2d):
        assert in_quick_order(function) is function
