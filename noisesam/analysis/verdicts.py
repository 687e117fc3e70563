"""What the tables say, in sentences. Every sentence can come out either way; none assumes its outcome."""

from __future__ import annotations

import math

import pandas as pd

from noisesam.analysis.comparison import per_run
from noisesam.analysis.contest import Contest
from noisesam.analysis.inputs import Runs, Tables, as_tables
from noisesam.analysis.mechanism_findings import equal_weights, final_norms
from noisesam.analysis.wording import percent, points, seeds, share, signed, spread, verdict

_STOPPING = {
    "validation": "stopped where the noisy validation accuracy is highest",
    "oracle": "stopped at its highest test accuracy (an upper bound, chosen on the test set)",
    "last": "at the end of training",
}


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


def unfinished(runs: Runs) -> list[str]:
    """Say how many of the runs did not finish, in one sentence; nothing if all did.

    Args:
        runs: A run, runs, or a `RunCollection`.

    Returns:
        At most one sentence.

    Example:
        >>> row = {"setting": "", "split": "test", "group": "all", "metric": "accuracy", "step": 1, "epoch": 1.0}
        >>> unfinished(pd.DataFrame([row | {"run": "a", "method": "sgd", "seed": 0, "value": 0.8}]))
        []
    """
    return _unfinished(as_tables(runs))


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
    stopping = "validation" if values["validation_epoch"].notna().any() else "oracle"
    settings, notes = _representatives(values, stopping)
    comparison = Contest(values, settings, stopping, baseline, confidence)
    sentences = [_compared(comparison), *notes]
    if baseline not in settings:
        sentences.append(f"There is no run of {baseline}, so nothing is said on gains.")
    else:
        sentences += _baseline_fits_no_noise(comparison)
        sentences += _gains(comparison)
        sentences += _parts(comparison)
        sentences += _memorised(comparison)
        sentences += equal_weights(tables, comparison)
        sentences += final_norms(tables, comparison)
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


def _compared(comparison: Contest) -> str:
    counts = {method: len(comparison.values_of(method, "last_epoch")) for method in comparison.settings}
    listed = ", ".join(f"{comparison.name(method)} with {seeds(n)}" for method, n in counts.items())
    if comparison.per_run["last_test_accuracy"].isna().all():
        return f"Compared: {listed}. There are no test data, so nothing is said on test accuracy."
    return f"Compared: {listed}. Early stopping is {_STOPPING[comparison.stopping].removeprefix('stopped ')}."


def _baseline_fits_no_noise(comparison: Contest) -> list[str]:
    """Warn of a setting in which the baseline never begins to fit the wrong labels: there is nothing to resist."""
    baseline = comparison.baseline
    own = comparison.per_run[comparison.per_run["method"] == baseline]
    own = own[own["setting"] == comparison.settings[baseline]]
    tested = own[own["onset_reached"].notna() & own["last_noisy_fitted"].notna()]
    if tested.empty or tested["onset_reached"].astype(bool).any():
        return []
    return [
        f"{comparison.name(baseline)} never fits the wrong labels beyond chance here ({seeds(len(tested))}), so this setting "
        "tells little about resistance to them: train longer, or with a larger model or step size."
    ]


def _gains(comparison: Contest) -> list[str]:
    sentences = []
    for method in ("1-sam", "sam"):
        if method in comparison.settings and method != comparison.baseline:
            for selection in (comparison.stopping, "last"):
                sentences += _accuracy(comparison, method, selection)
    if {"1-sam", "sam"} <= set(comparison.settings):
        sentences += _batch_against_single(comparison)
    return sentences


