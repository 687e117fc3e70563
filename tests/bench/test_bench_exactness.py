"""The models that are timed, at full size in float64, against the loop over examples: speed is worth nothing without this."""

from __future__ import annotations

import pytest
import torch
from reference.loop import example_terms, mean_term, norm, relative_error

import noisesam
from noisesam.bench import MODELS
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for

PLACES = {"1-sam": ("perturbed", "perturbed"), "l-sam": ("w", "perturbed"), "j-sam": ("perturbed", "w")}


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_equals_the_loop_over_examples_on_every_timed_model(name):
    timed = MODELS[name]
    model = timed.build(False).double()
    inputs, labels = timed.inputs(2)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    assert engine_for(model, inputs).name == "fast"
    rows = example_terms(model, inputs, labels, 0.05)
    for method, (jacobian, residual) in PLACES.items():
        found = mixed_point_gradient(model, inputs, labels, rho=0.05, jacobian_at=jacobian, residual_at=residual)
        assert relative_error(found, mean_term(rows, method)) <= 1e-12, method
    norms = torch.stack([norm(row["sgd"]) for row in rows])
    torch.testing.assert_close(noisesam.decompose(model, inputs, labels).gradient_norm, norms, rtol=1e-12, atol=0)
