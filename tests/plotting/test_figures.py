"""Laws of every figure: it draws the numbers of its table, from any table that runs can give, and touches nothing else."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from scipy.stats import t as student

from noisesam.errors import InputError
from noisesam.plotting import (
    METHOD_STYLES,
    plot_accuracy_curves,
    plot_gradient_weight,
    plot_memorisation,
    plot_norms,
    plot_test_accuracy,
    plot_transition_matrix,
    plot_weights_against_loss,
)

FIGURES = {
    "accuracy": lambda tables, **options: plot_accuracy_curves(tables.metrics, tables.stops, **options),
    "test accuracy": lambda tables, **options: plot_test_accuracy(tables.metrics, tables.stops, **options),
    "test accuracy, legend": lambda tables, **options: plot_test_accuracy(
        tables.metrics, tables.stops, labels="legend", **options
    ),
    "gradient weight": lambda tables, **options: plot_gradient_weight(tables.path, tables.equal, **options),
    "own path": lambda tables, **options: plot_gradient_weight(tables.path, **options),
    "memorisation": lambda tables, **options: plot_memorisation(tables.memorised, **options),
    "norms": lambda tables, **options: plot_norms(tables.norms, **options),
    "weights": lambda tables, **options: plot_weights_against_loss(tables.weights, **options),
}
NEED_NOISE = {"gradient weight", "own path", "memorisation"}

every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES.keys())


def figure_of(axes: Axes | np.ndarray) -> Figure:
    return np.ravel(np.asarray(axes, dtype=object))[0].get_figure(root=True)


def line(ax: Axes, label: str):
    (found,) = [drawn for drawn in ax.lines if drawn.get_label() == label]
    return found


def band(ax: Axes, position: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper edge of a band, read back from its polygon."""
    points = ax.collections[position].get_paths()[0].vertices
    xs = np.unique(points[:, 0])
    return (
        np.array([points[points[:, 0] == x, 1].min() for x in xs]),
        np.array([points[points[:, 0] == x, 1].max() for x in xs]),
    )


@every_figure
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("methods", [("sgd",), ("sgd", "1-sam", "my own")])
def test_every_figure_renders_without_a_warning(draw, tables, seeds, methods):
    figure_of(draw(tables(methods, seeds, 6))).canvas.draw()


@every_figure
def test_a_single_seed_has_no_band_and_several_have(draw, tables):
    def bands(seeds):
        return [patch for ax in figure_of(draw(tables(seeds=seeds))).axes for patch in ax.collections]

    assert bands(1) == []
    assert len(bands(2)) > 0


@pytest.mark.parametrize("name", FIGURES)
def test_without_noisy_examples_a_figure_draws_the_rest_or_says_what_it_needs(name, tables):
    clean = tables(noisy=False)
    if name in NEED_NOISE:
        with pytest.raises(InputError, match="It needs runs with label noise"):
            FIGURES[name](clean)
    else:
        figure_of(FIGURES[name](clean)).canvas.draw()


def test_without_true_labels_the_train_line_is_that_of_all_examples(tables):
    (panel,) = plot_accuracy_curves(tables(("sgd",), noisy=False).metrics)
    assert [drawn.get_label() for drawn in panel.lines] == ["all train", "test"]


def test_an_axis_of_noise_without_measurements_is_left_out_and_nan_rows_leave_a_gap(tables):
    metrics = tables(("sgd",), seeds=1, epochs=6).metrics
    gone = (metrics["group"] == "noisy") | ((metrics["split"] == "test") & (metrics["epoch"] == 3))
    (panel,) = plot_accuracy_curves(metrics.assign(value=metrics["value"].mask(gone)))
    assert [drawn.get_label() for drawn in panel.lines] == ["clean train", "test"]
    assert list(line(panel, "test").get_xdata()) == [0, 1, 2, 4, 5, 6]


@every_figure
@pytest.mark.parametrize("broken", [lambda table: table.iloc[:0], lambda table: table.drop(columns="method")])
def test_an_empty_table_or_a_missing_column_is_refused_with_the_remedy(draw, broken, tables):
    whole = tables()
    for name, table in vars(whole).items():
        setattr(whole, name, broken(table))
    with pytest.raises(InputError, match=r"(is empty|no column 'method').*Expected.*Pass the .*noisesam\."):
        draw(whole)


@every_figure
def test_the_users_settings_and_pyplots_list_of_figures_stay_as_they_were(draw, tables):
    import matplotlib.pyplot as plt

    with mpl.rc_context({"font.size": 17.0, "lines.linestyle": "--", "axes.grid": False}):
        before = dict(mpl.rcParams)
        figure_of(draw(tables())).canvas.draw()
        assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@every_figure
