"""Layer kinds alone, of shapes drawn at random, against the loop over batches of one: float64.

Convolutions, linear maps and embeddings are drawn in test_layer_rules.py. Here are the normalisations, slopes, free parameters,
products, attention and encoder layers. What the number of examples is and what a number of positions, channels or features
is must never be read from sizes: they are drawn to coincide in half of the cases, and batches of one are drawn as often.
"""

from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loop import example_terms, mean_term, relative_error
from torch import Tensor, nn

import noisesam
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for
from noisesam.gradients.losses import resolve

CLASSES, RHO = 4, 0.1
# float64 rounds to 1.1e-16; sums of up to a few hundred products in another order, and two to three layers that pass the
# difference on (a normalisation may enlarge it by its 1/sqrt(variance + 1e-5) <= 316), stay well below. A wrong term is O(1).
TOLERANCE = 1e-12


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def headed(body: nn.Module, x: Tensor) -> nn.Module:
    """Put a smooth map and a linear head behind the layer, with every weight drawn anew."""
    whole = nn.Sequential(body, nn.Tanh(), nn.Flatten())
    mode = body.training
    with torch.no_grad():
        size = whole(x).shape[1]
        for parameter in whole.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return nn.Sequential(whole, nn.Linear(size, CLASSES)).train(mode)


def check(model: nn.Module, x: Tensor, *, engine: str = "fast", materialises: bool = True) -> None:
    """Compare every example's gradient and the mean of 1-SAM's terms with the loop; by this engine, and by no other.

    `per_example_gradients` always takes the reference engine: it is held to the same where it `materialises`.
    """
    targets = torch.arange(len(x)) % CLASSES
    if engine == "fast":
        engine_for(model, x, "fast")  # raises with the reason where it cannot be used
    chosen = engine_for(model, x, "auto")
    assert chosen.name == engine
    rows = example_terms(model, x, targets, RHO)
    point = chosen.at(x)
    factors = point.per_example_gradient(resolve("cross_entropy").residual(point.logits, targets)).factors
    ways = [{name: factor.dense() for name, factor in factors.items()}]
    if materialises:
        ways.append(noisesam.per_example_gradients(model, x, targets))
    for gradients in ways:
        for i, row in enumerate(rows):
            assert relative_error({name: gradient[i] for name, gradient in gradients.items()}, row["sgd"]) <= TOLERANCE, i
    found = mixed_point_gradient(model, x, targets, rho=RHO, jacobian_at="perturbed", residual_at="perturbed")
    assert relative_error(found, mean_term(rows, "1-sam")) <= TOLERANCE


def coinciding(data: st.DataObject, *, least: int = 1, most: int = 5) -> tuple[int, int]:
    """Draw the number of examples and another size, which equal each other half of the time."""
    n = data.draw(st.sampled_from([1, 2, 3, 4, 1]), label="examples")
    size = n if n >= least and data.draw(st.booleans(), label="equal") else data.draw(st.integers(least, most), label="size")
    torch.manual_seed(data.draw(st.integers(0, 99), label="seed"))
    return n, size


def behind(data: st.DataObject, layer: nn.Module, features: int) -> nn.Module:
    """Leave the layer alone, or put it behind a linear map of the last axis, whose gradient is the layer's input gradient."""
    return nn.Sequential(nn.Linear(features, features), layer) if data.draw(st.booleans(), label="behind") else layer


def without(layer: nn.Module, *names: str) -> nn.Module:
    for name in names:
        setattr(layer, name, None)
    return layer


# ---------------------------------------------------------------- normalisations and slopes

BOTH, WEIGHT, BIAS, NEITHER = (), ("bias",), ("weight",), ("weight", "bias")
"""What is taken away from a layer that has weight and bias."""


@settings(max_examples=60, deadline=None)
@given(data=st.data(), removed=st.sampled_from([BOTH, WEIGHT, BIAS, NEITHER]))
def test_layer_normalisations_of_any_shape(data, removed):
    n, positions = coinciding(data)
    features, axes = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 2))
    shape = [positions, features] if data.draw(st.booleans()) else [features]
    x = torch.randn(n, *[positions] * axes, features)
    check(headed(behind(data, without(nn.LayerNorm(shape), *removed), features), x), x)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), weight=st.booleans())
