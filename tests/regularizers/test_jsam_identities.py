"""Where the adaptive regulariser is J-SAM exactly: identities in float64 against a loop over examples."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from noisesam import models
from noisesam.regularizers import JSAMRegularizer

_path = Path(__file__).parent.parent / "reference" / "regularizer_loop.py"
_spec = importlib.util.spec_from_file_location("regularizer_loop", _path)
_loop = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_loop)
j_sam_gradient = _loop.j_sam_gradient

# Identities in float64: what remains is rounding of sums of a few dozen terms.
RTOL, ATOL = 1e-10, 1e-13


def cross_entropy_residual(logits, targets):
    return logits.softmax(1) - functional.one_hot(targets, logits.shape[1])


def logistic_residual(logits, targets):
    t = 2 * targets[:, None] - 1
    return -t * torch.sigmoid(-t * logits)


def cross_entropy(logits, targets):
    return functional.cross_entropy(logits, targets)


def logistic(logits, targets):
    return -functional.logsigmoid((2 * targets - 1) * logits[:, 0]).mean()


def squared_error(logits, targets):
    return 0.5 * (logits - functional.one_hot(targets, logits.shape[1])).square().sum(1).mean()


def generalised_cross_entropy(logits, targets):
    return (1 - logits.softmax(1).gather(1, targets[:, None])[:, 0] ** 0.7) / 0.7


LOSSES = {
    "cross_entropy": (3, "cross_entropy", cross_entropy, cross_entropy_residual),
    "logistic": (1, "logistic", logistic, logistic_residual),
    "mse": (3, "mse", squared_error, lambda logits, targets: logits - functional.one_hot(targets, logits.shape[1])),
    "callable": (
        3,
        generalised_cross_entropy,
        lambda logits, targets: generalised_cross_entropy(logits, targets).mean(),
        lambda logits, targets: torch.func.grad(lambda f: generalised_cross_entropy(f, targets).sum())(logits),
    ),
}


def batch(n, dim, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(max(2, classes), (n,), generator=generator)


def regularised_gradient(model, inputs, targets, mean_loss, regularizer):
    model.zero_grad()
    (mean_loss(model(inputs), targets) + regularizer(targets)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=RTOL, atol=ATOL, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rho", [0.0, 0.1, 2.0])
def test_adaptive_penalty_is_j_sam_exactly_on_two_layer_linear_networks(kind, bias, rho):
    classes, loss, mean_loss, residual = LOSSES[kind]
    model = models.make("two-layer-linear", input_shape=(6,), classes=classes, width=5, bias=bias, seed=3).double()
    inputs, targets = batch(7, 6, classes)
    regularizer = JSAMRegularizer(model, mode="adaptive", rho=rho, loss=loss)
    actual = regularised_gradient(model, inputs, targets, mean_loss, regularizer)
    assert_equal_gradients(actual, j_sam_gradient(model, inputs, targets, residual, rho))


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 5),
    dim=st.integers(1, 5),
    width=st.integers(1, 5),
    kind=st.sampled_from(["cross_entropy", "logistic", "mse"]),
    hidden_bias=st.booleans(),
    last_bias=st.booleans(),
    frozen=st.sets(st.sampled_from(["0.weight", "0.bias", "1.weight", "1.bias"]), max_size=3),
    seed=st.integers(0, 99),
)
def test_adaptive_penalty_is_j_sam_exactly_for_any_shape_any_biases_and_frozen_parameters(
    n, dim, width, kind, hidden_bias, last_bias, frozen, seed
):
    classes, loss, mean_loss, residual = LOSSES[kind]
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(dim, width, bias=hidden_bias), nn.Linear(width, classes, bias=last_bias)).double()
    models.initialise(model, generator)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(p.requires_grad for p in model.parameters()):
        return
    inputs, targets = batch(n, dim, classes, seed)
    regularizer = JSAMRegularizer(model, mode="adaptive", rho=0.3, loss=loss)
    actual = regularised_gradient(model, inputs, targets, mean_loss, regularizer)
    expected = j_sam_gradient(model, inputs, targets, residual, 0.3)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=RTOL, atol=ATOL)


def test_adaptive_penalty_on_one_logit_is_the_closed_form_of_two_layer_linear_networks():
    model = models.make("two-layer-linear", input_shape=(6,), classes=1, width=4, bias=False).double()
    inputs, targets = batch(9, 6, 1)
    rho = 0.5
    actual = regularised_gradient(
        model, inputs, targets, logistic, JSAMRegularizer(model, mode="adaptive", rho=rho, loss="logistic")
    )
    first, last = (p.detach() for p in model.parameters())
    v = last[0]
    minus_first, minus_v = torch.zeros_like(first), torch.zeros_like(v)
    for x, label in zip(inputs, targets, strict=True):
        t, z = 2 * label - 1, first @ x
        s = torch.sigmoid(-t * (v @ z))
        a = torch.sqrt(z @ z + (x @ x) * (v @ v))
        minus_first += (t * s * torch.outer(v, x) - (rho * s / a) * torch.outer(z, x)) / len(inputs)
        minus_v += (t * s * z - (rho * s / a) * (x @ x) * v) / len(inputs)
    torch.testing.assert_close(actual["body.1.weight"], -minus_first, rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(actual["last_layer.weight"], -minus_v[None], rtol=RTOL, atol=ATOL)


def test_with_a_frozen_hidden_layer_the_backbone_gradient_is_that_of_j_sam_on_the_head_of_any_network():
    backbone = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 4))
    model = nn.Sequential(backbone, nn.Linear(4, 3)).double()
    models.initialise(model, torch.Generator().manual_seed(0))
    for parameter in backbone[4].parameters():
        parameter.requires_grad_(False)
    inputs, targets = batch(6, 5, 3)
    regularizer = JSAMRegularizer(model, mode="adaptive", rho=0.4)
    actual = regularised_gradient(model, inputs, targets, cross_entropy, regularizer)
    expected = j_sam_gradient(model, inputs, targets, cross_entropy_residual, 0.4, perturbed=lambda name: name.startswith("1."))
    assert_equal_gradients(actual, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_head_only_j_sam_adds_the_gradient_of_half_the_squared_activation_to_the_backbone(bias):
    backbone = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Softplus())
    model = nn.Sequential(backbone, nn.Linear(4, 3, bias=bias)).double()
    models.initialise(model, torch.Generator().manual_seed(0))
    inputs, targets = batch(6, 5, 3)
    rho = 0.4
    expected = j_sam_gradient(model, inputs, targets, cross_entropy_residual, rho, perturbed=lambda name: name.startswith("1."))
    hidden = backbone(inputs)
    logits = model[1](hidden)
    square = hidden.square().sum(1)
    r = cross_entropy_residual(logits, targets).norm(dim=1).detach()
    norm = r * (square.detach() + bias).sqrt()
    (cross_entropy(logits, targets) + (rho * r**2 / norm * 0.5 * square).mean()).backward()
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[f"0.{name}"], rtol=RTOL, atol=ATOL)


def test_with_an_activation_function_between_the_adaptive_penalty_is_only_an_approximation():
    model = models.make("mlp", input_shape=(6,), classes=3, hidden=(5,), activation="tanh").double()
    inputs, targets = batch(7, 6, 3)
    actual = regularised_gradient(model, inputs, targets, cross_entropy, JSAMRegularizer(model, mode="adaptive", rho=0.5))
    expected = j_sam_gradient(model, inputs, targets, cross_entropy_residual, 0.5)
    gap = max((actual[name] - expected[name]).norm() / expected[name].norm() for name in expected)
    assert gap > 1e-3


def test_penalty_in_a_deeper_network_is_first_order_rho_times_the_norm_of_the_last_two_layers_gradient():
    """The gradient of the penalty, layers below included, equals rho * grad ||grad_(W,V) <r, f>|| with r constant."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 3)).double()
    models.initialise(model, torch.Generator().manual_seed(1))
    inputs, targets = batch(3, 4, 3)
    regularizer = JSAMRegularizer(model, mode="adaptive", rho=0.7)
    model(inputs)
    actual = torch.autograd.grad(regularizer(targets), list(model.parameters()), allow_unused=True)
    norms = torch.zeros((), dtype=torch.float64)
    for x, y in zip(inputs, targets, strict=True):
        logits = model(x[None])
        r = cross_entropy_residual(logits, y[None]).detach()
        two = torch.autograd.grad((r * logits).sum(), [*model[2].parameters(), *model[3].parameters()], create_graph=True)
        norms = norms + sum(g.square().sum() for g in two).sqrt() / len(inputs)
    expected = torch.autograd.grad(0.7 * norms, list(model.parameters()), allow_unused=True)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.zeros(1) if a is None else a, torch.zeros(1) if b is None else b, rtol=RTOL, atol=ATOL)