def test_a_figure_draws_on_the_axes_handed_in_and_makes_no_other(draw, tables):
    drawn = draw(tables())
    count = len(np.ravel(np.asarray(drawn, dtype=object)))
    figure = Figure(figsize=(12, 3))
    given = figure.subplots(1, count, squeeze=False)[0]
    again = draw(tables(), ax=given[0] if isinstance(drawn, Axes) else given)
    assert set(np.ravel(np.asarray(again, dtype=object))) == set(given)
    assert figure.axes == list(given)
    figure.canvas.draw()


def test_the_wrong_number_of_axes_is_refused(tables):
    with pytest.raises(InputError, match="1 Axes were handed in for 2 panels"):
        plot_norms(tables().norms, ax=Figure().subplots())


@every_figure
@pytest.mark.parametrize("methods", [("sgd", "1-sam"), tuple(METHOD_STYLES)], ids=["two", "all"])
def test_no_legend_or_label_covers_data_or_leaves_the_page(draw, methods, tables):
    figure = figure_of(draw(tables(methods, seeds=1, epochs=6)))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    legends = [*figure.legends, *(child for ax in figure.axes for child in ax.get_children() if isinstance(child, Legend))]
    for box in (legend.get_window_extent(renderer) for legend in legends):
        assert not any(box.overlaps(ax.get_tightbbox(renderer)) for ax in figure.axes)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= 0
        assert box.y1 <= figure.bbox.y1


def several_settings(tables, count: int, label: str = "noise.rate=0.{0}, rho=0.0{0}, weight_decay=0.000{0}"):
    """Tables of one method in several settings that differ in several keys."""
    parts = [vars(tables(("1-sam",), seeds=1, epochs=3, setting=label.format(number + 1))) for number in range(count)]
    return SimpleNamespace(**{name: pd.concat([part[name] for part in parts]) for name in parts[0]})


PANELS = {
    "accuracy": lambda tables: plot_accuracy_curves(tables.metrics, tables.stops),
    "memorisation": lambda tables: plot_memorisation(tables.memorised),
    "weights": lambda tables: plot_weights_against_loss(tables.weights)[0],
}


@pytest.mark.parametrize("draw", PANELS.values(), ids=PANELS.keys())
@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("dpi", [72, 200])
def test_long_titles_reach_neither_each_other_nor_over_the_edge_of_the_page(draw, count, dpi, tables):
    panels = draw(several_settings(tables, count))
    figure = figure_of(panels)
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [ax.title.get_window_extent(canvas.get_renderer()) for ax in panels]
    for number, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert not any(box.overlaps(ax.bbox) for ax in panels)
    assert all("weight_decay=0.0001" in " ".join(ax.get_title().split()) for ax in panels[:1])  # nothing is left out


def test_a_title_of_one_word_wider_than_its_panel_is_broken_within_the_word(tables):
    word = "name=" + "w" * 60
    (panel,) = plot_accuracy_curves(pd.concat([tables(("sgd",), 1, 3, setting=word).metrics]).assign(method=word))
    figure_of(panel).canvas.draw()
    assert panel.get_title().replace("\n", "") == word
    assert panel.title.get_window_extent().width <= panel.bbox.width


def test_a_title_that_fits_stays_on_its_line_and_the_page_keeps_its_size(tables):
    two = plot_accuracy_curves(tables(("sgd", "reg-sgd")).metrics)
    assert [ax.get_title() for ax in two] == ["SGD", "Regularised SGD"]
    one = plot_accuracy_curves(tables(("sgd", "1-sam")).metrics)
    assert figure_of(one).get_figheight() == figure_of(two).get_figheight()


def test_direct_labels_do_not_overlap_even_where_lines_end_together(tables):
    whole = tables(tuple(METHOD_STYLES)[:8], seeds=1)
    whole.metrics["value"] = 0.7
    ax = plot_test_accuracy(whole.metrics)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    # Annotation extents include the leader, so the text alone is compared by its height at its anchor.
    centres = sorted(text.get_transform().transform(text.get_position())[1] for text in ax.texts)
    assert len(boxes) == 8
    assert min(np.diff(centres)) >= 8.5 * ax.figure.dpi / 72  # the font size, in pixels