def test_root_mean_square_normalisations_of_any_shape(data, weight):
    n, positions = coinciding(data)
    features, axes = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 2))
    shape = [positions, features] if data.draw(st.booleans()) else [features]
    x = torch.randn(n, *[positions] * axes, features)
    check(headed(behind(data, nn.RMSNorm(shape, elementwise_affine=weight), features), x), x)


# With a bias alone the backward pass of torch itself raises.
@settings(max_examples=60, deadline=None)
@given(data=st.data(), removed=st.sampled_from([BOTH, WEIGHT, NEITHER]))
def test_group_normalisations_of_any_shape(data, removed):
    n, groups = coinciding(data, most=3)
    channels = groups * data.draw(st.integers(1 if groups > 1 else 2, 3))
    sides = data.draw(st.lists(st.integers(2, 4), min_size=1, max_size=2))
    x = torch.randn(n, channels, *sides)
    check(headed(behind(data, without(nn.GroupNorm(groups, channels), *removed), sides[-1]), x), x)


# One channel's weight, seen once per example, was a view of stride 0: the native kernel read on behind it.
def test_group_normalisations_of_one_channel():
    torch.manual_seed(0)
    x = torch.randn(3, 1, 4)
    check(headed(nn.GroupNorm(1, 1), x), x)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), removed=st.sampled_from([BOTH, WEIGHT, BIAS, NEITHER]), axes=st.integers(1, 2))
def test_instance_normalisations_of_any_shape(data, removed, axes):
    n, channels = coinciding(data)
    sides = [data.draw(st.integers(2, 4)) for _ in range(axes)]
    layer = (nn.InstanceNorm1d, nn.InstanceNorm2d)[axes - 1](channels, affine=True)
    x = torch.randn(n, channels, *sides)
    check(headed(behind(data, without(layer, *removed), sides[-1]), x), x)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), removed=st.sampled_from([BOTH, WEIGHT, BIAS, NEITHER]), axes=st.integers(0, 2))
def test_batch_normalisations_in_evaluation_mode_of_any_shape(data, removed, axes):
    n, channels = coinciding(data)
    sides = [data.draw(st.integers(1, 4)) for _ in range(axes)]
    layer = (nn.BatchNorm2d if axes == 2 else nn.BatchNorm1d)(channels)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    x = torch.randn(n, channels, *sides)
    check(headed(behind(data, without(layer, *removed), [channels, *sides][-1]).eval(), x), x)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), per_channel=st.booleans(), axes=st.integers(0, 2))
def test_slopes_of_any_shape(data, per_channel, axes):
    n, channels = coinciding(data)
    sides = [data.draw(st.integers(1, 4)) for _ in range(axes)]
    x = torch.randn(n, channels, *sides)
    check(headed(behind(data, nn.PReLU(channels if per_channel else 1), [channels, *sides][-1]), x), x)


# ---------------------------------------------------------------- parameters of no layer


class Broadcast(nn.Module):
    """One operator between the input and a parameter that is broadcast over the examples."""

    def __init__(self, shape: tuple[int, ...], operation: str):
        super().__init__()
        self.free, self.operation = nn.Parameter(torch.empty(shape)), operation

    def forward(self, h: Tensor) -> Tensor:
        if self.operation == "token":
            return torch.cat([self.free.expand(h.shape[0], -1, -1), h], 1)
        if self.operation == "from":
            return self.free - h
        return getattr(operator, self.operation)(h, self.free)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), operation=st.sampled_from(["add", "sub", "from", "mul", "truediv", "token"]))
def test_free_parameters_of_any_shape(data, operation):
    n, positions = coinciding(data)
    features = data.draw(st.sampled_from([n, 1, 2, 3]))
    shapes = [(), (features,), (positions, features), (positions, 1), (1, positions, features), (1, 1, features), (1,)]
    shape = (1, data.draw(st.integers(1, 2)), features) if operation == "token" else data.draw(st.sampled_from(shapes))
    x = torch.randn(n, positions, features)
    layer = Broadcast(shape, operation)
    model = headed(behind(data, layer, features), x)
    with torch.no_grad():  # away from zero, by which nothing can be divided
        layer.free.add_(layer.free.sign())
    check(model, x)


