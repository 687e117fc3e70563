"""Laws of the robust losses: residuals against autograd and against closed forms, names with parameters, methods on them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loop import example_terms, mean_term, relative_error
from torch import nn

import noisesam
from noisesam.errors import ConfigurationError, InputError
from noisesam.gradients.losses import CrossEntropy, names, resolve
from noisesam.training import load_config
from noisesam.training.validation import validate


def log_p(logits):
    return logits.log_softmax(1)


def of_label(values, targets):
    return values.gather(1, targets.unsqueeze(1)).squeeze(1)


# The formulas of the papers, written as they stand there.
PLAIN = {
    "generalised_cross_entropy(q=0.7)": lambda f, y: (1 - of_label(f.softmax(1), y) ** 0.7) / 0.7,
    "generalised_cross_entropy(q=0.2)": lambda f, y: (1 - of_label(f.softmax(1), y) ** 0.2) / 0.2,
    "mean_absolute_error": lambda f, y: (nn.functional.one_hot(y, f.shape[1]) - f.softmax(1)).abs().sum(1),
    "label_smoothing(epsilon=0.3)": lambda f, y: -0.7 * of_label(log_p(f), y) - 0.3 * log_p(f).mean(1),
    "logit_norm_penalty(lam=0.05)": lambda f, y: -of_label(log_p(f), y) + 0.05 * f.norm(dim=1) ** 2,
}
NAMES = ("generalised_cross_entropy", "mean_absolute_error", "label_smoothing", "logit_norm_penalty")


@pytest.fixture(params=PLAIN)
def text(request):
    return request.param


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 6), classes=st.integers(2, 6), scale=st.floats(0.1, 4), seed=st.integers(0, 10_000))
def test_losses_are_those_of_the_papers_and_residuals_their_gradients(n, classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(n, classes, dtype=torch.float64, generator=generator)).clamp(-6, 6)  # margins up to 12
    targets = torch.randint(0, classes, (n,), generator=generator)
    for text, plain in PLAIN.items():
        loss = resolve(text)
        # 1e-9: at margin 12 autograd and 1 - p keep that much of a residual (see the test of the cross-entropy's digits).
        torch.testing.assert_close(loss(logits, targets), plain(logits, targets), rtol=1e-9, atol=1e-12)
        leaf = logits.clone().requires_grad_()
        (expected,) = torch.autograd.grad(plain(leaf, targets).sum(), leaf)
        torch.testing.assert_close(loss.residual(logits, targets), expected, rtol=1e-9, atol=1e-10)
        # Its own gradient by autograd is the residual too: reg-sgd's adaptive form takes it so.
        (own,) = torch.autograd.grad(loss(leaf, targets).sum(), leaf)
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-10)


MARGINS = [-300.0, -40.0, -3.0, 0.0, 3.0, 16.0, 30.0, 40.0, 300.0]
CLASSES = 4


def probabilities(margin):
    """p_y, 1 - p_y and p_k of logits (margin, 0, 0, 0), each without cancellation."""
    odds = (CLASSES - 1) * math.exp(-margin) if margin > -700 else math.inf
    return 1 / (1 + odds), odds / (1 + odds), odds / (1 + odds) / (CLASSES - 1)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_generalised_cross_entropy_keeps_its_digits_at_any_margin(margin, q):
    logits, label = torch.tensor([[margin, 0.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    observed, rest, other = probabilities(margin)
    # 1 - p^q = -expm1(q log1p(-(1 - p))) where p is near one.
    power = math.exp(q * math.log(observed))
    lost = -math.expm1(q * math.log1p(-rest)) if rest < 0.5 else 1 - power
    loss = resolve(f"generalised_cross_entropy(q={q})")
    # exp of an argument of 300 loses 300 roundings of it.
    assert loss(logits, label).item() == pytest.approx(lost / q, rel=2e-13)
    expected = [-power * rest, *[power * other] * 3]
    assert loss.residual(logits, label)[0].tolist() == pytest.approx(expected, rel=2e-13, abs=0)


@pytest.mark.parametrize("margin", MARGINS)
def test_mean_absolute_error_keeps_its_digits_and_is_twice_the_generalised_cross_entropy_at_one(margin):
    logits, label = torch.tensor([[margin, 0.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    observed, rest, other = probabilities(margin)
    loss, general = resolve("mean_absolute_error"), resolve("generalised_cross_entropy(q=1)")
    assert loss(logits, label).item() == pytest.approx(2 * rest, rel=2e-13)
    expected = [-2 * observed * rest, *[2 * observed * other] * 3]
    assert loss.residual(logits, label)[0].tolist() == pytest.approx(expected, rel=2e-13, abs=0)
    torch.testing.assert_close(loss.residual(logits, label), 2 * general.residual(logits, label), rtol=1e-15, atol=0)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.6])
def test_label_smoothing_equals_its_closed_form_at_any_margin(margin, epsilon):
    logits, label = torch.tensor([[margin, 0.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    _, rest, other = probabilities(margin)
    share = epsilon / CLASSES
    loss = resolve(f"label_smoothing(epsilon={epsilon})")
    cross_entropy = math.log1p(rest / (1 - rest)) if margin > 0 else -margin + math.log(3 + math.exp(margin))
    # -sum_k t_k log p_k with -log p_k = cross entropy + margin for the three others.
    expected_loss = cross_entropy + share * 3 * margin
    assert loss(logits, label).item() == pytest.approx(expected_loss, rel=2e-13)
    expected = [-3 * (other - share), *[other - share] * 3]
    assert loss.residual(logits, label)[0].tolist() == pytest.approx(expected, rel=2e-13, abs=0)


@pytest.mark.parametrize("margin", MARGINS)
def test_the_penalty_of_the_logits_adds_its_gradient_to_an_accurate_residual(margin):
    logits, label = torch.tensor([[margin, 0.0, -2.0, 1.0]], dtype=torch.float64), torch.tensor([0])
    loss, plain = resolve("logit_norm_penalty(lam=0.125)"), CrossEntropy()
    assert torch.equal(loss.residual(logits, label), plain.residual(logits, label) + 0.25 * logits)
    assert loss(logits, label).item() == plain(logits, label).item() + 0.125 * (margin**2 + 5)


def test_the_plain_formula_loses_a_fitted_examples_loss_that_the_closed_form_keeps():
    logits, label = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    for text, exact in (("generalised_cross_entropy(q=0.7)", math.exp(-20)), ("mean_absolute_error", 2 * math.exp(-20))):
        assert PLAIN[text](logits, label).item() < 0.6 * exact  # float32: p_y rounds to one
        assert resolve(text)(logits, label).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("text", [name for name in PLAIN if not name.startswith("logit")])
def test_entries_of_a_residual_sum_to_zero(text):
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(50, 10, dtype=torch.float64, generator=generator)
    residual = resolve(text).residual(logits, torch.randint(0, 10, (50,), generator=generator))
    assert residual.sum(1).abs().max() < 1e-14  # ten roundings of numbers below two


def test_the_ends_of_the_parameters_are_cross_entropy():
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(20, 5, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 5, (20,), generator=generator)
    exact = CrossEntropy()
    for text in ("label_smoothing(epsilon=0)", "logit_norm_penalty(lam=0)"):
        assert torch.equal(resolve(text).residual(logits, targets), exact.residual(logits, targets))
        assert torch.equal(resolve(text)(logits, targets), exact(logits, targets))
    towards = resolve("generalised_cross_entropy(q=1e-6)")
    # To first order p^q is 1 - q c with a cross-entropy c below 20.
    torch.testing.assert_close(towards.residual(logits, targets), exact.residual(logits, targets), rtol=3e-5, atol=0)


def test_the_mean_absolute_error_summed_over_all_labels_is_the_same_for_every_output():
    logits = 3 * torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    loss = resolve("mean_absolute_error")
    total = sum(loss(logits, torch.full((30,), label)) for label in range(6))
    torch.testing.assert_close(total, torch.full((30,), 10.0, dtype=torch.float64), rtol=1e-13, atol=0)  # 2 (K - 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_losses_and_residuals_in_float32(text, dtype):
    logits, targets = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype), torch.tensor([0, 1, 2, 0])
    loss = resolve(text)
    assert loss(logits, targets).dtype == loss.residual(logits, targets).dtype == torch.float32
    torch.testing.assert_close(loss.residual(logits, targets), loss.residual(logits.float(), targets), rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bounded_loss_does_not_hide_that_a_model_has_diverged(text, value):
    logits = torch.tensor([[0.0, value, 1.0]])
    assert not resolve(text)(logits, torch.tensor([0])).isfinite().any()


# ---------------------------------------------------------------- methods on them


@pytest.mark.parametrize("method", ["sgd", "1-sam", "l-sam", "j-sam"])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_per_example_methods_equal_the_loop_over_examples_with_every_loss(text, method, engine):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, 3)).double()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 5, dtype=torch.float64, generator=generator), torch.randint(0, 3, (6,), generator=generator)
    expected = mean_term(example_terms(model, x, y, 0.1, PLAIN[text]), method)
    options = {} if method == "sgd" else {"rho": 0.1}
    result = noisesam.methods.make(method, model, loss=text, engine=engine, **options).backward(x, y)
    assert relative_error({key: p.grad for key, p in model.named_parameters()}, expected) <= 1e-10
    torch.testing.assert_close(result.losses, PLAIN[text](model(x), y).detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", noisesam.methods.names())
def test_every_method_of_the_family_takes_a_step_with_a_robust_loss(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    method = noisesam.methods.make(name, model, loss="generalised_cross_entropy(q=0.5)")
    method.start_epoch(0)
    method.backward(torch.randn(6, 5).double(), torch.tensor([0, 1, 2, 0, 1, 2]), index=torch.arange(6))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    assert any(bool((p.grad != 0).any()) for p in model.parameters())


# ---------------------------------------------------------------- names


def test_every_robust_loss_has_a_name_and_the_default_of_its_paper():
    assert set(NAMES) <= set(names())
    assert resolve("generalised_cross_entropy").q == 0.7
    assert resolve("label_smoothing").epsilon == 0.1
    assert resolve(" label_smoothing ( epsilon = 0.25 ) ").epsilon == 0.25
    assert resolve("mean_absolute_error()").name == "mean_absolute_error"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generalized_cross_entropy", "Unknown loss.*Did you mean 'generalised_cross_entropy'"),
        ("generalised_cross_entropy(p=0.5)", "Unknown parameter 'p' of the loss 'generalised_cross_entropy'.*one of: q"),
        ("mean_absolute_error(q=0.5)", "Unknown parameter 'q'.*no parameter.*Type mean_absolute_error"),
        ("generalised_cross_entropy(q=much)", "q='much'.*a number.*Type q=0.5"),
        ("generalised_cross_entropy(0.5)", "'0.5' in the loss.*Type generalised_cross_entropy\\(q=0.7\\)"),
        ("generalised_cross_entropy(q=0.5, q=0.6)", "each parameter once"),
        ("generalised_cross_entropy(q=0)", "q=0.0.*above 0 and at most 1"),
        ("generalised_cross_entropy(q=1.5)", "q=1.5.*above 0 and at most 1"),
        ("label_smoothing(epsilon=1)", "epsilon=1.0.*at least 0 and below 1"),
        ("logit_norm_penalty(lam=-1)", "lam=-1.0.*at least 0"),
        ("logit_norm_penalty(lam=nan)", "lam=nan.*finite"),
        ("generalised_cross_entropy(q=0.5", "a name, or name\\(parameter=value\\)"),
        ("", "a name, or name"),
    ],
)
def test_a_loss_that_is_not_understood_is_refused_with_a_remedy(text, message):
    with pytest.raises(InputError, match=message):
        resolve(text)


def test_one_logit_is_refused_under_the_losses_own_name():
    for name in NAMES:
        with pytest.raises(InputError, match=f"'{name}'.*at least two classes.*loss='logistic'"):
            resolve(name)(torch.zeros(2, 1), torch.tensor([0, 1]))


def test_a_configuration_names_a_loss_with_its_parameters_and_a_wrong_one_by_its_key():
    config = load_config({"method": {"name": "1-sam"}}, overrides=["method.loss=generalised_cross_entropy(q=0.5)"])
    validate(config)
    assert config.method.loss == "generalised_cross_entropy(q=0.5)"
    with pytest.raises(ConfigurationError, match=r"method\.loss = .*Unknown parameter 'Q'.*one of: q"):
        validate(load_config({"method": {"loss": "generalised_cross_entropy(Q=0.5)"}}))


@pytest.mark.parametrize("text", ["generalised_cross_entropy(q=0.5)", "logit_norm_penalty"])
def test_a_run_is_trained_evaluated_and_tracked_with_a_robust_loss(text, tmp_path):
    config = {
        "data": {"train_size": 50, "test_size": 20, "validation_size": 10},
        "noise": {"kind": "symmetric", "rate": 0.4},
        "model": {"name": "mlp", "options": {"hidden": [8]}},
        "method": {"name": "1-sam", "rho": 0.05, "loss": text},
        "training": {"epochs": 2, "batch_size": 16, "threads": 1},
        "tracking": {"probe_size": 8},
    }
    run = noisesam.fit(config, tmp_path / "run")
    assert run.config["method"]["loss"] == text
    metrics = run.metrics.set_index(["metric", "split", "group", "step"])["value"]
    model, loss = run.checkpoint().tensors, resolve(text)
    # The mean training loss that was written is that of the named loss at the saved weights.
    prepared = noisesam.training.preparation.prepare(load_config(config))
    prepared.model.load_state_dict({key: model[f"model.{key}"] for key in prepared.model.state_dict()})
    train = prepared.splits.train
    with torch.no_grad():
        expected = loss(prepared.model(train.inputs), train.labels).mean()
    last = max(step for *_, step in metrics.index)
    assert metrics["loss", "train", "all", last] == pytest.approx(float(expected), rel=1e-6)  # float32
    for tracked in ("gradient_norm", "step_gradient_norm", "logit_weight", "jacobian_weight", "sharpness"):
        assert math.isfinite(metrics[tracked, "probe", "all", last])