@pytest.mark.parametrize(("count", "labels"), [(2, "direct"), (12, "auto"), (12, "legend")])
def test_names_of_any_length_leave_the_axes_half_of_the_figure(count, labels):
    names = [f"a method of one's own whose name has some seventy letters in all, rho 0.{number}" for number in range(count)]
    rows = [(name, 0, e, "test", "all", "accuracy", 0.3 + 0.05 * e) for name in names for e in range(4)]
    table = pd.DataFrame(rows, columns=["method", "seed", "epoch", "split", "group", "metric", "value"])
    ax = plot_test_accuracy(table, labels=labels)
    FigureCanvasAgg(figure_of(ax)).draw()
    assert ax.get_window_extent().width >= 0.5 * figure_of(ax).bbox.width


@pytest.mark.parametrize("kind", ["sd", "interval"])
def test_accuracy_lines_and_bands_are_mean_and_spread_of_the_table(kind, tables):
    whole = tables(seeds=4)
    for panel, method in zip(plot_accuracy_curves(whole.metrics, band=kind), ("sgd", "1-sam"), strict=True):
        rows = whole.metrics[(whole.metrics["method"] == method) & (whole.metrics["split"] == "test")]
        values = rows.pivot_table(index="epoch", columns="seed", values="value").to_numpy()
        drawn = line(panel, "test")
        assert drawn.get_xdata() == pytest.approx(np.arange(21.0))
        assert drawn.get_ydata() == pytest.approx(values.mean(axis=1))
        half = values.std(axis=1, ddof=1) * (1.0 if kind == "sd" else student.ppf(0.975, 3) / 2.0)
        low, high = band(panel, 2)  # clean, noisy, test
        assert low == pytest.approx(values.mean(axis=1) - half)
        assert high == pytest.approx(values.mean(axis=1) + half)


def test_early_stopping_points_lie_at_the_mean_over_the_seeds_of_their_method(tables):
    whole = tables()
    for panel, method in zip(plot_accuracy_curves(whole.metrics, whole.stops), ("sgd", "1-sam"), strict=True):
        for selection, label in (
            ("oracle", "best on test (oracle)"),
            ("validation", "selected on noisy validation"),
            ("last", "last"),
        ):
            rows = whole.stops[(whole.stops["method"] == method) & (whole.stops["selection"] == selection)]
            point = line(panel, label)
            assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx(
                (rows["epoch"].mean(), rows["test_accuracy"].mean())
            )


def test_test_accuracy_draws_one_line_per_method_in_its_fixed_look(tables):
    whole = tables(("my own", "1-sam", "sgd"))
    ax = plot_test_accuracy(whole.metrics)
    assert [drawn.get_label() for drawn in ax.lines] == ["SGD", "1-SAM", "my own"]
    rows = whole.metrics[(whole.metrics["method"] == "1-sam") & (whole.metrics["split"] == "test")]
    assert line(ax, "1-SAM").get_ydata() == pytest.approx(rows.groupby("epoch")["value"].mean().to_numpy())
    assert line(ax, "1-SAM").get_color() == METHOD_STYLES["1-sam"].color


def test_settings_of_one_method_are_lines_of_their_own(tables):
    small, large = tables(("1-sam",), setting="rho=0.1"), tables(("1-sam",), setting="rho=0.3")
    ax = plot_test_accuracy(pd.concat([small.metrics, large.metrics]), pd.concat([small.stops, large.stops]))
    first, second = line(ax, "1-SAM (rho=0.1)"), line(ax, "1-SAM (rho=0.3)")
    assert (first.get_color(), first.get_linestyle()) != (second.get_color(), second.get_linestyle())
    assert first.get_marker() == second.get_marker()


def look(drawn) -> tuple:
    return drawn.get_color(), str(drawn._dash_pattern), drawn.get_marker()


LINES = {
    "test accuracy": lambda tables: plot_test_accuracy(tables.metrics, labels="legend"),
    "gradient weight": lambda tables: plot_gradient_weight(tables.path, tables.equal),
    "norms": lambda tables: plot_norms(tables.norms),
}


