"""SGD at L-SAM's step length: the laws of the family, its rule against a plain loop, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from reference.loop import example_terms, mean_term, norm, relative_error
from torch import nn

import noisesam
from noisesam import fit
from noisesam.methods import controls, describe, make, names
from noisesam.runs.checkpoints import read_payload
from noisesam.testing import check_method
from noisesam.testing.laws import LAWS
from noisesam.training import load_config
from noisesam.training.validation import validate

NAME = "length-matched-sgd"
STEPS, RATE, RHO = 25, 0.1, 0.3


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 3)).double()


def batch(number: int = 0, n: int = 8):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(n, 5, dtype=torch.float64, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def gradient_of(name, model, x, y, **options):
    model.zero_grad()
    make(name, model, **options).backward(x, y)
    found = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    return found


def plain_loop(model, x, y, rho):
    """SGD's mean gradient times the ratio of lengths, from one example at a time."""
    rows = example_terms(model, x, y, rho)
    plain, target = mean_term(rows, "sgd"), mean_term(rows, "l-sam")
    factor = norm(target) / norm(plain)
    return {key: factor * value for key, value in plain.items()}


@pytest.mark.parametrize("law", LAWS)
def test_the_control_keeps_every_law_of_the_family(law):
    check_method(lambda model: make(NAME, model, rho=0.1), skip=[other for other in LAWS if other != law])


def test_25_steps_equal_the_plain_loop():
    model, twin = network(), network()
    method = make(NAME, model, rho=RHO)
    for step in range(STEPS):
        x, y = batch(step % 5)
        expected = plain_loop(twin, x, y, RHO)
        model.zero_grad()
        method.backward(x, y)
        with torch.no_grad():
            for key, p in twin.named_parameters():
                p.sub_(RATE * expected[key])
            for p in model.parameters():
                p.sub_(RATE * p.grad)
    # 1e-10: 25 steps of float64 roundings.
    assert relative_error(model.state_dict(), twin.state_dict()) <= 1e-10


def test_the_step_has_the_length_of_l_sam_and_the_direction_of_sgd():
    model, (x, y) = network(), batch()
    plain, target = gradient_of("sgd", model, x, y), gradient_of("l-sam", model, x, y, rho=RHO)
    found = gradient_of(NAME, model, x, y, rho=RHO)
    # 1e-12: the same sums, taken twice.
    assert float(norm(found)) == pytest.approx(float(norm(target)), rel=1e-12)
    assert relative_error({key: value / norm(found) for key, value in found.items()},
                          {key: value / norm(plain) for key, value in plain.items()}) <= 1e-12  # fmt: skip
    assert relative_error(found, plain) > 0.1  # the length does differ
    assert relative_error(found, target) > 0.01  # and so does the direction from L-SAM's


def test_on_a_single_example_of_two_classes_it_is_l_sam():
    """One residual of two classes has one direction: L-SAM changes its length alone."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    x, y = batch(n=1)
    expected = gradient_of("l-sam", model, x, y.clamp_max(1), rho=RHO)
    assert relative_error(gradient_of(NAME, model, x, y.clamp_max(1), rho=RHO), expected) <= 1e-12


def test_a_vanishing_radius_is_sgd():
    model, (x, y) = network(), batch()
    assert relative_error(gradient_of(NAME, model, x, y, rho=0.0), gradient_of("sgd", model, x, y)) <= 1e-13


def test_the_terms_of_the_step_average_to_the_step():
    model, (x, y) = network(dropout=0.4), batch()
    model.eval()
    method = make(NAME, model, rho=RHO)
    terms, step = method.step_terms(x, y), method.step_gradient(x, y)
    plain = make("sgd", model).step_terms(x, y)
    factor = norm(step) / norm(make("sgd", model).step_gradient(x, y))
    torch.testing.assert_close(terms.gradient_norm, factor * plain.gradient_norm, rtol=1e-11, atol=0)
    torch.testing.assert_close(terms.residual_norm, factor * plain.residual_norm, rtol=1e-11, atol=0)
    assert method.perturbation(x, y) is None  # the terms are taken at w


def test_both_lengths_are_those_of_one_dropout_mask():
    model, (x, y) = network(dropout=0.5), batch()
    torch.manual_seed(7)
    target = gradient_of("l-sam", model, x, y, rho=RHO)
    torch.manual_seed(7)
    plain = gradient_of("sgd", model, x, y)
    torch.manual_seed(7)
    found = gradient_of(NAME, model, x, y, rho=RHO)
    expected = {key: norm(target) / norm(plain) * value for key, value in plain.items()}
    assert relative_error(found, expected) <= 1e-12


def test_chunks_change_nothing_beyond_rounding():
    model, (x, y) = network(), batch()
    whole = gradient_of(NAME, model, x, y, rho=RHO, chunk_size=None)
    assert relative_error(gradient_of(NAME, model, x, y, rho=RHO, chunk_size=3), whole) <= 1e-12


def test_a_control_is_built_and_described_but_is_no_member_of_the_family():
    assert NAME in controls()
    assert not set(controls()) & set(names())
    assert type(make(NAME, network())) is noisesam.methods.LengthMatchedSGD
    description = describe(NAME)
    assert description.name == NAME
    assert description.passes == ("3", "3")
    assert "control" in description.reference
    assert description.hyperparameters["rho"][0] == 0.01


def test_a_run_with_the_control_is_configured_trained_and_repeats_to_the_bit(tmp_path):
    config = {
        "data": {"train_size": 50, "test_size": 20, "validation_size": 10},
        "noise": {"kind": "symmetric", "rate": 0.4},
        "model": {"name": "mlp", "options": {"hidden": [8], "dropout": 0.3}},
        "method": {"name": NAME, "rho": 0.05},
        "training": {"epochs": 2, "batch_size": 16, "threads": 1},
        "tracking": {"probe_size": 8, "probe_dense": 1, "probe_every": 1},
    }
    validate(load_config(config))
    runs = [fit(config, tmp_path / place) for place in ("a", "b")]
    weights = [read_payload(run.path, run.checkpoint_steps[-1])[0] for run in runs]
    assert weights[0] == weights[1]
    passes = runs[0].metrics.query("metric == 'backward_passes'")["value"]
    assert passes.tolist() == [3.0, 3.0]
    steps = runs[0].metrics.query("metric == 'step_gradient_norm' and group == 'all'")["value"]
    assert steps.notna().all()
