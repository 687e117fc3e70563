"""The written contract of a saved run: its tables, columns, units and meaning.

Everything that writes a run (training, tracking) and everything that reads one (analysis, plotting, the command line)
meets here and nowhere else. No torch import.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1
"""Raised by one whenever a column or a meaning changes; a reader refuses a newer version and names the remedy."""

SPLITS = ("train", "val", "test", "probe")
"""train: the whole training set; val: the noisy validation hold-out; test: clean images; probe: the fixed tracked examples."""

GROUPS = ("all", "clean", "noisy")
"""Examples whose observed label equals (clean) or differs from (noisy) the true label; `all` needs no true label."""


@dataclass(frozen=True)
class Column:
    """One documented column: its name, its type on disk, its unit and its meaning."""

    name: str
    dtype: str
    unit: str
    meaning: str


METRICS_COLUMNS = (
    Column("step", "int64", "optimizer steps", "steps taken before the measurement"),
    Column("epoch", "float64", "epochs", "passes over the training set before the measurement"),
    Column("split", "string", "", "one of SPLITS"),
    Column("group", "string", "", "one of GROUPS"),
    Column("metric", "string", "", "one of METRICS"),
    Column("value", "float64", "see METRICS", "the measured value; NaN where it is not defined"),
)

EXAMPLES_COLUMNS = (
    Column("step", "int64", "optimizer steps", "steps taken before the measurement"),
    Column("epoch", "float64", "epochs", "passes over the training set before the measurement"),
    Column("example", "int64", "", "stable index of the example in its data set"),
    Column("label", "int64", "class", "observed label, possibly wrong"),
    Column("clean_label", "int64", "class", "true label, -1 where it is unknown"),
    Column("loss", "float64", "nats", "loss of the example at w against the observed label"),
    Column("margin", "float64", "logits", "logit of the observed label minus the largest other logit (t*f for one logit)"),
    Column("predicted", "int64", "class", "class with the largest logit at w"),
    Column("residual_norm", "float64", "", "||r(w)||, the logit scale"),
    Column("gradient_norm", "float64", "", "||J(w)^T r(w)|| over all trainable weights"),
    Column("step_residual_norm", "float64", "", "||r(theta_L)|| of the method's own step term"),
    Column("step_gradient_norm", "float64", "", "||J(theta_J)^T r(theta_L)|| of the method's own step term"),
    Column("logit_weight", "float64", "ratio", "||r(w+eps_i)|| / ||r(w)|| at the tracked rho"),
    Column("jacobian_weight", "float64", "ratio", "||J(w+eps_i)^T r(w)|| / ||J(w)^T r(w)|| at the tracked rho"),
    Column("one_sam_gradient_norm", "float64", "", "||J(w+eps_i)^T r(w+eps_i)||: 1-SAM's step term at these weights"),
    Column(
        "sam_gradient_norm", "float64", "", "||J(w+eps)^T r(w+eps)||, one eps for the probe as a batch: batch SAM's step term"
    ),
    Column("l_sam_gradient_norm", "float64", "", "||J(w)^T r(w+eps_i)||: L-SAM's step term at these weights"),
    Column("j_sam_gradient_norm", "float64", "", "||J(w+eps_i)^T r(w)||: J-SAM's step term at these weights"),
    Column("sharpness", "float64", "nats", "l_i(w+eps_i) - l_i(w) at the tracked rho"),
)


@dataclass(frozen=True)
class Metric:
    """One documented metric of the tidy table: its name, unit, meaning and the splits and groups it is written for."""

    name: str
    unit: str
    meaning: str
    splits: tuple[str, ...]
    groups: tuple[str, ...] = GROUPS


_EVALUATED = ("train", "val", "test")
_PROBE = ("probe",)
_ALL = ("all",)

METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "fraction", "predicted class equals the OBSERVED label (test labels are clean)", _EVALUATED),
        Metric("loss", "nats", "mean loss against the observed label", _EVALUATED),
        Metric("margin", "logits", "mean margin of the observed label", _EVALUATED),
        Metric("count", "examples", "number of examples in the group", _EVALUATED),
        Metric("predicts_true", "fraction", "noisy training examples given their true class", ("train",), ("noisy",)),
        Metric(
            "predicts_observed",
            "fraction",
            "noisy training examples given their wrong label: memorised",
            ("train",),
            ("noisy",),
        ),
        Metric("predicts_other", "fraction", "noisy training examples given any other class", ("train",), ("noisy",)),
        Metric("residual_norm", "", "mean ||r(w)||", _PROBE),
        Metric("gradient_norm", "", "mean ||J(w)^T r(w)||", _PROBE),
        Metric("step_residual_norm", "", "mean ||r(theta_L)|| of the method's own step term", _PROBE),
        Metric("step_gradient_norm", "", "mean ||J(theta_J)^T r(theta_L)|| of the method's own step term", _PROBE),
        Metric("one_sam_gradient_norm", "", "mean ||J(w+eps_i)^T r(w+eps_i)|| at the tracked rho", _PROBE),
        Metric(
            "sam_gradient_norm",
            "",
            "mean ||J(w+eps)^T r(w+eps)||, one eps for the probe as a batch, at the tracked rho",
            _PROBE,
        ),
        Metric("l_sam_gradient_norm", "", "mean ||J(w)^T r(w+eps_i)|| at the tracked rho", _PROBE),
        Metric("j_sam_gradient_norm", "", "mean ||J(w+eps_i)^T r(w)|| at the tracked rho", _PROBE),
        Metric("logit_weight", "ratio", "mean ||r(w+eps_i)|| / mean ||r(w)||", _PROBE),
        Metric("logit_weight_median", "ratio", "median over examples of ||r(w+eps_i)|| / ||r(w)||", _PROBE),
        Metric("jacobian_weight", "ratio", "mean ||J(w+eps_i)^T r(w)|| / mean ||J(w)^T r(w)||", _PROBE),
        Metric("jacobian_weight_median", "ratio", "median over examples of ||J(w+eps_i)^T r(w)|| / ||J(w)^T r(w)||", _PROBE),
        Metric(
            "zero_residuals", "examples", "examples whose residual is exactly zero: left out of weights and medians", _PROBE
        ),
        Metric("sharpness", "nats", "mean l_i(w+eps_i) - l_i(w): per-example sharpness", _PROBE),
        Metric("batch_sharpness", "nats", "loss(w + rho g/||g||) - loss(w) of the probe set as one batch", _PROBE, _ALL),
        Metric("gradient_cosine", "cosine", "between the mean gradient of clean and of noisy examples", _PROBE, _ALL),
        Metric(
            "step_cosine",
            "cosine",
            "between the group's mean gradient at w and the method's step on the probe set",
            _PROBE,
            ("clean", "noisy"),
        ),
        Metric("hidden_activation_norm", "", "mean norm of the last hidden activation", _PROBE),
        Metric("feature_rank", "directions", "participation ratio of the centred last hidden activations", _PROBE, _ALL),
        Metric("last_layer_norm", "", "Frobenius norm of the last layer's weight", _PROBE, _ALL),
        Metric("weight_norm", "", "norm of all trainable weights", _PROBE, _ALL),
        Metric("distance_from_initialisation", "", "norm of all trainable weights minus their initial values", _PROBE, _ALL),
        Metric(
            "visited_gradient_norm",
            "",
            "mean ||J(w)^T r(w)||, each example at the weights at which it was visited since the last measurement",
            ("train",),
        ),
        Metric(
            "forward_passes",
            "batch forwards per step",
            "forward examples / batch size, mean since the last measurement",
            ("train",),
            _ALL,
        ),
        Metric(
            "backward_passes",
            "batch backwards per step",
            "backward examples / batch size, mean since the last measurement",
            ("train",),
            _ALL,
        ),
        Metric(
            "step_seconds",
            "seconds",
            "mean wall time of a training step since the last measurement; never part of a bit comparison",
            ("train",),
            _ALL,
        ),
    )
}
