"""Gradient weight of correctly against wrongly labelled examples, and of the loss: the heart of the mechanism."""

from __future__ import annotations

import numpy as np
import pandas as pd

from noisesam.analysis.inputs import FRONT, TIME, Runs, Tables, as_tables, in_front, wide
from noisesam.errors import InputError, unknown_name

QUANTITIES = (
    "step_gradient_norm",
    "gradient_norm",
    "step_residual_norm",
    "residual_norm",
    "sam_gradient_norm",
    "one_sam_gradient_norm",
    "l_sam_gradient_norm",
    "j_sam_gradient_norm",
)
RULES = {
    "sgd": "gradient_norm",
    "sam": "sam_gradient_norm",
    "1-sam": "one_sam_gradient_norm",
    "l-sam": "l_sam_gradient_norm",
    "j-sam": "j_sam_gradient_norm",
}
"""The step term of each rule, as the tracker measures it at the weights of whatever run it watches."""

_GROUPED = [
    "loss_low",
    "loss_high",
    "loss",
    "count",
    "logit_weight",
    "jacobian_weight",
    "logit_weight_median",
    "jacobian_weight_median",
    "left_out",
]


def gradient_weight(runs: Runs | Tables, quantity: str = "step_gradient_norm") -> pd.DataFrame:
    r"""Return how much the correctly and the wrongly labelled examples weigh, on each method's own path.

    `step_gradient_norm` is $\|J_i(\theta_J)^\top r_i(\theta_L)\|$ of the method's own step, `gradient_norm` is
    $\|J_i(w)^\top r_i(w)\|$ of plain SGD at the same weights. They are different things and never mixed. Along its own path
    a method that has fitted less noise has other examples left to fit, so ratios of different methods cross; compare at equal
    weights (`gradient_weight_at_equal_weights`), early, or cumulatively.

    Args:
        runs: A collection, a run, or the tidy metrics (which give no shares).
        quantity: A per-example norm, one of `QUANTITIES`.

    Returns:
        One row per run and probed step: run, method, setting, seed, step, epoch, quantity, clean, noisy (means of the groups),
        ratio (clean/noisy), clean_share, noisy_share (of the sum over the probe set), cumulative_ratio (ratio of the integrals
        over epochs from the first probe on, trapezoidal).

    Raises:
        InputError: An unknown quantity.

    Example:
        >>> front = {"run": "a", "method": "sgd", "setting": "", "seed": 0, "step": 5, "epoch": 1.0, "split": "probe"}
        >>> rows = [{"group": g, "metric": "step_gradient_norm", "value": v} for g, v in [("clean", 1.0), ("noisy", 4.0)]]
        >>> gradient_weight(pd.DataFrame([front | row for row in rows]))["ratio"].tolist()
        [0.25]
    """
    if quantity not in QUANTITIES:
        raise unknown_name("quantity", quantity, QUANTITIES)
    tables = as_tables(runs)
    frame = _group_means(tables, quantity)
    frame.insert(len(FRONT) + len(TIME), "quantity", quantity)
    cumulative = [_cumulative_ratio(own) for _, own in frame.groupby("run", sort=False)]
    frame["cumulative_ratio"] = pd.concat(cumulative) if cumulative else np.nan
    return frame


def _group_means(tables: Tables, quantity: str) -> pd.DataFrame:
    means = wide(tables, {group: ("probe", group, quantity) for group in ("clean", "noisy")})
    means = means[means[["clean", "noisy"]].notna().any(axis=1)].reset_index(drop=True)
    means["ratio"] = _divide(means["clean"], means["noisy"])
    sizes = means[["run", "step"]].merge(_probe_sizes(tables), on=["run", "step"], how="left")
    # An empty group has no mean and weighs nothing.
    clean = (means["clean"] * sizes["clean_count"]).mask(sizes["clean_count"] == 0, 0.0)
    noisy = (means["noisy"] * sizes["noisy_count"]).mask(sizes["noisy_count"] == 0, 0.0)
    means["clean_share"] = _divide(clean, clean + noisy)
    means["noisy_share"] = _divide(noisy, clean + noisy)
    return means


def _divide(numerator: pd.Series, denominator: pd.Series) -> pd.Series:
    return numerator / denominator.where(denominator > 0)