@pytest.mark.parametrize("draw", LINES.values(), ids=LINES.keys())
def test_lines_of_one_label_look_alike_and_lines_of_two_do_not(draw, tables):
    every = [vars(tables(("1-sam",), 1, 3, setting=f"rho={rho}")) for rho in ("0.2", "0.05", "0.1", "1e-3", "10")]
    every.append(vars(tables(("sgd",), 1, 3)))  # of which the rules at equal weights are SGD, 1-SAM and J-SAM themselves
    merged = SimpleNamespace(**{name: pd.concat([one[name] for one in every]) for name in every[0]})
    merged.equal = merged.equal[merged.equal["method"] == "sgd"]
    figure = figure_of(draw(merged))
    looks: dict[str, set] = {}
    for drawn in (drawn for ax in figure.axes for drawn in ax.lines if not drawn.get_label().startswith("_")):
        looks.setdefault(drawn.get_label(), set()).add(look(drawn))
    assert all(len(found) == 1 for found in looks.values())
    assert len(set.union(*looks.values())) == len(looks)
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    settings = [f"1-SAM (rho={rho})" for rho in ("1e-3", "0.05", "0.1", "0.2", "10")]  # by value, not by place in the table
    both = "1-SAM" in looks  # at equal weights: without a setting of its own
    assert named == ["SGD", *["1-SAM"] * both, *settings, *["J-SAM"] * both]
    handles = dict(zip(named, legend.legend_handles, strict=True))
    assert all({look(handles[label])} == looks[label] for label in named)


def test_what_a_row_of_a_table_is_called_does_not_make_it_two(tables):
    both = pd.concat([tables(("sgd",), 1).path, tables(("1-sam",), 1).path])  # the index holds every number twice
    (ax,) = plot_gradient_weight(both)
    assert figure_of(ax).legends[0].get_title().get_text() == "1 seed"


def test_gradient_weight_draws_rules_at_equal_weights_and_methods_on_their_path(tables):
    whole = tables()
    equal, path = plot_gradient_weight(whole.path, whole.equal, scale="linear")
    assert [drawn.get_label() for drawn in equal.lines if not drawn.get_label().startswith("_")] == ["SGD", "1-SAM", "J-SAM"]
    for ax, table, key in ((equal, whole.equal, "rule"), (path, whole.path, "method")):
        rows = table[table[key] == "1-sam"]
        assert line(ax, "1-SAM").get_ydata() == pytest.approx(rows.groupby("epoch")["ratio"].mean().to_numpy())
        assert any(np.all(np.asarray(drawn.get_ydata()) == 1.0) for drawn in ax.lines)


def test_the_ratio_axis_is_logarithmic_where_ratios_span_much_and_bands_stay_above_zero(tables):
    whole = tables(("sgd",), seeds=3)
    whole.path["ratio"] = np.where(whole.path["seed"] == 0, 9.0, 0.01) * np.exp(-whole.path["epoch"] / 5)
    (ax,) = plot_gradient_weight(whole.path)
    assert ax.get_yscale() == "log"
    assert band(ax, 0)[0].min() == pytest.approx(whole.path["ratio"].min())
    (ax,) = plot_gradient_weight(whole.path, scale="linear")
    assert ax.get_yscale() == "linear"


def test_memorisation_fractions_are_those_of_the_table_and_sum_to_one(tables):
    whole = tables(("sam",))
    (panel,) = plot_memorisation(whole.memorised)
    labels = {
        "true class": "predicts_true",
        "wrong observed label (memorised)": "predicts_observed",
        "another class": "predicts_other",
    }
    for label, column in labels.items():
        assert line(panel, label).get_ydata() == pytest.approx(whole.memorised.groupby("epoch")[column].mean().to_numpy())
    assert sum(np.asarray(drawn.get_ydata()) for drawn in panel.lines) == pytest.approx(1.0)


def test_norms_draw_both_columns(tables):
    whole = tables()
    for panel, column in zip(plot_norms(whole.norms), ("hidden_activation_norm", "last_layer_norm"), strict=True):
        rows = whole.norms[whole.norms["method"] == "1-sam"]
        assert line(panel, "1-SAM").get_ydata() == pytest.approx(rows.groupby("epoch")[column].mean().to_numpy())


def test_weights_are_drawn_bin_by_bin_at_the_nearest_probe_of_the_chosen_method(tables):
    whole = tables()
    grid = plot_weights_against_loss(whole.weights, method="1-sam", epochs=[4.4])
    assert grid.shape == (2, 1)
    assert grid[0, 0].get_title() == "1-SAM, epoch 4"
    rows = whole.weights[
        (whole.weights["method"] == "1-sam") & (whole.weights["epoch"] == 4) & (whole.weights["group"] == "noisy")
    ]
    by_bin = rows.groupby("bin")[["loss", "logit_weight", "jacobian_weight"]].mean()
    for panel, column in zip(grid[:, 0], ("logit_weight", "jacobian_weight"), strict=True):
        assert line(panel, "noisy train").get_xdata() == pytest.approx(by_bin["loss"].to_numpy())
        assert line(panel, "noisy train").get_ydata() == pytest.approx(by_bin[column].to_numpy())


