"""The runs of one control as two tables, what noisy validation labels choose among them, and differences by seed. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from noisesam.analysis import Interval, at_equal_clean_accuracy, early_stopping, interval, paired_difference
from noisesam.analysis.stopping import EVALUATION
from noisesam.errors import InputError
from noisesam.experiments import at_chance
from noisesam.reproduce.decisions import CONFIDENCE
from noisesam.reproduce.findings import SGD
from noisesam.runs import Run, RunCollection

ABOUT = ("run", "label", "method", "loss", "place", "rho", "activation", "weight", "seed", "excluded", "realised_rate")
STOPS = {"early": "early stopping", "last": "last epoch"}
"""Where two methods are compared: at the epoch chosen on noisy validation labels, and at the last one."""
LEVELS = (0.7, 0.8, 0.9)
"""Clean training accuracies at which methods are compared as well."""
UNFINISHED, CHANCE = "did not finish", "stayed at chance"

_FACTORS = {"width": ("model", "options", "hidden"), "learning-rate": ("optimizer", "lr"), "noise-rate": ("noise", "rate")}
_COSTS = [("train", "all", name) for name in ("forward_passes", "backward_passes", "step_seconds")]


@dataclass(frozen=True)
class ControlRuns:
    """The runs of one control.

    Attributes:
        name: Of the control.
        runs: One row per run: ABOUT (`label` names the point of the sweep, `place` is the value of what the control varies,
            `excluded` why a run does not count, or empty) and, for `early` and `last`, <stop>_test_accuracy,
            _validation_accuracy, _clean_fitted, _noisy_fitted; clean70_test_accuracy, clean80_..., clean90_...: where the run
            first fits so much of the correctly labelled images.
        metrics: The tidy metrics of these runs, and perhaps of others, `setting` the label.
    """

    name: str
    runs: pd.DataFrame
    metrics: pd.DataFrame

    @property
    def places(self) -> list[float]:
        """The values of the factor, ascending."""
        return sorted(float(place) for place in self.runs["place"].dropna().unique())

    @property
    def methods(self) -> list[str]:
        """Every method but SGD, in the order of the sweep."""
        return [str(name) for name in dict.fromkeys(self.runs["method"]) if name != SGD]

    def at(self, place: float) -> ControlRuns:
        """Return the runs with one value of the factor."""
        return ControlRuns(self.name, self.runs[self.runs["place"] == place], self.metrics)

    def labels(self, method: str | None = None, loss: str | None = None) -> list[str]:
        """Return the points of a method, of a loss (by its name or with its parameter), or of both."""
        own = self.runs
        if method is not None:
            own = own[own["method"] == method]
        if loss is not None:
            own = own[(own["loss"] == loss) | (own["loss"].str.partition("(")[0] == loss)]
        return [str(label) for label in dict.fromkeys(own["label"])]

    def best(self, labels: Sequence[str], by: str = "early_validation_accuracy") -> str:
        """Return the point with the highest noisy validation accuracy, mean over seeds; the first of equal ones.

        A point with a run that did not finish is not taken; one with a run that stayed at chance counts as it is.

        Args:
            labels: The points that are tried; none gives "".
            by: `early_validation_accuracy` (at each run's best epoch) or `last_validation_accuracy`.
        """
        best, highest = "", -math.inf
        for label in labels:
            own = self.runs[self.runs["label"] == label]
            mean = float(own[by].mean(skipna=False))
            if not (own["excluded"] == UNFINISHED).any() and mean > highest:
                best, highest = label, mean
        return best

    def best_of(self, method: str, loss: str | None = None) -> str:
        """Return the point that stands for a method, chosen at the best epoch."""
        return self.best(self.labels(method, loss))

    def values(self, label: str, column: str) -> dict[int, float]:
        """Return seed -> value over the runs of a point that count."""
        own = self.runs[(self.runs["label"] == label) & (self.runs["excluded"] == "")]
        return {int(seed): float(value) for seed, value in zip(own["seed"], own[column], strict=True)}

    def mean(self, label: str, column: str) -> Interval:
        """Return the mean over seeds with its 95% interval."""
        return interval(self.values(label, column).values(), CONFIDENCE)

    def gain(self, label: str, over: str, column: str) -> Interval:
        """Return the difference of two points, paired by seed, with its 95% interval."""
        return paired_difference(self.values(label, column), self.values(over, column), CONFIDENCE)

    def gains(self, label: str, over: str, column: str) -> dict[int, float]:
        """Return seed -> difference of two points, without seeds on which one of them was not measured."""
        ours, theirs = self.values(label, column), self.values(over, column)
        found = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
        return {seed: value for seed, value in found.items() if value == value}

    def fitted(self, label: str | None = None) -> float:
        """Return the share of the wrong labels that SGD, or a point, fits at the last epoch; NaN without wrong labels."""
        return self.mean(self.best_of(SGD) if label is None else label, "last_noisy_fitted").mean

    def options(self, label: str) -> str:
        """Write the hyper-parameters of a point and its loss, as in rho=0.1."""
        own = self.runs[self.runs["label"] == label]
        if own.empty:
            return ""
        row = own.iloc[0]
        parts = [f"{name}={row[name]:g}" for name in ("rho", "activation", "weight") if row[name] == row[name]]
        return ", ".join([*parts, *([str(row["loss"])] if row["loss"] != "cross_entropy" else [])])

    def counting(self, labels: Iterable[str]) -> pd.DataFrame:
        """Return the metrics of some points, without the runs that do not count."""
        own = self.runs[self.runs["label"].isin([*labels]) & (self.runs["excluded"] == "")]
        return self.metrics[self.metrics["run"].isin(own["run"])]

    @property
    def exclusions(self) -> list[str]:
        """The runs that do not count, by reason: each point, with its seeds unless it is all of them."""
        every = self.runs.groupby("label")["seed"].nunique()
        found = []
        for why, left_out in self.runs[self.runs["excluded"] != ""].groupby("excluded", sort=False):
            points = []
            for label, own in left_out.groupby("label", sort=False):
                seeds = ", ".join(str(seed) for seed in sorted(own["seed"]))
                points.append(f"{label}" if len(own) == every[str(label)] else f"{label} (seed {seeds})")
            found.append(f"{why}: {', '.join(points)}")
        return found


def control_runs(name: str, about: pd.DataFrame, metrics: pd.DataFrame) -> ControlRuns:
    """Bring the runs of a control into two tables.

    Args:
        name: Of the control.
        about: One row per run, the columns of ABOUT.
        metrics: Their tidy metrics: run, step, epoch, split, group, metric, value.

    Returns:
        The tables.

    Raises:
        InputError: A column is missing, or two runs share point, method and seed.
    """
    missing = [column for column in ABOUT if column not in about.columns]
    if missing:
        raise InputError(f"The runs of {name} lack the column {missing[0]!r}", expected=", ".join(ABOUT))
    front = about[["run", "method", "label", "seed"]].rename(columns={"label": "setting"})
    kept = metrics[["run", "step", "epoch", "split", "group", "metric", "value"]].merge(front, on="run")
    stops = early_stopping(kept)
    runs = about[[*ABOUT]].reset_index(drop=True)
    for stop, selection in {"early": "validation", "last": "last"}.items():
        own = stops[stops["selection"] == selection].set_index("run")
        for column in ("test_accuracy", "validation_accuracy", "clean_fitted", "noisy_fitted"):
            runs[f"{stop}_{column}"] = runs["run"].map(own[column]).astype("float64")
    equal = at_equal_clean_accuracy(kept, LEVELS)
    for level, own in equal.groupby("level"):
        name_of_level = f"clean{100 * float(str(level)):.0f}_test_accuracy"
        runs[name_of_level] = runs["run"].map(own.set_index("run")["test_accuracy"]).astype("float64")
    return ControlRuns(name, runs, kept)


def read_control(name: str, runs: RunCollection) -> ControlRuns:
    """Bring saved runs of a control into two tables; each run's folder is named <point>-seed<seed>.

    Args:
        name: Of the control: what its sweep file's name adds to `control-`.
        runs: Its runs.

    Returns:
        The tables. Runs that stayed at chance or did not finish are marked, not dropped.
    """
    wanted = {*EVALUATION.values(), *_COSTS}
    parts = []
    for run in runs:
        own = run.metrics
        keys = pd.MultiIndex.from_frame(own[["split", "group", "metric"]])
        parts.append(own[np.asarray(keys.isin([*wanted]))].assign(run=run.id))
    about = pd.DataFrame([_about(name, run) for run in runs], columns=[*ABOUT])
    numbers = ("place", "rho", "activation", "weight", "realised_rate")
    return control_runs(name, about.astype(dict.fromkeys(numbers, "float64")), pd.concat(parts, ignore_index=True))


def _about(name: str, run: Run) -> dict[str, Any]:
    config = run.config
    method = config["method"]
    noise = run.manifest.get("noise") or {}
    excluded = UNFINISHED if run.status != "finished" else CHANCE if at_chance(run) else ""
    return {
        "run": run.id,
        "label": run.path.name.removesuffix(f"-seed{run.seed}"),
        "method": run.method,
        "loss": str(method.get("loss", "cross_entropy")),
        "place": _place(name, run),
        **{key: method.get(key, math.nan) for key in ("rho", "activation", "weight")},
        "seed": run.seed,
        "excluded": excluded,
        "realised_rate": noise.get("realised_rate", math.nan),
    }


def _place(name: str, run: Run) -> float:
    """Return the value of what a control varies; NaN where it varies the method alone."""
    if name == "train-size":
        return float(run.manifest["data"]["train"])
    found: Any = run.config
    for key in _FACTORS.get(name, ()):
        found = found[key]
    if name not in _FACTORS:
        return math.nan
    return float(found[0] if isinstance(found, list) else found)