def _probe_sizes(tables: Tables) -> pd.DataFrame:
    """Count the probe's examples by group, per run and step: from the examples, or NaN where there are none."""
    columns = ["run", "step", "clean_count", "noisy_count"]
    examples = tables.examples
    if examples is None or examples.empty:
        counts = wide(tables, {f"{group}_count": ("probe", group, "count") for group in ("clean", "noisy")})
        return counts[columns]
    known = examples[examples["clean_label"] >= 0]
    flags = known[["run", "step"]].assign(
        clean_count=(known["label"] == known["clean_label"]).astype(float),
        noisy_count=(known["label"] != known["clean_label"]).astype(float),
    )
    return flags.groupby(["run", "step"], sort=False).sum().reset_index()[columns]


def _cumulative_ratio(own: pd.DataFrame) -> pd.Series:
    valid = own[own[["clean", "noisy"]].notna().all(axis=1)]
    epochs, clean, noisy = (valid[name].to_numpy(dtype=float) for name in ("epoch", "clean", "noisy"))
    widths = np.diff(epochs)
    areas = [np.cumsum(widths * (values[1:] + values[:-1]) / 2) for values in (clean, noisy)]
    ratio = valid["ratio"].copy()  # At the first probe nothing is integrated yet: the ratio itself.
    ratio.iloc[1:] = np.divide(areas[0], areas[1], out=np.full_like(widths, np.nan), where=areas[1] > 0)
    return ratio.reindex(own.index)


def gradient_weight_at_equal_weights(runs: Runs | Tables, baseline: str = "sgd") -> pd.DataFrame:
    """Return how much clean and noisy examples would weigh in the step of each rule at the very same weights.

    Only here do rules differ by the rule alone: the weights are those of the baseline's runs, at which the tracker measured
    the step terms of SGD, 1-SAM, L-SAM and J-SAM at the tracked rho.

    Args:
        runs: A collection, a run, or the tidy metrics (which give no shares).
        baseline: The method whose runs give the weights.

    Returns:
        One row per baseline run, probed step and rule: run, method, setting, seed, step, epoch, rule, clean, noisy, ratio,
        clean_share, noisy_share, relative_ratio (the ratio divided by that of rule "sgd" at the same weights). Empty if no
        run of the baseline is among the runs, or none was probed.

    Example:
        >>> front = {"run": "a", "method": "sgd", "setting": "", "seed": 0, "step": 5, "epoch": 1.0, "split": "probe"}
        >>> values = {("clean", "gradient_norm"): 1, ("noisy", "gradient_norm"): 4, ("clean", "j_sam_gradient_norm"): 1,
        ...           ("noisy", "j_sam_gradient_norm"): 2}
        >>> rows = [front | {"group": group, "metric": metric, "value": float(v)} for (group, metric), v in values.items()]
        >>> gradient_weight_at_equal_weights(pd.DataFrame(rows))[["rule", "relative_ratio"]].values.tolist()
        [['sgd', 1.0], ['j-sam', 2.0]]
    """
    tables = as_tables(runs)
    names = tables.facts.loc[tables.facts["method"] == baseline, "run"]
    own = Tables(
        tables.metrics[tables.metrics["run"].isin(names)],
        None if tables.examples is None else tables.examples[tables.examples["run"].isin(names)],
        tables.facts[tables.facts["method"] == baseline],
    )
    parts = []
    for order, (rule, quantity) in enumerate(RULES.items()):
        parts.append(_group_means(own, quantity).assign(rule=rule, order=order))
    frame = pd.concat(parts, ignore_index=True)
    plain = frame.loc[frame["rule"] == "sgd", ["run", "step", "ratio"]].rename(columns={"ratio": "plain"})
    frame = frame.merge(plain, on=["run", "step"], how="left")
    frame["relative_ratio"] = _divide(frame["ratio"], frame["plain"])
    frame = frame.sort_values(["order"], kind="stable")
    columns = ["rule", "clean", "noisy", "ratio", "clean_share", "noisy_share", "relative_ratio"]
    return in_front(own, frame.drop(columns=["method", "setting", "seed", "order"]), columns)


