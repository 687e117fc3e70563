"""What exact means: every step and every norm of a model, against the loop over examples."""

from __future__ import annotations

import warnings

import torch
from reference.loop import PLACES, example_terms, mean_term, norm, relative_error
from torch import Tensor, nn

import noisesam
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for

# Rounding of float64 over sums of a few thousand products; the loop itself rounds as much.
TOLERANCE = 1e-12


def check(model: nn.Module, inputs: Tensor, *, engine: str = "fast", rho: float = 0.1) -> None:
    """Compare every step and every norm with the loop over examples."""
    targets = torch.arange(len(inputs)) % 4
    rows = example_terms(model, inputs, targets, rho)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # falling back is said once; here it is expected
        assert engine_for(model, inputs, "auto").name == engine
    for method, (jacobian, residual) in PLACES.items():
        found = mixed_point_gradient(model, inputs, targets, rho=rho, jacobian_at=jacobian, residual_at=residual)
        wanted = mean_term(rows, method)
        found = {name: found.get(name, torch.zeros_like(value)) for name, value in wanted.items()}
        assert relative_error(found, wanted) <= TOLERANCE, method
    parts = noisesam.decompose(model, inputs, targets, rho=rho)
    for field, method in (
        ("gradient_norm", "sgd"),
        ("perturbed_gradient_norm", "1-sam"),
        ("logit_perturbed_gradient_norm", "l-sam"),
        ("jacobian_perturbed_gradient_norm", "j-sam"),
    ):
        norms = torch.stack([norm(row[method]) for row in rows])
        torch.testing.assert_close(getattr(parts, field), norms, rtol=TOLERANCE, atol=0)


def one_sam_error(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return how far 1-SAM is off from the loop over examples."""
    found = mixed_point_gradient(model, inputs, labels, rho=0.3, jacobian_at="perturbed", residual_at="perturbed")
    return relative_error(found, mean_term(example_terms(model, inputs, labels, 0.3), "1-sam"))


def engine_met(model: nn.Module, inputs: Tensor) -> str:
    """Return the name of the engine that computes this batch."""
    engine = engine_for(model, inputs)
    engine.at(inputs)
    return engine.name