@pytest.mark.parametrize(
    ("lowest", "highest"), [(0.01, 0.6), (0.01, 2.5), (0.01, 9.0), (0.01, 400.0), (1e-5, 3.0), (1e-9, 9.0)]
)
def test_the_losses_at_the_axis_of_weights_against_loss_do_not_overlap(lowest, highest):
    losses, weights = np.geomspace(lowest, highest, 8), {"logit_weight": 1.1, "jacobian_weight": 1.0}
    # Single examples span more than the bins' means that are drawn: the axis is logarithmic for less than a decade.
    rows = [
        {"method": "sgd", "epoch": epoch, "group": "clean", "bin": number, "loss": loss} | weights
        for epoch in (1.0, 2.0, 3.0)
        for number, middle in enumerate(losses[2:])
        for loss in ((middle,) if number else (0.001 * middle, 2 * middle))
    ]
    grid = plot_weights_against_loss(pd.DataFrame(rows))
    figure = grid[0, 0].figure
    figure.canvas.draw()
    for panel in grid[1]:
        low, high = panel.get_xlim()
        boxes = [
            label.get_window_extent()
            for place, label in zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)
            if label.get_text() and low <= place <= high
        ] + [label.get_window_extent() for label in panel.get_xticklabels(minor=True) if label.get_text()]
        assert len(boxes) >= 2
        boxes.sort(key=lambda box: box.x0)
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_weights_of_a_method_or_setting_that_was_not_run_name_those_that_were(tables):
    with pytest.raises(InputError, match=r"Unknown method '1sam'.*Did you mean '1-sam'"):
        plot_weights_against_loss(tables().weights, method="1sam")
    with pytest.raises(InputError, match=r"Unknown setting 'rho=1'.*rho=0\.1"):
        plot_weights_against_loss(tables(setting="rho=0.1").weights, setting="rho=1")


def test_unknown_options_are_refused(tables):
    with pytest.raises(InputError, match=r"Unknown labels 'legnd'.*Did you mean 'legend'"):
        plot_test_accuracy(tables().metrics, labels="legnd")
    with pytest.raises(InputError, match=r"Unknown scale 'logarithmic'.*one of: auto, linear, log"):
        plot_gradient_weight(tables().path, scale="logarithmic")
    with pytest.raises(InputError, match=r"Unknown band 'ci'.*one of: sd, interval"):
        plot_norms(tables().norms, band="ci")


def test_the_transition_matrix_shows_its_numbers_and_its_rate():
    matrix = np.array([[0.8, 0.2, 0.0], [0.0, 0.7, 0.3], [0.1, 0.0, 0.9]])
    ax = plot_transition_matrix(matrix, ["a", "b", "c"])
    assert ax.collections[0].get_array().filled() == pytest.approx(matrix)
    assert [text.get_text() for text in ax.texts] == [".80", ".20", "", "", ".70", ".30", ".10", "", ".90"]
    assert ax.get_title() == "wrong labels: 20.0%"
    assert plot_transition_matrix(matrix, ["a", "b", "c"], class_counts=[0, 1, 0]).get_title() == "wrong labels: 30.0%"
    assert plot_transition_matrix(matrix, ["a", "b", "c"], realised_rate=0.123).get_title() == "wrong labels: 12.3%"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize("count", [1, 2, 25, 100])
def test_the_transition_matrix_draws_for_few_and_many_classes_and_a_class_without_examples(count):
    matrix = np.eye(count)
    matrix[-1] = np.nan
    plot_transition_matrix(matrix, range(count)).figure.canvas.draw()


def test_what_is_no_transition_matrix_is_refused():
    with pytest.raises(InputError, match=r"has shape \(1, 2\)"):
        plot_transition_matrix([[0.5, 0.5]], ["a"])
    with pytest.raises(InputError, match=r"each row summing to 1.*Divide each row"):
        plot_transition_matrix([[3.0, 1.0], [0.0, 4.0]], ["a", "b"])
    with pytest.raises(InputError, match="3 class names were given for a 2 x 2"):
        plot_transition_matrix(np.eye(2), ["a", "b", "c"])


def test_the_clean_group_of_the_test_split_is_not_counted_as_further_seeds():
    rows = [
        ("sgd", seed, float(epoch), "test", group, "accuracy", 0.5 + 0.01 * epoch + 0.02 * seed)
        for seed in range(3)
        for epoch in range(4)
        for group in ("all", "clean")
    ]
    metrics = pd.DataFrame(rows, columns=["method", "seed", "epoch", "split", "group", "metric", "value"])
    assert plot_test_accuracy(metrics).get_title(loc="left").startswith("3 seeds")
