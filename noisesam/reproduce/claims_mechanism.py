"""Claims on the mechanism: what is fitted when, which examples weigh, norms and sharpness (C3, C4, C5, C7, C12)."""

from __future__ import annotations

import itertools
import math

import numpy as np

from noisesam.analysis import Interval, interval
from noisesam.reproduce.decisions import CONFIDENCE, Part, above, not_below, rank_correlation, untested
from noisesam.reproduce.evidence import MAIN, Evidence
from noisesam.reproduce.findings import (
    FACTOR,
    J_SAM,
    ONE_SAM,
    SGD,
    Finding,
    conclude,
    gain_above,
    open_because,
)

MIN_METHODS = 4
"""A rank correlation over fewer methods says nothing."""
ORDERED = 0.5
"""The smallest rank correlation that counts as an order."""

_NORMS = {"hidden_activation_norm": "last hidden activation", "last_layer_norm": "last layer's weight"}
_SHARPNESS = {"sharpness": "per-example sharpness", "batch_sharpness": "batch sharpness"}


def fits_clean_first(evidence: Evidence) -> Finding:
    """C3: correctly labelled examples fitted before the onset of noise fitting, 1-SAM over SGD."""
    part = gain_above(evidence, ONE_SAM, SGD, column="fitted_before_noise")
    each = [Part(name, _clipped(evidence.mean(name, "fitted_before_noise"), 0.0), "share") for name in (ONE_SAM, SGD)]
    return conclude(part, *each)


def slower_decay(evidence: Evidence) -> Finding:
    """C4: the clean/noisy ratio of the step terms stays higher the larger rho, 1-SAM on its own path."""
    by_rho = _weight_ratios(evidence)
    beside = [Part(f"rho {rho:g}", interval(values.values(), CONFIDENCE), "factor") for rho, values in by_rho]
    if len(by_rho) < 2:
        return open_because("1-sam was not run, or its step terms not measured, with several rho", *beside)
    (small, first), (large, last) = by_rho[0], by_rho[-1]
    parts = [
        above(f"clean/noisy ratio with rho {large:g} over that with {small:g}", _difference(last, first), FACTOR, "factor")
    ]
    if len(by_rho) > 2:
        for (low, before), (high, after) in itertools.pairwise(by_rho):
            parts.append(not_below(f"from rho {low:g} to {high:g}", _difference(after, before), FACTOR, "factor"))
    return conclude(*parts, *beside)


def _weight_ratios(evidence: Evidence) -> list[tuple[float, dict[int, float]]]:
    """Return rho ascending with seed -> mean logarithm of the clean/noisy ratio; every rho, not the chosen one alone."""
    runs = evidence.runs
    own = runs[(runs["variant"] == MAIN) & (runs["method"] == ONE_SAM) & (runs["excluded"] == "")]
    own = own[own["log_weight_ratio"].notna() & (own["rho"] > 0)]
    found = []
    for rho in sorted({float(value) for value in own["rho"]}):
        rows = own[own["rho"] == rho]
        found.append(
            (rho, {int(seed): float(value) for seed, value in zip(rows["seed"], rows["log_weight_ratio"], strict=True)})
        )
    return found


def _difference(left: dict[int, float], right: dict[int, float]) -> Interval:
    return interval([left[seed] - right[seed] for seed in left if seed in right], CONFIDENCE)


def weighs_low_loss(evidence: Evidence) -> Finding:
    """C5: at SGD's weights, the logit weight of the quarter with the lowest loss over that of the highest."""
    found = evidence.mean(SGD, "low_loss_factor")
    if not found.n:
        return open_because("no tracked examples in the runs of sgd")
    return conclude(above("logit weight at the lowest over that at the highest losses", found, FACTOR, "factor"))


def keeps_norms_small(evidence: Evidence) -> Finding:
    """C7: norms of activations and last layer at the end of training, SGD's as a multiple of 1-SAM's and J-SAM's."""
    parts = []
    for method in (ONE_SAM, J_SAM):
        for column, name in _NORMS.items():
            what = f"{name}: sgd's as a multiple of {method}'s"
            lacking = evidence.lacking([method])
            theirs, ours = evidence.values(SGD, column), evidence.values(method, column)
            logs = [math.log(theirs[s] / ours[s]) for s in ours if ours[s] > 0 and theirs.get(s, math.nan) > 0]
            found = interval(logs, CONFIDENCE)
            parts.append(untested(what, lacking) if lacking else above(what, found, FACTOR, "factor"))
    return conclude(*parts)


def sharpness_orders(evidence: Evidence) -> Finding:
    """C12: rank correlation over methods of low sharpness with test accuracy at the end, seed by seed, both forms."""
    methods = [name for name in evidence.methods() if " + " not in name]  # Sharpness of another loss is another quantity.
    if len(methods) < MIN_METHODS:
        return open_because(f"{len(methods)} methods, {MIN_METHODS} needed to speak of an order")
    radii = {float(rho) for name in methods for rho in evidence.rows(name)["tracked_rho"]}
    if len(radii) != 1 or any(math.isnan(rho) for rho in radii):
        return open_because("sharpness was not measured at one rho for all methods")
    return conclude(*(_order(evidence, methods, column, name) for column, name in _SHARPNESS.items()))


def _order(evidence: Evidence, methods: list[str], column: str, name: str) -> Part:
    what = f"rank correlation of low {name} with test accuracy"
    sharpness = {method: evidence.values(method, column) for method in methods}
    accuracy = {method: evidence.values(method, "last_test_accuracy") for method in methods}
    correlations = []
    for seed in sorted(set().union(*sharpness.values())):
        pairs = [(sharpness[m].get(seed, math.nan), accuracy[m].get(seed, math.nan)) for m in methods]
        low = [-value for value, _ in pairs]
        if all(np.isfinite(pair).all() for pair in pairs):
            correlations.append(rank_correlation(low, [value for _, value in pairs]))
    return above(what, _clipped(interval(correlations, CONFIDENCE), -1.0), ORDERED, "plain")


def _clipped(found: Interval, least: float) -> Interval:
    """Cut an interval at the least and the largest value that are possible."""
    return found._replace(low=max(found.low, least), high=min(found.high, 1.0)) if found.n > 1 else found
