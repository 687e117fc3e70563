"""From the toy's tables to evidence: each of its settings is judged by the same rules as saved runs."""

from __future__ import annotations

import pandas as pd

from noisesam.reproduce import toy
from noisesam.reproduce.evidence import COLUMNS, LINEAR, TWO_LAYER, Evidence
from noisesam.reproduce.evidence_measures import measure

WRONG_LABELS = 200
"""40% of the 500 training examples of the toy (docs/mechanism.md)."""
CLASSES = 2

_KINDS = {toy.LINEAR: LINEAR, toy.ZERO_START: LINEAR, toy.TWO_LAYER: TWO_LAYER}
_EVALUATED = {
    "test_accuracy": ("test", "all", "accuracy"),
    "train_accuracy": ("train", "all", "accuracy"),
    "clean_fitted": ("train", "clean", "accuracy"),
    "noisy_fitted": ("train", "noisy", "predicts_observed"),
    "wrong_labels": ("train", "noisy", "count"),
}
_PROBED = {
    "step_term_clean": ("probe", "clean", "step_gradient_norm"),
    "step_term_noisy": ("probe", "noisy", "step_gradient_norm"),
}
_TIDY = ["run", "method", "setting", "seed", "step", "epoch", "split", "group", "metric", "value"]


def evidence_of_toy(tables: toy.ToyResult) -> list[Evidence]:
    """Return one piece of evidence per setting of the toy, the traps included.

    Args:
        tables: The result of `noisesam.reproduce.toy_grid`.

    Returns:
        Evidence with the settings "toy: ..." in the order of the table; without validation examples, so early stopping is the
        oracle's and of several rho the one with the highest test accuracy stands for its method.
    """
    settings = [str(name) for name in dict.fromkeys(tables.accuracy["setting"])]
    return [_evidence(tables, setting) for setting in settings]


def _evidence(tables: toy.ToyResult, setting: str) -> Evidence:
    accuracy = tables.accuracy[tables.accuracy["setting"] == setting].assign(wrong_labels=float(WRONG_LABELS))
    accuracy = _named(accuracy)
    ratios = _named(tables.ratios[tables.ratios["setting"] == setting])
    ratios = ratios.merge(accuracy[["run", "step", "epoch"]], on=["run", "step"])
    tidy = pd.concat([_tidy(accuracy, _EVALUATED), _tidy(ratios, _PROBED)], ignore_index=True)
    runs = measure(tidy.assign(setting=tidy["run"]), classes=CLASSES)
    about = accuracy.drop_duplicates("run").set_index("run")
    for name in ("rho", "options"):
        runs[name] = runs["run"].map(about[name])
    return Evidence(f"toy: {setting}", _KINDS[setting], runs[[*COLUMNS]])


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Give every run its name and the text of its options."""
    options = [f"rho={rho:g}" if rho == rho else "" for rho in table["rho"].astype(float)]
    runs = [
        " ".join((method, own, f"seed {seed}"))
        for method, own, seed in zip(table["method"], options, table["seed"], strict=True)
    ]
    return table.assign(options=options, run=runs)


def _tidy(table: pd.DataFrame, columns: dict[str, tuple[str, str, str]]) -> pd.DataFrame:
    """Turn columns into rows of the tidy table."""
    parts = [
        table.assign(split=split, group=group, metric=metric, value=table[name].astype("float64"))
        for name, (split, group, metric) in columns.items()
    ]
    return pd.concat(parts, ignore_index=True)[_TIDY]
