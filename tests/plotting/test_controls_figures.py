"""The figures of the controls draw what their tables hold, and refuse or leave out what they cannot draw."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from noisesam.errors import InputError
from noisesam.plotting import (
    plot_control_advantage,
    plot_control_losses,
    plot_control_matched,
    plot_control_regulariser,
    plot_control_step_length,
)

STOPS = ("early stopping", "last epoch")


def advantages(control: str = "width", **changed) -> pd.DataFrame:
    """Two methods at three places, at both stops; the first place has few wrong labels fitted."""
    rows = [
        {
            "control": control, "place": place, "method": method, "loss": "cross_entropy", "stop": stop, "estimate": estimate,
            "low": estimate - 0.05, "high": estimate + 0.05, "seeds": 3, "wrong_labels_fitted_by_sgd": fitted,
        }
        for method, gain in (("1-sam", 0.1), ("l-sam", 0.01))
        for place, fitted in ((8.0, 0.3), (16.0, 0.6), (32.0, 0.9))
        for stop in STOPS
        for estimate in (gain * math.log2(place),)
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**changed)


def points(control: str, rows: list[dict]) -> pd.DataFrame:
    blank = {"control": control, "rho": math.nan, "activation": math.nan, "weight": math.nan, "chosen": False, "seeds": 3}
    full = [blank | row for row in rows]
    return pd.DataFrame(
        [{"last_low": row["last_test_accuracy"] - 0.1, "last_high": row["last_test_accuracy"] + 0.1} | row for row in full]
    )


def labelled(panel) -> list[str]:
    return panel.get_legend_handles_labels()[1]


def marks(panel, face: str | None = None) -> list[tuple[float, float]]:
    """Return the marks without a line, those of one face colour if it is given."""
    found = []
    for line in panel.lines:
        alone = line.get_marker() not in ("None", None) and line.get_linestyle() == "None"
        if alone and (face is None or to_hex(line.get_markerfacecolor()) == to_hex(face)):
            found += [*zip(*map(np.asarray, line.get_data()), strict=True)]
    return sorted((float(x), round(float(y), 9)) for x, y in found)


def test_the_advantage_is_drawn_in_points_and_hollow_where_sgd_fits_less_than_half():
    early, last = plot_control_advantage(advantages(), control="width")
    assert (early.get_title(), last.get_title()) == STOPS
    hollow = marks(last, "white")
    assert [round(y, 9) for _, y in hollow] == [30.0, 3.0]
    assert [x for x, _ in hollow] == pytest.approx([8.0, 8.0], rel=0.03)  # moved apart, so that equal values are both seen
    assert hollow[0][0] < 8 < hollow[1][0]
    assert len(marks(last)) == 6
    assert "hollow: SGD fits less than half of the wrong labels" in labelled(early)
    assert last.get_xscale() == "log"
    bands = [band.get_paths()[0].get_extents().intervaly.tolist() for band in last.collections]
    assert bands[0] == pytest.approx([25.0, 55.0], abs=1e-9)  # 1-SAM: from 30 - 5 at width 8 to 50 + 5 at width 32


def test_no_hollow_mark_is_explained_where_there_is_none_and_rates_have_a_linear_axis():
    table = advantages("noise-rate").assign(wrong_labels_fitted_by_sgd=0.9)
    early, _ = plot_control_advantage(table, control="noise-rate")
    assert not [text for text in labelled(early) if "hollow" in text]
    assert early.get_xscale() == "linear"
    nothing_to_fit = table.assign(wrong_labels_fitted_by_sgd=math.nan)  # without noise there are no wrong labels
    assert marks(plot_control_advantage(nothing_to_fit, control="noise-rate")[0], "white") == []


def test_the_grid_writes_every_pair_and_sgd_where_both_coefficients_are_zero_and_frames_the_chosen_one():
    rows = [
        {"method": "reg-sgd", "activation": a, "weight": w, "last_test_accuracy": 0.5 + a + w, "chosen": (a, w) == (0.1, 0.2)}
        for a in (0.0, 0.1)
        for w in (0.0, 0.1, 0.2)
        if a or w
    ]
    panel = plot_control_regulariser(
        points("regulariser", [{"method": "sgd", "last_test_accuracy": 0.4, "chosen": True}, *rows])
    )
    assert {text.get_text() for text in panel.texts} == {"40.0", "60.0", "70.0", "80.0"}
    (frame,) = panel.patches
    lost = plot_control_regulariser(
        points("regulariser", [*rows[:4], rows[4] | {"last_test_accuracy": math.nan, "chosen": False}])
    )
    assert lost.get_title() == "blank: stayed at chance"
    assert frame.get_xy() == (2, 1)  # the third weight, the second activation
    assert panel.get_title() == "frame: chosen on noisy validation; 0, 0: SGD"
    alone = plot_control_regulariser(points("regulariser", [rows[-1] | {"chosen": False}]))
    assert ([*alone.patches], alone.get_title()) == ([], "")


def test_matched_differences_stand_at_their_levels_and_budgets():
    stops = [
        "clean accuracy 0.7",
        "clean accuracy 0.9",
        "all of the passes, last epoch",
        "a half of the passes, early stopping",
    ]
    table = pd.concat([advantages("matched").head(1).assign(stop=stop, place=math.nan) for stop in stops])
    panels = plot_control_matched(table)
    drawn = [[round(float(line.get_xdata()[0])) for line in panel.lines if len(line.get_xdata()) == 1] for panel in panels]
    assert drawn == [[0, 2], [2], [1]]
    assert [[tick.get_text() for tick in panel.get_xticklabels()] for panel in panels] == [
        ["70%", "80%", "90%"],
        ["a quarter", "a half", "all"],
        ["a quarter", "a half", "all"],
    ]


def test_losses_are_named_with_their_parameter_and_what_stayed_at_chance_has_no_dot():
    losses = ["cross_entropy", "generalised_cross_entropy(q=0.7)", "mean_absolute_error"]
    table = pd.concat([advantages("robust-losses").head(2).assign(loss=loss, place=math.nan) for loss in losses])
    table.loc[table["loss"] == "mean_absolute_error", ["estimate", "low", "high"]] = math.nan
    early, _ = plot_control_losses(table)
    assert [tick.get_text() for tick in early.get_yticklabels()] == [
        "cross-entropy",
        "generalised\ncross-entropy, $q$ = 0.7",
        "mean absolute\nerror",
    ]
    assert [round(float(line.get_ydata()[0])) for line in early.lines if len(line.get_xdata()) == 1] == [0, 1]


def test_accuracy_against_rho_has_sgd_as_a_line_across():
    rows = [
        {"method": method, "rho": rho, "last_test_accuracy": 0.6}
        for method in ("l-sam", "length-matched-sgd")
        for rho in (0.4, 0.1, 0.2)
    ]
    panel = plot_control_step_length(points("step-length", [{"method": "sgd", "last_test_accuracy": 0.5}, *rows]))
    assert labelled(panel) == ["SGD", "L-SAM", "SGD at L-SAM's step length"]
    lines = {line.get_label(): line for line in panel.lines}
    assert lines["L-SAM"].get_xdata().tolist() == [0.1, 0.2, 0.4]
    assert set(np.asarray(lines["SGD"].get_ydata(), dtype=float)) == {50.0}
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["0.1", "0.2", "0.4"]


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: plot_control_advantage(advantages("width"), control="train-size"), "no advantage of the control train-size"),
        (lambda: plot_control_advantage(advantages().drop(columns="place"), control="width"), "no column 'place'"),
        (lambda: plot_control_matched(advantages("width")), "no matched difference"),
        (lambda: plot_control_losses(advantages("width")), "no robust loss"),
        (
            lambda: plot_control_regulariser(points("width", [{"method": "sgd", "last_test_accuracy": 0.5}])),
            "no accuracy of a pair",
        ),
        (lambda: plot_control_step_length(points("width", [{"method": "sgd", "last_test_accuracy": 0.5}])), "no radius"),
    ],
)
def test_a_table_without_the_control_is_refused(draw, said):
    with pytest.raises(InputError, match=said):
        draw()
