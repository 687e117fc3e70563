"""The controls: from the runs of each to the verdicts of its rule, its advantages over SGD, and a row per point. No torch.

    CONTROLS                     name -> the function that applies the rule of experiments/control-<name>.toml
    judge_control(runs)          verdicts, advantages and points of one control, three tables
    CLAIMED                      control -> the claim of docs/claims.md that its runs test as well

docs/controls.md says how the tables are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pandas as pd

from noisesam.errors import unknown_name
from noisesam.reproduce.controls_losses import robust_losses
from noisesam.reproduce.controls_matched import matched
from noisesam.reproduce.controls_regulariser import regulariser
from noisesam.reproduce.controls_rules import ADVANTAGE, RULED, Judged
from noisesam.reproduce.controls_runs import STOPS, ControlRuns
from noisesam.reproduce.controls_step_length import step_length
from noisesam.reproduce.controls_trends import learning_rate, noise_rate, train_size, width

CONTROLS: dict[str, Callable[[ControlRuns], Judged]] = {
    "matched": matched,
    "width": width,
    "train-size": train_size,
    "learning-rate": learning_rate,
    "noise-rate": noise_rate,
    "regulariser": regulariser,
    "step-length": step_length,
    "robust-losses": robust_losses,
}
CLAIMED = {"train-size": "C9", "width": "C11", "robust-losses": "C13"}

POINTS = (
    "control", "point", "method", "loss", "place", "rho", "activation", "weight", "seeds", "chosen", "validation_accuracy",
    "last_validation_accuracy",
    *(f"{stop}_{name}" for stop in STOPS for name in ("test_accuracy", "low", "high")),
    "wrong_labels_fitted", "excluded",
)  # fmt: skip


class ControlTables(NamedTuple):
    """What the controls say.

    Attributes:
        verdicts: One row per question: RULED.
        advantages: One row per control, place, method and stop: ADVANTAGE; differences of test accuracy to SGD, paired by seed.
        points: One row per point of a sweep, over its seeds: POINTS.
    """

    verdicts: pd.DataFrame
    advantages: pd.DataFrame
    points: pd.DataFrame


def judge_control(runs: ControlRuns) -> ControlTables:
    """Apply the rule that a control's sweep file states.

    Args:
        runs: The runs of the control; `runs.name` says which it is.

    Returns:
        Its three tables. A verdict is a word of the rule, "undecided" with the reason where the interval does not decide or
        fewer than three seeds count, "not tested" where nothing was measured.

    Raises:
        InputError: There is no such control.
    """
    if runs.name not in CONTROLS:
        raise unknown_name("control", runs.name, CONTROLS)
    judged = CONTROLS[runs.name](runs)
    verdicts = judged.table(runs.name)
    gone = "; ".join(runs.exclusions)
    if gone:
        verdicts["reason"] = [f"{reason}; runs left out, {gone}".removeprefix("; ") for reason in verdicts["reason"]]
    return ControlTables(verdicts, pd.DataFrame(judged.advantages, columns=[*ADVANTAGE]), _points(runs, judged.chosen))


def together(parts: Iterable[ControlTables]) -> ControlTables:
    """Join the tables of several controls, in the order of CONTROLS."""
    order = {name: number for number, name in enumerate(CONTROLS)}
    every = [*parts]
    columns = {"verdicts": RULED, "advantages": ADVANTAGE, "points": POINTS}

    def joined(name: str) -> pd.DataFrame:
        frames = sorted((getattr(one, name) for one in every), key=lambda frame: order[frame["control"].iloc[0]])
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*columns[name]])

    return ControlTables(*(joined(name) for name in ControlTables._fields))


def _points(runs: ControlRuns, chosen: set[str]) -> pd.DataFrame:
    """Return one row per point of the sweep."""
    rows = []
    for label, own in runs.runs.groupby("label", sort=False):
        first, name = own.iloc[0], str(label)
        counts = runs.values(name, "last_test_accuracy")
        accuracy = [
            number
            for stop in STOPS
            for found in [runs.mean(name, f"{stop}_test_accuracy")]
            for number in (found.mean, found.low, found.high)
        ]
        left_out = own[own["excluded"] != ""]
        excluded = "; ".join(f"seed {seed} {why}" for seed, why in zip(left_out["seed"], left_out["excluded"], strict=True))
        rows.append(
            (
                runs.name, name, *(first[column] for column in ("method", "loss", "place", "rho", "activation", "weight")),
                len(counts), name in chosen, _mean(own["early_validation_accuracy"]), _mean(own["last_validation_accuracy"]),
                *accuracy, runs.fitted(name), excluded,
            )
        )  # fmt: skip
    return pd.DataFrame(rows, columns=[*POINTS])


def _mean(values: pd.Series) -> float:
    """Return the mean by which a point is chosen: over every run of it."""
    return float(values.mean(skipna=False)) if len(values) else math.nan