def weights_against_loss(runs: Runs | Tables, bins: int = 8) -> pd.DataFrame:
    r"""Return the logit weight and the Jacobian weight of examples of low and of high loss.

    The logit weight of a bin is $\sum_i \|r_i(w+\epsilon_i)\| / \sum_i \|r_i(w)\|$ over its examples, the Jacobian weight
    $\sum_i \|J_i(w+\epsilon_i)^\top r_i(w)\| / \sum_i \|J_i(w)^\top r_i(w)\|$: ratios of means, with the medians of the
    per-example ratios beside them. Bins are quantiles of the loss of all probe examples of one run and step, so the bins of
    the clean and of the noisy examples are the same.

    Args:
        runs: A collection or a run; the tidy metrics alone do not hold the examples.
        bins: How many bins, at least one.

    Returns:
        One row per run, probed step, group and occupied bin: run, method, setting, seed, step, epoch, group, bin, loss_low,
        loss_high (edges in nats), loss (mean), count, logit_weight, jacobian_weight, logit_weight_median,
        jacobian_weight_median, left_out (examples with a residual of exactly zero, or of which no weight was measured).

    Raises:
        InputError: A bare metrics table, or fewer than one bin.

    References:
        Baek, Kolter, Raghunathan (2024), "Why is SAM Robust to Label Noise?", arXiv 2405.03676.
    """
    if bins < 1:
        raise InputError(f"bins={bins}", expected="a whole number of at least 1")
    tables = as_tables(runs)
    if tables.examples is None:
        raise InputError(
            "A metrics table holds no examples", expected="saved runs", remedy="Hand in the RunCollection or the Run itself"
        )
    columns = ["group", "bin", *_GROUPED]
    examples = tables.examples[tables.examples["loss"].notna()].reset_index(drop=True)
    if examples.empty:
        return pd.DataFrame(columns=[*FRONT, *TIME, *columns])
    examples = _with_bins(examples, bins)
    known = examples["clean_label"] >= 0
    wrong = examples["label"] != examples["clean_label"]
    groups = {"all": examples, "clean": examples[known & ~wrong], "noisy": examples[known & wrong]}
    parts = [_bin_means(members).assign(group=name) for name, members in groups.items() if len(members)]
    return in_front(tables, pd.concat(parts, ignore_index=True), columns)


def _with_bins(examples: pd.DataFrame, bins: int) -> pd.DataFrame:
    number = np.zeros(len(examples), dtype=int)
    low, high = np.zeros(len(examples)), np.zeros(len(examples))
    for places in examples.groupby(["run", "step"], sort=False).indices.values():
        loss = examples["loss"].to_numpy(dtype=float)[places]
        edges = np.quantile(loss, np.linspace(0, 1, bins + 1))
        number[places] = np.searchsorted(edges[1:-1], loss, side="right")
        low[places], high[places] = edges[number[places]], edges[number[places] + 1]
    residual, gradient = examples["residual_norm"], examples["gradient_norm"]
    logit = examples["logit_weight"].where(residual > 0)
    jacobian = examples["jacobian_weight"].where(gradient > 0)
    return examples[["run", *TIME, "label", "clean_label", "loss"]].assign(
        bin=number,
        loss_low=low,
        loss_high=high,
        logit=logit,
        jacobian=jacobian,
        perturbed_residual=logit * residual,
        residual=residual.where(logit.notna()),
        perturbed_gradient=jacobian * gradient,
        gradient=gradient.where(jacobian.notna()),
        left_out=(~(residual > 0) | logit.isna()).astype("int64"),
    )


def _bin_means(members: pd.DataFrame) -> pd.DataFrame:
    grouped = members.groupby(["run", *TIME, "bin"], sort=False)
    sums = grouped[["perturbed_residual", "residual", "perturbed_gradient", "gradient"]].sum()
    result = grouped.agg(
        loss_low=("loss_low", "first"),
        loss_high=("loss_high", "first"),
        loss=("loss", "mean"),
        count=("loss", "size"),
        logit_weight_median=("logit", "median"),
        jacobian_weight_median=("jacobian", "median"),
        left_out=("left_out", "sum"),
    )
    result["logit_weight"] = _divide(sums["perturbed_residual"], sums["residual"])
    result["jacobian_weight"] = _divide(sums["perturbed_gradient"], sums["gradient"])
    return result.reset_index().sort_values(["run", "step", "bin"], kind="stable")
