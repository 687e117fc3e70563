"""Laws of the toy's figures: they draw the numbers of their tables, keep what is different apart, and cover nothing."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from noisesam.errors import InputError
from noisesam.plotting import METHOD_STYLES, plot_toy_accuracy, plot_toy_ratios, plot_toy_traps

LINEAR = [("sgd", math.nan), ("1-sam", 0.03), ("1-sam", 0.1), ("1-sam", 0.3), ("sam", 0.1), ("sam", 1.0)]
SETTINGS = {
    "linear": LINEAR,
    "linear, zero start": LINEAR,
    "two-layer linear": [("sgd", math.nan), ("1-sam", 0.1), ("l-sam", 0.1), ("l-sam", 0.3), ("j-sam", 0.1)],
}


def invent(seeds: int = 3) -> dict[str, pd.DataFrame]:
    """Small invented tables in the shape of a ToyResult's."""
    rng = np.random.default_rng(0)
    accuracy, ratios, runs = [], [], []
    for setting, columns in SETTINGS.items():
        for method, rho in columns:
            for seed in range(seeds):
                run, curve = (setting, method, rho, seed), rng.uniform(0.5, 1.0, 41)
                accuracy += [(*run, step, value) for step, value in enumerate(curve)]
                ratios += [(*run, step, rng.uniform(0.5, 2.0), rng.uniform(0.01, 1.0)) for step in (0, 10, 40, 300)]
                runs.append((*run, curve.max()))
    key = ["setting", "method", "rho", "seed"]
    return {
        "accuracy": pd.DataFrame(accuracy, columns=[*key, "step", "test_accuracy"]),
        "ratios": pd.DataFrame(ratios, columns=[*key, "step", "step_term_ratio", "plain_gradient_ratio"]),
        "runs": pd.DataFrame(runs, columns=[*key, "peak"]),
    }


FIGURES = {"accuracy": plot_toy_accuracy, "ratios": plot_toy_ratios, "runs": plot_toy_traps}
every_figure = pytest.mark.parametrize("name", FIGURES)


def line(ax, label: str):
    (found,) = [drawn for drawn in ax.lines if drawn.get_label() == label]
    return found


def rows(table: pd.DataFrame, method: str, rho: float, setting: str = "linear") -> pd.DataFrame:
    same = table["rho"].isna() if math.isnan(rho) else table["rho"] == rho
    return table[(table["setting"] == setting) & (table["method"] == method) & same]


