"""What the runs of one setting say: a table with one row per run, from which every claim is decided. No torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from noisesam.analysis import Interval, interval, paired_difference
from noisesam.errors import InputError, unknown_name
from noisesam.reproduce.decisions import CONFIDENCE

MAIN = "main"
NO_NOISE = "no-noise"
LINEAR, TWO_LAYER, DEEP = "linear", "two-layer linear", "deep"
KINDS = (LINEAR, TWO_LAYER, DEEP)

ABOUT = ("run", "variant", "method", "options", "seed", "excluded")
NUMBERS = (
    "rho",
    "tracked_rho",
    "train_examples",
    "parameters",
    *(
        f"{selection}_{name}"
        for selection in ("oracle", "validation", "last")
        for name in ("test_accuracy", "validation_accuracy", "clean_fitted", "noisy_fitted")
    ),
    "last_train_accuracy",
    "fitted_before_noise",
    "log_weight_ratio",
    "low_loss_factor",
    "hidden_activation_norm",
    "last_layer_norm",
    "sharpness",
    "batch_sharpness",
)
COLUMNS = (*ABOUT, *NUMBERS)
"""The columns of `Evidence.runs`; see `noisesam.reproduce.evidence_measures.measure`."""

EARLY = {"validation": "at early stopping", "oracle": "at its highest test accuracy (oracle)"}
"""How early stopping is written: selected on noisy validation examples, or, where a setting has none, on the test set."""


@dataclass(frozen=True)
class Evidence:
    """The runs of one setting.

    Attributes:
        setting: Its name.
        kind: One of KINDS: what the model is, since some claims are on linear models and some on deep ones.
        runs: One row per run, the columns of COLUMNS. `variant` is "main" for the setting itself and names what was changed
            otherwise ("no-noise", "size-400", "narrow", "wide"); `method` has the loss behind a plus sign where it is a robust
            one; `options` are its other hyper-parameters; `excluded` is the reason why a run does not count, or empty.
    """

    setting: str
    kind: str
    runs: pd.DataFrame
    _chosen: dict[tuple[str, str], pd.DataFrame] = field(default_factory=dict, init=False, repr=False, compare=False)
    """(variant, method) -> its runs that count, filled as they are asked for; the table is not changed after it is made."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("kind of setting", self.kind, KINDS)
        missing = [name for name in COLUMNS if name not in self.runs.columns]
        if missing:
            raise InputError(
                f"The runs of {self.setting} lack the column {missing[0]!r}",
                expected="the columns of noisesam.reproduce.evidence.COLUMNS",
                remedy="Make the table by evidence_of(runs, setting=...)",
            )
        doubled = self.runs[self.runs.duplicated(["variant", "method", "options", "seed"])]
        if len(doubled):
            row = doubled.iloc[0]
            raise InputError(
                f"Two runs of {self.setting} share variant, method, options and seed "
                f"({row['variant']}, {row['method']}, {row['options']}, {row['seed']})",
                expected="one run each",
            )

    @functools.cached_property
    def selection(self) -> str:
        """How early stopping is selected: "validation" (noisy), or "oracle" where the runs have no validation examples."""
        own = self.runs.loc[self.runs["variant"] == MAIN, "validation_test_accuracy"]
        return "validation" if own.notna().any() else "oracle"

    @functools.cached_property
    def _runs_of(self) -> dict[tuple[str, str], pd.DataFrame]:
        """(variant, method) -> all of its runs."""
        return {(str(variant), str(name)): own for (variant, name), own in self.runs.groupby(["variant", "method"])}

    @property
    def early(self) -> str:
        """The selection of early stopping in words."""
        return EARLY[self.selection]

    @property
    def exclusions(self) -> list[str]:
        """The runs that do not count, each with its reason."""
        left_out = self.runs[self.runs["excluded"] != ""].sort_values(["variant", "method", "options", "seed"])
        named = []
        for (variant, method, options, why), own in left_out.groupby(["variant", "method", "options", "excluded"], sort=False):
            seeds = ", ".join(str(seed) for seed in own["seed"])
            place = "" if variant == MAIN else f" ({variant})"
            shown = f" {options}" if options else ""
            named.append(f"{method}{shown}{place} seed {seeds} {why}")
        return named

    def methods(self, variant: str = MAIN) -> list[str]:
        """Return the methods of a variant that have runs which count, by name."""
        return sorted(name for own, name in self._runs_of if own == variant and len(self.rows(name, variant)))

    def variants(self, *kinds: str) -> list[str]:
        """Return the variants whose names begin so, those with fewer examples, then with fewer weights first."""
        own = self.runs[[str(name).startswith(kinds) for name in self.runs["variant"]]]
        order = own.groupby("variant")[["train_examples", "parameters"]].min().sort_values(["train_examples", "parameters"])
        return [str(name) for name in order.index]

    def rows(self, method: str, variant: str = MAIN) -> pd.DataFrame:
        """Return the runs of a method that count; of several options those with the highest mean noisy validation accuracy.

        A run that stayed at chance counts in this choice, so that options which learn on some seeds alone are not favoured.
        Without validation examples the accuracy on the test set chooses; of equal options the first by name.
        """
        key = variant, method
        if key not in self._chosen:
            own = self._runs_of.get(key, self.runs.iloc[:0])
            if len(set(own["options"])) > 1:
                column = "validation_validation_accuracy" if self.selection == "validation" else "oracle_test_accuracy"
                means = own.groupby("options")[column].mean().fillna(-math.inf)
                own = own[own["options"] == means.index[int(np.argmax(means.to_numpy()))]]
            self._chosen[key] = own[own["excluded"] == ""].sort_values("seed")
        return self._chosen[key]

    def values(self, method: str, column: str, variant: str = MAIN) -> dict[int, float]:
        """Return seed -> value of one column; `early_` in front of a column stands for the selection of early stopping."""
        own = self.rows(method, variant)
        name = column.replace("early_", f"{self.selection}_", 1) if column.startswith("early_") else column
        return {int(seed): float(value) for seed, value in zip(own["seed"], own[name], strict=True)}

    def mean(self, method: str, column: str, variant: str = MAIN) -> Interval:
        """Return the mean over seeds with its interval."""
        return interval(self.values(method, column, variant).values(), CONFIDENCE)

    def gain(self, method: str, over: str, column: str = "early_test_accuracy", variant: str = MAIN) -> Interval:
        """Return the difference of two methods, paired by seed."""
        return paired_difference(self.values(method, column, variant), self.values(over, column, variant), CONFIDENCE)

    def lacking(self, methods: Sequence[str], variant: str = MAIN) -> str:
        """Say which of the methods has no run that counts; empty if all have."""
        present = self.methods(variant)
        place = "" if variant == MAIN else f" ({variant})"
        said = [
            f"no run of {name}{place} counts, see those left out"
            if (variant, name) in self._runs_of
            else f"no run of {name}{place}"
            for name in methods
            if name not in present
        ]
        return "; ".join(said)


def nothing() -> pd.DataFrame:
    """Return the table of no runs."""
    return pd.DataFrame({name: pd.Series(dtype="object" if name in ABOUT else "float64") for name in COLUMNS})
