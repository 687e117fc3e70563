"""What is measured: each quantity is a function from one measurement to a value per group. A new one is one line below.

The mathematics is in docs/mechanism.md; names, units and meanings are in `noisesam.runs.schema.METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.tracking.measurement import Measurement, flat

Quantity = Callable[[Measurement], dict[str, float]]
"""One measurement -> {group: value}; NaN where the value is not defined."""

NAN = float("nan")


def group_mean(column: str) -> Quantity:
    """Return the quantity "mean of a per-example column", by group."""
    return lambda measurement: {group: _mean(measurement.columns[column][mask]) for group, mask in measurement.groups.items()}


def ratio_of_means(above: str, below: str) -> Quantity:
    """Return the quantity "mean of one column over the mean of another", by group, without examples of zero residual."""

    def quantity(measurement: Measurement) -> dict[str, float]:
        result = {}
        for group, mask in measurement.groups.items():
            kept = mask & _has_residual(measurement)
            denominator = _mean(measurement.columns[below][kept])
            result[group] = _mean(measurement.columns[above][kept]) / denominator if denominator else NAN
        return result

    return quantity


def group_median(column: str) -> Quantity:
    """Return the quantity "median of a per-example ratio", by group, without the examples for which it is not defined."""

    def quantity(measurement: Measurement) -> dict[str, float]:
        result = {}
        for group, mask in measurement.groups.items():
            values = measurement.columns[column][mask & _has_residual(measurement)]
            values = values[~np.isnan(values)]
            result[group] = float(np.median(values)) if len(values) else NAN
        return result

    return quantity


def zero_residuals(measurement: Measurement) -> dict[str, float]:
    """Count the examples whose residual is exactly zero."""
    return {group: float((mask & ~_has_residual(measurement)).sum()) for group, mask in measurement.groups.items()}


def batch_sharpness(measurement: Measurement) -> dict[str, float]:
    """Return loss(w + rho g/||g||) - loss(w) of the probe set as one batch."""
    return {"all": measurement.batch_sharpness}


def gradient_cosine(measurement: Measurement) -> dict[str, float]:
    """Return the cosine between the mean gradient of the clean and of the noisy examples."""
    if "noisy" not in measurement.groups:
        return {}
    return {"all": _cosine(measurement.group_gradients["clean"], measurement.group_gradients["noisy"])}


def step_cosine(measurement: Measurement) -> dict[str, float]:
    """Return the cosine between each group's mean gradient at w and the method's step on the probe set."""
    return {
        group: _cosine(measurement.group_gradients[group], measurement.step_gradient)
        for group in ("clean", "noisy")
        if group in measurement.groups
    }


def hidden_activation_norm(measurement: Measurement) -> dict[str, float]:
    """Return the mean norm of the last hidden activation, by group."""
    if measurement.hidden is None:
        return dict.fromkeys(measurement.groups, NAN)
    norms = np.linalg.norm(measurement.hidden, axis=1)
    return {group: _mean(norms[mask]) for group, mask in measurement.groups.items()}


def feature_rank(measurement: Measurement) -> dict[str, float]:
    """Return the participation ratio (sum lambda)^2 / sum lambda^2 of the centred last hidden activations.

    lambda are the eigenvalues of their covariance: 1 for activations on a line, k for k directions of equal variance.
    """
    if measurement.hidden is None:
        return {"all": NAN}
    centred = measurement.hidden - measurement.hidden.mean(0)
    # Both Gram matrices have the same non-zero eigenvalues; the smaller one is formed. ||G||_F^2 is the sum of lambda^2.
    gram = centred @ centred.T if centred.shape[0] < centred.shape[1] else centred.T @ centred
    squares = float((gram**2).sum())
    return {"all": float(np.trace(gram)) ** 2 / squares if squares > 0 else NAN}


def last_layer_norm(measurement: Measurement) -> dict[str, float]:
    """Return the Frobenius norm of the last layer's weight."""
    layer = measurement.last_layer
    return {"all": float(flat({"weight": layer.weight}).norm()) if isinstance(layer, nn.Linear) else NAN}


def weight_norm(measurement: Measurement) -> dict[str, float]:
    """Return the norm of all trainable weights."""
    return {"all": float(flat(measurement.parameters).norm())}


def distance_from_initialisation(measurement: Measurement) -> dict[str, float]:
    """Return the norm of all trainable weights minus their initial values."""
    before: dict[str, Tensor] = {}
    for name, value in measurement.parameters.items():
        start = measurement.initial.get(name)
        if start is None or start.shape != value.shape:
            was = "was not there" if start is None else f"had the shape {tuple(start.shape)}"
            raise InputError(
                f"The parameter {name!r} has the shape {tuple(value.shape)}, and {was} when the tracker was built",
                expected="the parameters whose distance from initialisation is followed",
                remedy="Build another tracker after a layer has been exchanged.",
            )
        before[name] = start
    return {"all": float((flat(measurement.parameters) - flat(before)).norm())}


QUANTITIES: dict[str, Quantity] = {
    "residual_norm": group_mean("residual_norm"),
    "gradient_norm": group_mean("gradient_norm"),
    "step_residual_norm": group_mean("step_residual_norm"),
    "step_gradient_norm": group_mean("step_gradient_norm"),
    "one_sam_gradient_norm": group_mean("one_sam_gradient_norm"),
    "sam_gradient_norm": group_mean("sam_gradient_norm"),
    "l_sam_gradient_norm": group_mean("l_sam_gradient_norm"),
    "j_sam_gradient_norm": group_mean("j_sam_gradient_norm"),
    "logit_weight": ratio_of_means("perturbed_residual_norm", "residual_norm"),
    "logit_weight_median": group_median("logit_weight"),
    "jacobian_weight": ratio_of_means("j_sam_gradient_norm", "gradient_norm"),
    "jacobian_weight_median": group_median("jacobian_weight"),
    "zero_residuals": zero_residuals,
    "sharpness": group_mean("sharpness"),
    "batch_sharpness": batch_sharpness,
    "gradient_cosine": gradient_cosine,
    "step_cosine": step_cosine,
    "hidden_activation_norm": hidden_activation_norm,
    "feature_rank": feature_rank,
    "last_layer_norm": last_layer_norm,
    "weight_norm": weight_norm,
    "distance_from_initialisation": distance_from_initialisation,
}
"""Name in `noisesam.runs.schema.METRICS` -> quantity, in the order in which they are written."""


def _mean(values: Float[np.ndarray, " n"]) -> float:
    return float(values.mean()) if len(values) else NAN


def _has_residual(measurement: Measurement) -> Bool[np.ndarray, " n"]:
    return measurement.columns["residual_norm"] != 0


def _cosine(left: Tensor | None, right: Tensor | None) -> float:
    if left is None or right is None:
        return NAN
    scale = left.norm() * right.norm()
    return float(torch.dot(left, right) / scale) if scale > 0 else NAN