@every_figure
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_figure_renders_without_a_warning_and_no_legend_covers_data_or_leaves_the_page(name, seeds):
    figure = FIGURES[name](invent(seeds)[name])[0].get_figure(root=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    (legend,) = figure.legends
    box = legend.get_window_extent(renderer)
    assert not any(box.overlaps(ax.get_tightbbox(renderer)) for ax in figure.axes)
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


@every_figure
def test_it_draws_on_the_axes_handed_in_and_leaves_the_users_settings_alone(name):
    import matplotlib.pyplot as plt

    table = invent()[name]
    count = len(FIGURES[name](table))
    given = Figure(figsize=(12, 3)).subplots(1, count, squeeze=False)[0]
    with mpl.rc_context({"font.size": 17.0}):
        before = dict(mpl.rcParams)
        assert list(FIGURES[name](table, ax=given)) == list(given)
        assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
    with pytest.raises(InputError, match="Axes were handed in for"):
        FIGURES[name](table, ax=[*given, given[0]])


@every_figure
def test_an_empty_table_a_missing_column_or_an_unknown_setting_is_refused(name):
    table = invent()[name]
    for broken in (table.iloc[:0], table.drop(columns="rho")):
        with pytest.raises(InputError, match=r"(is empty|no column 'rho').*Pass the tables of noisesam\.reproduce\.toy_grid"):
            FIGURES[name](broken)
    if name != "runs":
        with pytest.raises(InputError, match=r"Unknown setting 'liner'.*Did you mean 'linear'"):
            FIGURES[name](table, setting="liner")


def test_accuracy_lines_are_means_of_their_setting_with_gradient_descent_in_every_panel():
    table = invent()["accuracy"]
    for setting, columns in SETTINGS.items():
        panels = plot_toy_accuracy(table, setting=setting)
        methods = [name for name in METHOD_STYLES if name in {method for method, _ in columns} - {"sgd"}]
        assert [panel.get_title() for panel in panels] == [METHOD_STYLES[name].label for name in methods]
        for panel, name in zip(panels, methods, strict=True):
            own = [("sgd", math.nan), *((method, rho) for method, rho in columns if method == name)]
            for method, rho in own:
                label = METHOD_STYLES[method].label + ("" if math.isnan(rho) else rf", $\rho$ = {rho:g}")
                curves = rows(table, method, rho, setting).pivot_table(index="step", columns="seed", values="test_accuracy")
                assert line(panel, label).get_ydata() == pytest.approx(curves.mean(axis=1).to_numpy())


def test_the_star_of_a_line_lies_at_the_mean_peak_of_its_seeds():
    table = invent()["accuracy"]
    _, panel = plot_toy_accuracy(table)  # SAM, 1-SAM
    stars = [drawn for drawn in panel.lines if drawn.get_marker() == "*"]
    assert len(stars) == 4
    for star, (method, rho) in zip(stars, LINEAR[:4], strict=True):
        curves = rows(table, method, rho).pivot_table(index="step", columns="seed", values="test_accuracy")
        assert star.get_xdata()[0] == pytest.approx(curves.idxmax().mean())
        assert star.get_ydata()[0] == pytest.approx(curves.max().mean())


def test_step_terms_and_plain_gradients_have_panels_of_their_own():
    table = invent()["ratios"]
    for panel, column in zip(plot_toy_ratios(table), ("step_term_ratio", "plain_gradient_ratio"), strict=True):
        drawn = line(panel, r"1-SAM, $\rho$ = 0.3")
        expected = rows(table, "1-sam", 0.3).pivot_table(index="step", columns="seed", values=column).mean(axis=1)
        assert list(drawn.get_xdata()) == [0, 10, 40]  # step 300 is not drawn by default
        assert drawn.get_ydata() == pytest.approx(expected.iloc[:3].to_numpy())
    first = plot_toy_ratios(table, until=None)[0]
    assert list(line(first, "SGD").get_xdata()) == [0, 10, 40, 300]
    with pytest.raises(InputError, match=r"no ratio up to step -1.*until=None"):
        plot_toy_ratios(table, until=-1)


def test_traps_show_every_seed_the_means_and_the_rho_that_the_test_accuracy_chose():
    table = invent()["runs"]
    panels = plot_toy_traps(table)
    assert [panel.get_title() for panel in panels] == ["linear, random start", "linear, zero start", "two-layer linear"]
    for panel, setting in zip(panels, SETTINGS, strict=True):
        own = rows(table, "sgd", math.nan, setting)["peak"]
        assert line(panel, "SGD").get_ydata() == pytest.approx([own.mean()] * 2)
    panel, own = panels[2], table[(table["setting"] == "two-layer linear") & (table["method"] == "l-sam")]
    means = own.groupby("rho")["peak"].mean()
    drawn = line(panel, "L-SAM")
    assert list(drawn.get_xdata()) == [0.1, 0.3]
    assert drawn.get_ydata() == pytest.approx(means.to_numpy())
    stars = [(float(star.get_xdata()[0]), float(star.get_ydata()[0])) for star in panel.lines if star.get_marker() == "*"]
    assert (means.idxmax(), pytest.approx(means.max())) in stars
    seeds = [mark for mark in panel.lines if mark.get_marker() == "v" and len(mark.get_xdata()) == 6]
    assert seeds[0].get_ydata() == pytest.approx(own["peak"].to_numpy())


def test_the_largest_rho_has_the_look_of_its_method_and_the_others_are_lighter():
    _, panel = plot_toy_accuracy(invent()["accuracy"])
    colors = [np.array(mpl.colors.to_rgb(line(panel, rf"1-SAM, $\rho$ = {rho}").get_color())) for rho in (0.3, 0.1, 0.03)]
    assert mpl.colors.to_hex(colors[0]) == METHOD_STYLES["1-sam"].color
    assert colors[0].sum() < colors[1].sum() < colors[2].sum()
    assert colors[2].min() < 0.6  # never faint


def test_a_table_of_gradient_descent_alone_has_one_panel():
    accuracy = invent()["accuracy"]
    (panel,) = plot_toy_accuracy(accuracy[accuracy["method"] == "sgd"])
    assert panel.get_title() == "SGD"
