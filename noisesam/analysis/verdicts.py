"""What the tables say, in sentences. Every sentence can come out either way; none assumes its outcome."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import pandas as pd

from noisesam.analysis.comparison import by_seed, early_ratio, per_run
from noisesam.analysis.curves import norms
from noisesam.analysis.inputs import Runs, Tables, as_tables
from noisesam.analysis.statistics import Interval, interval, paired_difference
from noisesam.analysis.weights import RULES, gradient_weight_at_equal_weights

_STOPPING = {
    "validation": "stopped where the noisy validation accuracy is highest",
    "oracle": "stopped at its highest test accuracy (an upper bound, chosen on the test set)",
    "last": "at the end of training",
}
_NORMS = {"hidden_activation_norm": "last hidden activations", "last_layer_norm": "last-layer weights"}


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """One experiment: the settings that are compared, and their numbers per run."""

    per_run: pd.DataFrame
    settings: Mapping[str, str]
    """Method -> the setting that stands for it."""
    stopping: str
    """The selection that early stopping goes by: validation, or oracle without a validation set."""
    baseline: str
    confidence: float

    def values_of(self, method: str, column: str) -> dict[int, float]:
        return by_seed(self.per_run, method, self.settings[method], column)

    def mean(self, method: str, column: str) -> Interval:
        return interval(self.values_of(method, column).values(), self.confidence)

    def gain(self, method: str, column: str, over: str | None = None) -> Interval:
        return paired_difference(self.values_of(method, column), self.values_of(over or self.baseline, column), self.confidence)

    def name(self, method: str) -> str:
        setting = self.settings[method]
        return f"{method} ({setting})" if setting else method


def findings(runs: Runs | Tables, baseline: str = "sgd", confidence: float = 0.95) -> list[str]:
    """Say in plain language what the runs show, every number with its interval and its number of seeds.

    A difference counts as found only if its interval excludes zero; with one seed the numbers are given without a verdict.
    Where a method has several settings, the one with the highest mean accuracy on the noisy validation examples stands for it
    (on the test examples where there is no validation set, which is then said).

    Args:
        runs: A collection, a run, or the tidy metrics.
        baseline: The method that the others are compared with.
        confidence: Of the intervals.

    Returns:
        Sentences, in this order for each experiment: what was compared, and whether the baseline fits wrong labels at all;
        the gain of 1-sam and of batch sam at early stopping and at the end; which part keeps the gain (l-sam, j-sam, reg-sgd);
        wrong labels memorised; gradient weight at equal weights; norms of activations and of the last layer. What was not run
        is left out.

    Example:
        >>> front = {"setting": "", "split": "test", "group": "all", "metric": "accuracy", "step": 1, "epoch": 1.0}
        >>> rows = [front | {"run": f"{m}{s}", "method": m, "seed": s, "value": v + s / 1000}
        ...         for m, v in [("sgd", 0.8), ("1-sam", 0.9)] for s in (0, 1, 2)]
        >>> print(findings(pd.DataFrame(rows))[-1])
        At the end of training 1-sam reaches 90.1% test accuracy, sgd 80.1%: 1-sam is ahead by 10.0 points
        (95% interval 10.0 to 10.0, 3 seeds).
    """
    tables = as_tables(runs)
    values = per_run(tables)
    experiments = tables.facts["experiment"].unique()
    sentences = _unfinished(tables)
    for experiment in experiments:
        facts = tables.facts[tables.facts["experiment"] == experiment]
        own = Tables(
            tables.metrics[tables.metrics["run"].isin(facts["run"])],
            None if tables.examples is None else tables.examples[tables.examples["run"].isin(facts["run"])],
            facts,
        )
        said = _of_one_experiment(own, values[values["run"].isin(facts["run"])], baseline, confidence)
        label = facts["experiment_label"].iloc[0]
        prefix = f"[{label or 'same experiment'}] " if len(experiments) > 1 else ""
        sentences += [prefix + sentence for sentence in said]
    return sentences


def _unfinished(tables: Tables) -> list[str]:
    statuses = tables.facts["status"]
    count = int(statuses.isin(["running", "failed"]).sum())
    if not count:
        return []
    return [
        f"{count} of {len(statuses)} runs did not finish; their last evaluation stands for the end of training, "
        "so read every number on the end with that in mind."
    ]


def _of_one_experiment(tables: Tables, values: pd.DataFrame, baseline: str, confidence: float) -> list[str]:
    stopping = "validation" if values["validation_test_accuracy"].notna().any() else "oracle"
    settings, notes = _representatives(values, stopping)
    comparison = _Comparison(values, settings, stopping, baseline, confidence)
    sentences = [_compared(comparison), *notes]
    if baseline not in settings:
        sentences.append(f"There is no run of {baseline}, so nothing is said on gains.")
    else:
        sentences += _baseline_fits_no_noise(comparison)
        sentences += _gains(comparison)
        sentences += _parts(comparison)
        sentences += _memorised(comparison)
        sentences += _equal_weights(tables, comparison)
        sentences += _norms(tables, comparison)
    return sentences


def _representatives(values: pd.DataFrame, stopping: str) -> tuple[dict[str, str], list[str]]:
    """Choose one setting per method, by validation accuracy where there is one, and say so."""
    criterion = "validation_validation_accuracy" if stopping == "validation" else "oracle_test_accuracy"
    means = values.groupby(["method", "setting"], sort=False)[criterion].mean().reset_index()
    chosen, notes = {}, []
    for method, own in means.groupby("method", sort=False):
        scores = own[criterion].fillna(-math.inf).to_numpy()
        chosen[str(method)] = str(own["setting"].iloc[int(scores.argmax())])
        if len(own) > 1:
            by = "on the noisy validation examples" if stopping == "validation" else "on the TEST examples, for want of others,"
            notes.append(
                f"Of {len(own)} settings of {method}, {chosen[str(method)] or 'the first'} stands for it: "
                f"its mean accuracy {by} is the highest."
            )
    return chosen, notes


def _compared(comparison: _Comparison) -> str:
    counts = {method: comparison.mean(method, "last_test_accuracy").n for method in comparison.settings}
    listed = ", ".join(f"{comparison.name(method)} with {_seeds(n)}" for method, n in counts.items())
    return f"Compared: {listed}. Early stopping is {_STOPPING[comparison.stopping].removeprefix('stopped ')}."


def _baseline_fits_no_noise(comparison: _Comparison) -> list[str]:
    """Warn of a setting in which the baseline never begins to fit the wrong labels: there is nothing to resist."""
    baseline = comparison.baseline
    own = comparison.per_run[comparison.per_run["method"] == baseline]
    own = own[own["setting"] == comparison.settings[baseline]]
    tested = own[own["onset_reached"].notna() & own["last_noisy_fitted"].notna()]
    if tested.empty or tested["onset_reached"].astype(bool).any():
        return []
    return [
        f"{comparison.name(baseline)} never fits the wrong labels beyond chance here ({_seeds(len(tested))}), so this setting "
        "tells little about resistance to them: train longer, or with a larger model or step size."
    ]


def _gains(comparison: _Comparison) -> list[str]:
    sentences = []
    for method in ("1-sam", "sam"):
        if method in comparison.settings and method != comparison.baseline:
            for selection in (comparison.stopping, "last"):
                sentences += _accuracy(comparison, method, selection)
    if {"1-sam", "sam"} <= set(comparison.settings):
        sentences += _batch_against_single(comparison)
    return sentences


def _accuracy(comparison: _Comparison, method: str, selection: str) -> list[str]:
    column = f"{selection}_test_accuracy"
    gain = comparison.gain(method, column)
    if not gain.n:
        return []
    ours, theirs = comparison.mean(method, column).mean, comparison.mean(comparison.baseline, column).mean
    where = _STOPPING[selection]
    return [
        f"{where[0].upper()}{where[1:]} {comparison.name(method)} reaches {_percent(ours)} test accuracy, "
        f"{comparison.name(comparison.baseline)} {_percent(theirs)}: "
        + _verdict(
            gain,
            up=f"{method} is ahead by {_points(gain.mean)}",
            down=f"{method} is behind by {_points(-gain.mean)}",
            open_=f"the difference of {_points(gain.mean)} cannot be told from none",
            confidence=comparison.confidence,
        )
    ]


def _batch_against_single(comparison: _Comparison) -> list[str]:
    column = f"{comparison.stopping}_test_accuracy"
    difference = comparison.gain("sam", column, over="1-sam")
    if not difference.n:
        return []
    gains = {method: comparison.gain(method, column).mean for method in ("sam", "1-sam")}
    return [
        f"At early stopping batch sam gains {_points(gains['sam'])} over {comparison.baseline} "
        f"and 1-sam {_points(gains['1-sam'])}: "
        + _verdict(
            difference,
            up=f"batch sam gains {_points(difference.mean)} more than 1-sam",
            down=f"batch sam gains {_points(-difference.mean)} less than 1-sam",
            open_="the two cannot be told apart",
            confidence=comparison.confidence,
        )
    ]


def _parts(comparison: _Comparison) -> list[str]:
    """Which part of 1-SAM keeps its gain: the logit scale, the Jacobian, or the penalty that stands in for it."""
    parts = [method for method in ("l-sam", "j-sam", "reg-sgd") if method in comparison.settings]
    if "1-sam" not in comparison.settings or not parts:
        return []
    sentences = []
    for selection in (comparison.stopping, "last"):
        column = f"{selection}_test_accuracy"
        whole = comparison.gain("1-sam", column)
        if not whole.n:
            continue
        when = "At early stopping" if selection != "last" else "At the end of training"
        gains = {method: comparison.gain(method, column) for method in parts}
        listed = ", ".join(f"{comparison.name(m)} {_signed(g.mean)} ({_spread(g)})" for m, g in gains.items() if g.n)
        if not listed:
            continue
        if not (whole.mean > 0 and (whole.n == 1 or whole.low > 0)):
            sentences.append(
                f"{when} 1-sam has no gain over {comparison.baseline} that could be divided into parts "
                f"({_signed(whole.mean)}, {_spread(whole)}); the parts alone change the test accuracy by: {listed}."
            )
            continue
        shares = {method: gain.mean / whole.mean for method, gain in gains.items() if gain.n}
        kept = ", ".join(f"{method} keeps {_share(share)}" for method, share in shares.items())
        sentences.append(f"{when}, of 1-sam's gain of {_points(whole.mean)} ({_spread(whole)}), {kept}. Gains: {listed}.")
        sentences += _logit_or_jacobian(comparison, column, when)
    return sentences


def _logit_or_jacobian(comparison: _Comparison, column: str, when: str) -> list[str]:
    if not {"l-sam", "j-sam"} <= set(comparison.settings):
        return []
    difference = comparison.gain("j-sam", column, over="l-sam")
    if not difference.n:
        return []
    return [
        f"{when} "
        + _verdict(
            difference,
            up=f"the Jacobian part (j-sam) is worth {_points(difference.mean)} more than the logit-scale part (l-sam)",
            down=f"the logit-scale part (l-sam) is worth {_points(-difference.mean)} more than the Jacobian part (j-sam)",
            open_="the Jacobian part (j-sam) and the logit-scale part (l-sam) cannot be told apart",
            confidence=comparison.confidence,
        )
    ]


def _memorised(comparison: _Comparison) -> list[str]:
    sentences = []
    for selection in (comparison.stopping, "last"):
        column = f"{selection}_noisy_fitted"
        means = {method: comparison.mean(method, column) for method in comparison.settings}
        listed = ", ".join(f"{comparison.name(method)} {_percent(found.mean)}" for method, found in means.items() if found.n)
        if not listed:
            continue
        when = "at early stopping" if selection != "last" else "at the end of training"
        sentence = f"Wrong labels memorised {when}: {listed}"
        if "1-sam" in comparison.settings:
            difference = comparison.gain("1-sam", column)
            if difference.n:
                sentence += "; " + _verdict(
                    difference,
                    up=f"1-sam memorises more of them than {comparison.baseline}, by {_points(difference.mean)}",
                    down=f"1-sam memorises fewer of them than {comparison.baseline}, by {_points(-difference.mean)}",
                    open_=f"1-sam and {comparison.baseline} cannot be told apart in this",
                    confidence=comparison.confidence,
                ).removesuffix(".")
        sentences.append(sentence + ".")
    return sentences


def _equal_weights(tables: Tables, comparison: _Comparison) -> list[str]:
    """Early clean/noisy ratio of every rule at the baseline's own weights, relative to plain SGD's ratio there."""
    weight = gradient_weight_at_equal_weights(tables, comparison.baseline)
    weight = weight[weight["setting"] == comparison.settings[comparison.baseline]]
    lengths = tables.facts.set_index("run")["epochs"]
    measured = tables.metrics.groupby("run")["epoch"].max()
    sentences = []
    for rule in [rule for rule in RULES if rule != "sgd"]:
        relative = []
        for run, own in weight[weight["rule"] == rule].groupby("run", sort=False):
            length = float(lengths[run])
            relative.append(early_ratio(own, length if length == length else float(measured[run]), kind="relative_ratio"))
        found = interval(relative, comparison.confidence)
        if not found.n:
            continue
        above_one = found._replace(mean=found.mean - 1, low=found.low - 1, high=found.high - 1)
        sentences.append(
            f"At the weights of {comparison.baseline} early in training, the {rule} step weighs correctly against wrongly "
            f"labelled examples {found.mean:.3f} times as much as the sgd step does: "
            + _verdict(
                above_one,
                up="it shifts weight to the correctly labelled",
                down="it shifts weight to the wrongly labelled",
                open_="a shift cannot be told from none",
                confidence=comparison.confidence,
                bounds=f"{found.low:.3f} to {found.high:.3f}",
            )
        )
    return sentences


def _norms(tables: Tables, comparison: _Comparison) -> list[str]:
    curves = norms(tables)
    sentences = []
    for column, what in _NORMS.items():
        known = curves[curves[column].notna()]
        final = known.loc[known.groupby("run")["step"].idxmax()] if len(known) else known
        theirs = by_seed(final, comparison.baseline, comparison.settings[comparison.baseline], column)
        for method in ("1-sam", "j-sam", "l-sam", "reg-sgd"):
            if method not in comparison.settings:
                continue
            ours = by_seed(final, method, comparison.settings[method], column)
            logs = {
                key: math.log(ours[key] / theirs[key]) for key in ours if key in theirs and ours[key] > 0 and theirs[key] > 0
            }
            found = interval(logs.values(), comparison.confidence)
            if not found.n:
                continue
            factor, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
            sentences.append(
                f"At the end of training the norm of the {what} of {comparison.name(method)} is {factor:.3f} times that of "
                f"{comparison.baseline}: "
                + _verdict(
                    found,
                    up="larger",
                    down="smaller",
                    open_="not to be told apart",
                    confidence=comparison.confidence,
                    bounds=f"{low:.3f} to {high:.3f}",
                )
            )
    return sentences


def _verdict(found: Interval, *, up: str, down: str, open_: str, confidence: float, bounds: str = "") -> str:
    """Close a sentence by what the interval allows: up, down, or neither; a single seed gives no interval."""
    if found.n == 1:
        direction = up if found.mean > 0 else down if found.mean < 0 else "no difference"
        return f"{direction} (one seed, so no interval: not yet a finding)."
    text = up if found.low > 0 else down if found.high < 0 else open_
    span = bounds or f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"{text} ({100 * confidence:g}% interval {span}, {_seeds(found.n)})."


def _spread(found: Interval) -> str:
    return "one seed" if found.n == 1 else f"{100 * found.low:.1f} to {100 * found.high:.1f}, {_seeds(found.n)}"


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def _points(difference: float) -> str:
    value = f"{100 * difference:.1f}"
    return f"{'0.0' if value == '-0.0' else value} points"


def _signed(difference: float) -> str:
    value = f"{100 * difference:+.1f}"
    return f"{'+0.0' if value == '-0.0' else value} points"


def _share(share: float) -> str:
    if share < -0.005:
        return f"none of it (it loses {-100 * share:.0f}% as much)"
    return f"{abs(100 * share):.0f}%"