def _accuracy(comparison: Contest, method: str, selection: str) -> list[str]:
    column = f"{selection}_test_accuracy"
    gain = comparison.gain(method, column)
    if not gain.n:
        return []
    ours, theirs = comparison.mean(method, column).mean, comparison.mean(comparison.baseline, column).mean
    where = _STOPPING[selection]
    return [
        f"{where[0].upper()}{where[1:]} {comparison.name(method)} reaches {percent(ours)} test accuracy, "
        f"{comparison.name(comparison.baseline)} {percent(theirs)}: "
        + verdict(
            gain,
            up=f"{method} is ahead by {points(gain.mean)}",
            down=f"{method} is behind by {points(-gain.mean)}",
            open_=f"the difference of {points(gain.mean)} cannot be told from none",
            confidence=comparison.confidence,
        )
    ]


def _batch_against_single(comparison: Contest) -> list[str]:
    column = f"{comparison.stopping}_test_accuracy"
    difference = comparison.gain("sam", column, over="1-sam")
    if not difference.n:
        return []
    gains = {method: comparison.gain(method, column).mean for method in ("sam", "1-sam")}
    return [
        f"At early stopping batch sam gains {points(gains['sam'])} over {comparison.baseline} "
        f"and 1-sam {points(gains['1-sam'])}: "
        + verdict(
            difference,
            up=f"batch sam gains {points(difference.mean)} more than 1-sam",
            down=f"batch sam gains {points(-difference.mean)} less than 1-sam",
            open_="the two cannot be told apart",
            confidence=comparison.confidence,
        )
    ]


def _parts(comparison: Contest) -> list[str]:
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
        listed = ", ".join(f"{comparison.name(m)} {signed(g.mean)} ({spread(g)})" for m, g in gains.items() if g.n)
        if not listed:
            continue
        if not (whole.mean > 0 and (whole.n == 1 or whole.low > 0)):
            sentences.append(
                f"{when} 1-sam has no gain over {comparison.baseline} that could be divided into parts "
                f"({signed(whole.mean)}, {spread(whole)}); the parts alone change the test accuracy by: {listed}."
            )
            continue
        shares = {method: gain.mean / whole.mean for method, gain in gains.items() if gain.n}
        kept = ", ".join(f"{method} keeps {share(part)}" for method, part in shares.items())
        sentences.append(f"{when}, of 1-sam's gain of {points(whole.mean)} ({spread(whole)}), {kept}. Gains: {listed}.")
        sentences += _logit_or_jacobian(comparison, column, when)
    return sentences


def _logit_or_jacobian(comparison: Contest, column: str, when: str) -> list[str]:
    if not {"l-sam", "j-sam"} <= set(comparison.settings):
        return []
    difference = comparison.gain("j-sam", column, over="l-sam")
    if not difference.n:
        return []
    return [
        f"{when} "
        + verdict(
            difference,
            up=f"the Jacobian part (j-sam) is worth {points(difference.mean)} more than the logit-scale part (l-sam)",
            down=f"the logit-scale part (l-sam) is worth {points(-difference.mean)} more than the Jacobian part (j-sam)",
            open_="the Jacobian part (j-sam) and the logit-scale part (l-sam) cannot be told apart",
            confidence=comparison.confidence,
        )
    ]


def _memorised(comparison: Contest) -> list[str]:
    sentences = []
    for selection in (comparison.stopping, "last"):
        column = f"{selection}_noisy_fitted"
        means = {method: comparison.mean(method, column) for method in comparison.settings}
        listed = ", ".join(f"{comparison.name(method)} {percent(found.mean)}" for method, found in means.items() if found.n)
        if not listed:
            continue
        when = "at early stopping" if selection != "last" else "at the end of training"
        sentence = f"Wrong labels memorised {when}: {listed}"
        if "1-sam" in comparison.settings:
            difference = comparison.gain("1-sam", column)
            if difference.n:
                sentence += "; " + verdict(
                    difference,
                    up=f"1-sam memorises more of them than {comparison.baseline}, by {points(difference.mean)}",
                    down=f"1-sam memorises fewer of them than {comparison.baseline}, by {points(-difference.mean)}",
                    open_=f"1-sam and {comparison.baseline} cannot be told apart in this",
                    confidence=comparison.confidence,
                ).removesuffix(".")
        sentences.append(sentence + ".")
    return sentences
