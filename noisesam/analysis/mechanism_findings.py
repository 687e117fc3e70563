"""Sentences on the mechanism: gradient weight at equal weights, and the norms that the Jacobian part keeps small."""

from __future__ import annotations

import math
import sys

from noisesam.analysis.comparison import by_seed, early_ratio
from noisesam.analysis.contest import Contest
from noisesam.analysis.curves import norms
from noisesam.analysis.inputs import Tables
from noisesam.analysis.statistics import Interval, interval
from noisesam.analysis.weights import RULES, gradient_weight_at_equal_weights
from noisesam.analysis.wording import seeds

_NORMS = {"hidden_activation_norm": "last hidden activation", "last_layer_norm": "last layer's weight"}
LONGEST_RATIO = 1e5
"""A larger ratio is written with an exponent."""


def equal_weights(tables: Tables, comparison: Contest) -> list[str]:
    """Say how much every rule weighs clean against noisy examples early, at the baseline's own weights, relative to SGD."""
    weight = gradient_weight_at_equal_weights(tables, comparison.baseline)
    weight = weight[weight["setting"] == comparison.settings[comparison.baseline]]
    lengths = tables.facts.set_index("run")["epochs"]
    measured = tables.metrics.groupby("run")["epoch"].max()
    said = []
    for rule in [rule for rule in RULES if rule != "sgd"]:
        relative = []
        for run, own in weight[weight["rule"] == rule].groupby("run", sort=False):
            length = float(lengths[run])
            relative.append(early_ratio(own, length if length == length else float(measured[run]), kind="relative_ratio"))
        found = interval(relative, comparison.confidence)
        if found.n:
            said.append(f"{rule} {_factor(found, 'towards the correctly labelled', 'towards the wrongly labelled')}")
    if not said:
        return []
    return [
        f"At the weights of {comparison.baseline} early in training, the step of each rule weighs correctly against wrongly "
        f"labelled examples, as a multiple of sgd's own weighing: {'; '.join(said)}."
    ]


def final_norms(tables: Tables, comparison: Contest) -> list[str]:
    """Say how the norms of the last hidden activation and of the last layer end, as multiples of the baseline's."""
    curves = norms(tables)
    sentences = []
    for column, what in _NORMS.items():
        known = curves[curves[column].notna()]
        final = known.loc[known.groupby("run")["step"].idxmax()] if len(known) else known
        theirs = by_seed(final, comparison.baseline, comparison.settings[comparison.baseline], column)
        said = []
        for method in ("1-sam", "j-sam", "l-sam", "reg-sgd"):
            if method not in comparison.settings:
                continue
            ours = by_seed(final, method, comparison.settings[method], column)
            shared = [seed for seed in ours if theirs.get(seed, 0) > 0 and ours[seed] > 0]
            logs = interval([math.log(ours[seed] / theirs[seed]) for seed in shared], comparison.confidence)
            if logs.n:
                found = logs._replace(**{part: _exp(getattr(logs, part)) for part in ("mean", "low", "high")})
                said.append(f"{comparison.name(method)} {_factor(found, 'larger', 'smaller')}")
        if said:
            sentences.append(
                f"At the end of training the norm of the {what}, as a multiple of {comparison.baseline}'s: {'; '.join(said)}."
            )
    return sentences


def _exp(value: float) -> float:
    """Return e to this power, infinite where no number is as large."""
    return math.exp(value) if value < math.log(sys.float_info.max) else math.inf


def _factor(found: Interval, up: str, down: str) -> str:
    """Word a ratio by what its interval allows; a single seed gives no interval."""
    if found.n == 1:
        return f"{_ratio(found.mean)} (one seed, so no interval: not yet a finding)"
    text = up if found.low > 1 else down if found.high < 1 else "not to be told from 1"
    return f"{_ratio(found.mean)}, {text} ({_ratio(found.low)} to {_ratio(found.high)}, {seeds(found.n)})"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < LONGEST_RATIO else f"{value:.3g}"