@settings(deadline=None, max_examples=20)
@given(activation=st.floats(0, 3), weight=st.floats(0, 3), n=st.integers(1, 4), positions=st.integers(1, 3))
def test_constant_penalty_is_the_mean_squared_activation_and_the_squared_weight(activation, weight, n, positions):
    last = nn.Linear(4, 2).double()
    model = nn.Sequential(nn.Linear(3, 4).double(), nn.Tanh(), last)
    inputs = torch.randn(n, positions, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    regularizer = JSAMRegularizer(model, activation=activation, weight=weight)
    model(inputs)
    expected = sum(activation * h**2 / n for row in model[:2](inputs).detach() for h in row.flatten().tolist()) + weight * sum(
        v**2 for v in last.weight.flatten().tolist()
    )
    assert regularizer().item() == pytest.approx(expected, rel=1e-12)  # float64 rounding


def test_residuals_are_those_of_the_gradients_room():
    losses = pytest.importorskip("noisesam.gradients.losses")
    model = models.make("two-layer-linear", input_shape=(6,), classes=3, width=4, bias=False).double()
    inputs, targets = batch(5, 6, 3)
    for name in ("cross_entropy", "mse"):
        regularizer = JSAMRegularizer(model, mode="adaptive", rho=0.3, loss=name)
        actual = regularised_gradient(
            model, inputs, targets, lambda f, y, name=name: losses.resolve(name)(f, y).mean(), regularizer
        )
        expected = j_sam_gradient(model, inputs, targets, losses.resolve(name).residual, 0.3)
        assert_equal_gradients(actual, expected)
        regularizer.remove()
