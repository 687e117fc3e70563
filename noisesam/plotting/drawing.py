"""Every figure that saved runs have data for, each with its numbers beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisesam.analysis import (
    early_stopping,
    gradient_weight,
    gradient_weight_at_equal_weights,
    memorisation,
    norms,
    weights_against_loss,
)
from noisesam.analysis.inputs import Runs, Tables, as_tables
from noisesam.errors import InputError
from noisesam.plotting.accuracy import plot_accuracy_curves, plot_test_accuracy
from noisesam.plotting.gradient_weight import plot_gradient_weight
from noisesam.plotting.memorisation import plot_memorisation
from noisesam.plotting.norms import plot_norms
from noisesam.plotting.saving import save
from noisesam.plotting.weights_against_loss import plot_weights_against_loss, weights_shown

RUN = ["run", "method", "setting", "seed"]

Picture = tuple[Axes | np.ndarray, pd.DataFrame]


class Drawn(NamedTuple):
    """One figure on disk: its name, its PNG (a PDF lies beside it) and the table of its numbers.

    Example:
        >>> Drawn("norms", Path("norms.png"), Path("norms.csv")).name
        'norms'
    """

    name: str
    png: Path
    csv: Path


class DrawnFigures(list[Drawn]):
    """The figures that were drawn; `skipped` maps the name of each figure that was not to the reason.

    Example:
        >>> DrawnFigures([], skipped={"norms": "no probe set"}).skipped["norms"]
        'no probe set'
    """

    def __init__(self, drawn: list[Drawn] | None = None, *, skipped: dict[str, str] | None = None) -> None:
        super().__init__(drawn or [])
        self.skipped: dict[str, str] = dict(skipped or {})


def draw_all(runs: Runs, out_dir: str | os.PathLike[str]) -> DrawnFigures:
    """Compute the tables of saved runs and draw every figure that they have data for.

    The figures are accuracy, test-accuracy, gradient-weight, weights-against-loss, memorisation and norms. One that needs
    what the runs did not measure (true labels, a probe set, a baseline) is skipped, with the reason in `skipped`.

    Args:
        runs: A `RunCollection`, one `Run`, or the tidy metrics table of a collection.
        out_dir: Folder for the files; it is made where it is missing.

    Returns:
        One (name, PNG path, CSV path) per figure, with the reasons for the others in its attribute `skipped`.

    Raises:
        InputError: If there are no runs.
        RunError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> rows = [("a", "sgd", "", 0, epoch, float(epoch), "test", "all", "accuracy", 0.5 + 0.1 * epoch)
        ...         for epoch in range(4)]
        >>> columns = [*RUN, "step", "epoch", "split", "group", "metric", "value"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     drawn = draw_all(pd.DataFrame(rows, columns=columns), folder)
        >>> [figure.name for figure in drawn]
        ['accuracy', 'test-accuracy']
        >>> sorted(drawn.skipped)
        ['gradient-weight', 'memorisation', 'norms', 'weights-against-loss']
    """
    folder = Path(out_dir)
    tables = as_tables(runs)
    figures = DrawnFigures()
    for name, draw in _FIGURES.items():
        try:
            axes, table = draw(tables)
        except InputError as reason:
            figures.skipped[name] = str(reason)
            continue
        saved = save(_figure_of(axes), folder / name, table)
        figures.append(Drawn(name, saved.png, saved.table))
    return figures


def _figure_of(axes: Axes | np.ndarray) -> Figure:
    """Return the figure on which the Axes were drawn."""
    first = axes if isinstance(axes, Axes) else np.ravel(axes)[0]
    figure = first.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _accuracy_table(metrics: pd.DataFrame, stops: pd.DataFrame) -> pd.DataFrame:
    """Lay the accuracies out as one row per run and evaluation; `selected_by` names the selections that stop there."""
    rows = metrics[(metrics["metric"] == "accuracy") & metrics["value"].notna()]
    wide = rows.assign(column=rows["split"] + "_" + rows["group"]).pivot_table(
        index=[*RUN, "step", "epoch"], columns="column", values="value", sort=False
    )
    wide = wide.rename_axis(columns=None).reset_index()
    chosen = stops.dropna(subset=["step"]).groupby(["run", "step"])["selection"].agg(" ".join).rename("selected_by")
    table = wide.merge(chosen.reset_index(), on=["run", "step"], how="left")
    return table.assign(selected_by=table["selected_by"].fillna(""))


def _accuracy(tables: Tables) -> Picture:
    stops = early_stopping(tables)
    return plot_accuracy_curves(tables.metrics, stops), _accuracy_table(tables.metrics, stops)


def _test_accuracy(tables: Tables) -> Picture:
    stops = early_stopping(tables)
    test = tables.metrics[tables.metrics["split"] == "test"]
    return plot_test_accuracy(test, stops), _accuracy_table(test, stops)


def _gradient_weight(tables: Tables) -> Picture:
    on_path, equal = gradient_weight(tables), gradient_weight_at_equal_weights(tables)
    parts = {"own path": on_path}
    if np.isfinite(equal["ratio"].astype(float)).any():
        parts["equal weights"] = equal
    axes = plot_gradient_weight(on_path, parts.get("equal weights"))  # without a run of SGD there is no common path
    return axes, pd.concat([part.assign(panel=panel) for panel, part in parts.items()], ignore_index=True)


def _weights_against_loss(tables: Tables) -> Picture:
    table = weights_against_loss(tables)
    return plot_weights_against_loss(table), weights_shown(table)


def _memorisation(tables: Tables) -> Picture:
    table = memorisation(tables)
    return plot_memorisation(table), table


def _norms(tables: Tables) -> Picture:
    table = norms(tables)
    return plot_norms(table), table


_FIGURES: dict[str, Callable[[Tables], Picture]] = {
    "accuracy": _accuracy,
    "test-accuracy": _test_accuracy,
    "gradient-weight": _gradient_weight,
    "weights-against-loss": _weights_against_loss,
    "memorisation": _memorisation,
    "norms": _norms,
}