class Product(nn.Module):
    def __init__(self, before: int, after: int, form: str):
        super().__init__()
        self.weight, self.form = nn.Parameter(torch.empty(before, after)), form

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.weight if self.form == "@" else getattr(torch, self.form)(h, self.weight)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), form=st.sampled_from(["@", "matmul", "mm"]))
def test_products_with_a_weight_of_any_shape(data, form):
    n, positions = coinciding(data)
    before, after = data.draw(st.sampled_from([n, 1, 3, 20])), data.draw(st.sampled_from([n, 1, 3, 40]))
    axes = 0 if form == "mm" else data.draw(st.integers(0, 2))
    x = torch.randn(n, *[positions] * axes, before)
    check(headed(behind(data, Product(before, after, form), before), x), x)


# ---------------------------------------------------------------- attention


class Attention(nn.Module):
    """Queries from the first positions, keys and values from all; (n, T, d) in and out, whatever the layout inside."""

    def __init__(self, features: int, queries: int, needs_weights: bool, alike: bool, **options: object):
        super().__init__()
        self.batch_first, self.length, self.needs_weights = options["batch_first"], queries, needs_weights
        size = options["embed_dim"]
        self.queries, self.attention = nn.Linear(features, size), nn.MultiheadAttention(**options)
        kdim, vdim = options.get("kdim") or size, options.get("vdim") or size
        self.alike = alike
        self.keys = None if alike else nn.Linear(features, kdim)
        self.values = None if alike else nn.Linear(features, vdim)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        if self.keys is None or self.values is None:
            q = k = v = self.queries(x)
        else:
            q = self.queries(x[:, : self.length] if self.batch_first else x[: self.length])
            k, v = self.keys(x), self.values(x)
        attended, _ = self.attention(q, k, v, need_weights=self.needs_weights)
        return attended if self.batch_first else attended.transpose(0, 1)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), batch_first=st.booleans(), bias=st.booleans(), alike=st.booleans(), needs_weights=st.booleans())
def test_attention_of_any_shape_and_layout(data, batch_first, bias, alike, needs_weights):
    n, positions = coinciding(data)
    heads = data.draw(st.integers(1, 3))
    size = heads * data.draw(st.integers(1, 3))
    options = {"embed_dim": size, "num_heads": heads, "bias": bias, "batch_first": batch_first}
    if not alike:
        options |= {name: data.draw(st.one_of(st.none(), st.integers(1, 5)), label=name) for name in ("kdim", "vdim")}
    x = torch.randn(n, positions, 3)
    layer = Attention(3, data.draw(st.integers(1, positions)), needs_weights, alike, **options)
    # Three projections that share one bias have no rule; this falls back, and says so.
    separate = layer.attention.in_proj_weight is None
    if separate and bias:
        with pytest.warns(UserWarning, match="one bias for three separate projections"):
            check(headed(layer, x), x, engine="reference")
    else:
        check(headed(layer, x), x)


class EncoderLayer(nn.Module):
    def __init__(self, **options: object):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(**options, dropout=0.0)
        self.batch_first = options["batch_first"]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.batch_first else self.layer(x.transpose(0, 1)).transpose(0, 1)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), batch_first=st.booleans(), norm_first=st.booleans(), bias=st.booleans(), training=st.booleans(),
    activation=st.sampled_from(["relu", "gelu"]),
)  # fmt: skip
def test_encoder_layers_of_any_shape_and_layout(data, batch_first, norm_first, bias, training, activation):
    n, positions = coinciding(data)
    heads = data.draw(st.integers(1, 2))
    layer = EncoderLayer(
        d_model=2 * heads, nhead=heads, dim_feedforward=data.draw(st.integers(1, 6)), activation=activation,
        batch_first=batch_first, norm_first=norm_first, bias=bias,
    )  # fmt: skip
    x = torch.randn(n, positions, 2 * heads)
    check(headed(layer, x).train(training), x, materialises=training)


def test_encoder_layers_in_evaluation_mode_have_materialised_gradients():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 4)
    check(headed(nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True), x).eval(), x)
