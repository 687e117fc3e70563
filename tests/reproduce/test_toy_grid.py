"""The toy grid: the table of docs/mechanism.md, both traps, and the same bits on a repeat."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from noisesam import data
from noisesam.errors import InputError
from noisesam.reproduce import ToyResult, toy_grid, toy_runs
from noisesam.reproduce.toy import COLUMNS, LINEAR, METHODS, RATIO_STEPS, STEPS, TWO_LAYER, TWO_LAYER_METHODS, ZERO_START
from noisesam.reproduce.toy_runs import EPOCHS, LR, exact_test_accuracy, linear_method, train_set

NAN = math.nan

# The table of docs/mechanism.md: peak, its sd, ratios of the step terms at steps 25, 50 and 100 (the first steps scatter).
TABLE = {
    ("sgd", NAN): (0.659, 0.015, (0.72, 0.68, 0.68)),
    ("1-sam", 0.03): (0.700, 0.017, (0.71, 0.67, 0.68)),
    ("1-sam", 0.1): (0.837, 0.015, (0.79, 0.66, 0.65)),
    ("1-sam", 0.3): (0.972, 0.004, (1.00, 0.96, 0.68)),
    ("sam", 0.1): (0.662, 0.017, None),
    ("sam", 0.3): (0.665, 0.017, (0.67, 0.68, 0.68)),
    ("sam", 1.0): (0.671, 0.017, None),
}


@pytest.fixture(scope="module")
def toy() -> ToyResult:
    return toy_grid()


def of(table: pd.DataFrame, setting: str, method: str, rho: float = NAN) -> pd.DataFrame:
    column = "trap" if "trap" in table.columns else "setting"
    same = table["rho"].isna() if math.isnan(rho) else table["rho"] == rho
    return table[(table[column] == setting) & (table["method"] == method) & same]


def test_the_tables_have_their_columns_and_every_run_its_rows(toy):
    for name, columns in COLUMNS.items():
        assert tuple(getattr(toy, name).columns) == columns
    linear, two_layer = 2 * len(METHODS) * 5, len(TWO_LAYER_METHODS) * 5
    assert len(toy.accuracy) == linear * (STEPS + 1) + two_layer * (EPOCHS + 1)
    assert len(toy.runs) == linear + two_layer
    assert len(toy.ratios) == linear * len(RATIO_STEPS)
    assert not toy.accuracy.drop(columns="rho").isna().any(axis=None)


@pytest.mark.parametrize(("method", "rho"), TABLE)
def test_peaks_and_ratios_are_those_of_the_stated_table(toy, method, rho):
    peak, sd, ratios = TABLE[method, rho]
    (row,) = of(toy.peaks, LINEAR, method, rho).to_dict("records")
    assert abs(row["peak_mean"] - peak) <= 2 * sd
    assert row["seeds"] == 5
    assert row["peak_low"] < row["peak_mean"] < row["peak_high"]
    assert 0.61 <= row["last_mean"] <= 0.68  # the gain is at the peak alone
    if ratios is not None:
        table = toy.ratio_table()
        same = table["rho"].isna() if math.isnan(rho) else table["rho"] == rho
        (own,) = table[(table["method"] == method) & same & (table["quantity"] == "step terms")].to_dict("records")
        assert [own[25], own[50], own[100]] == pytest.approx(ratios, abs=0.05)


def test_ratios_of_plain_gradients_stand_beside_those_of_step_terms_and_are_another_thing(toy):
    table = toy.ratio_table().set_index("quantity")
    strongest = table[(table["method"] == "1-sam") & (table["rho"] == 0.3)]
    # The stated path of 1-SAM .3: .96/.51/.17/.03/.01, of which the first steps scatter.
    assert list(strongest.loc["plain gradients", [25, 50, 100]]) == pytest.approx([0.17, 0.03, 0.01], abs=0.05)
    assert strongest.loc["step terms", 50] > 0.9
    sgd = table[table["method"] == "sgd"]
    # Without eps the two are one quantity; float32 sums in one order and in another.
    assert list(sgd.loc["plain gradients", [0, 10, 100]]) == pytest.approx(list(sgd.loc["step terms", [0, 10, 100]]), rel=1e-5)


def test_the_larger_rho_the_higher_the_peak_of_one_sam_and_batch_sam_gains_little(toy):
    peaks = [float(of(toy.peaks, LINEAR, "1-sam", rho)["peak_mean"].iloc[0]) for rho in (0.03, 0.1, 0.3)]
    naive = [float(of(toy.peaks, LINEAR, "sam", rho)["peak_mean"].iloc[0]) for rho in (0.1, 0.3, 1.0)]
    plain = float(of(toy.peaks, LINEAR, "sgd")["peak_mean"].iloc[0])
    assert plain < peaks[0] < peaks[1] < peaks[2]
    assert max(naive) < plain + 0.03 < peaks[1]
    assert (of(toy.peaks, LINEAR, "1-sam", 0.3)["gain_low"] > 0.2).all()


def test_trap_from_a_zero_start_one_sam_gains_nothing_and_batch_sam_is_best(toy):
    traps = toy.traps[toy.traps["trap"] == ZERO_START].set_index("method")
    assert traps.loc["sgd", "peak_mean"] == pytest.approx(0.988, abs=0.005)
    assert abs(traps.loc["1-sam", "gain_mean"]) <= 0.002
    assert traps.loc["sam", "peak_mean"] == pytest.approx(0.999, abs=0.002)
    assert traps.loc["sam", "gain_low"] > 0


def test_trap_on_two_layer_linear_networks_the_logit_scale_alone_beats_one_sam_and_j_sam(toy):
    traps = toy.traps[toy.traps["trap"] == TWO_LAYER].set_index("method")
    peaks = traps["peak_mean"]
    assert peaks["l-sam"] > peaks["1-sam"] > peaks["j-sam"] > peaks["sgd"]
    assert peaks["l-sam"] == pytest.approx(0.98, abs=0.02)
    assert list(traps.loc[["sgd", "1-sam", "l-sam", "j-sam"], "rho_chosen"]) == ["", "oracle", "oracle", "oracle"]
    every = toy.peaks[toy.peaks["setting"] == TWO_LAYER]
    for method, best in peaks.items():
        assert best == every.loc[every["method"] == method, "peak_mean"].max()


def test_the_summary_is_that_of_the_curves(toy):
    own = of(toy.accuracy, LINEAR, "1-sam", 0.3)
    curves = own.pivot_table(index="step", columns="seed", values="test_accuracy")
    (row,) = of(toy.peaks, LINEAR, "1-sam", 0.3).to_dict("records")
    assert row["peak_mean"] == pytest.approx(curves.max().mean())
    assert row["peak_sd"] == pytest.approx(curves.max().std())
    assert row["last_mean"] == pytest.approx(curves.loc[STEPS].mean())
    plain = of(toy.accuracy, LINEAR, "sgd").pivot_table(index="step", columns="seed", values="test_accuracy")
    assert row["gain_mean"] == pytest.approx((curves.max() - plain.max()).mean())
    runs = of(toy.runs, LINEAR, "1-sam", 0.3)
    assert list(runs["peak_step"]) == list(curves.idxmax())


def test_a_repeat_gives_the_same_bits_and_the_number_of_threads_stays_as_it_was():
    def run() -> list[pd.DataFrame]:
        return [*toy_runs.linear(range(2), steps=20), toy_runs.two_layer(range(2), epochs=1)]

    threads = torch.get_num_threads()
    for first, again in zip(run(), run(), strict=True):
        pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert torch.get_num_threads() == threads


def test_a_run_of_the_grid_is_that_of_the_ordinary_loop(toy):
    train, method = train_set(1), linear_method("1-sam", 0.3, 1, init_std=0.03)
    optimizer = torch.optim.SGD(method.model.parameters(), lr=LR)
    own = of(toy.accuracy, LINEAR, "1-sam", 0.3)
    own = own[own["seed"] == 1].set_index("step")
    ratios = of(toy.ratios, LINEAR, "1-sam", 0.3)
    ratios = ratios[ratios["seed"] == 1].set_index("step")
    for step in range(51):
        weight = method.model.last_layer.weight.detach()
        if step in (0, 10, 50):
            exact = data.gaussian_test_accuracy(weight, signal=4.0, noise_std=1.0)
            assert own.loc[step, "test_accuracy"] == pytest.approx(exact, abs=1e-5)  # float32 over 50 steps
            with torch.no_grad():
                right = ((method.model(train.inputs)[:, 0] > 0).long() == train.labels).double()
            assert own.loc[step, "train_accuracy"] == pytest.approx(float(right.mean()), abs=0.005)
            assert own.loc[step, "clean_fitted"] == pytest.approx(float(right[~train.is_noisy].mean()), abs=0.005)
            assert own.loc[step, "noisy_fitted"] == pytest.approx(float(right[train.is_noisy].mean()), abs=0.005)
            norms = method.step_terms(train.inputs, train.labels).gradient_norm
            expected = float(norms[~train.is_noisy].mean() / norms[train.is_noisy].mean())
            assert ratios.loc[step, "step_term_ratio"] == pytest.approx(expected, abs=1e-4)
        optimizer.zero_grad()
        method.backward(train.inputs, train.labels)
        optimizer.step()


def test_the_accuracy_of_many_models_is_that_of_each_alone():
    weights = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0))
    weights[0, 0] = 0.0
    weights[0, 1, 1:] = 0.0
    found = exact_test_accuracy(weights)
    expected = [[data.gaussian_test_accuracy(w, signal=4.0, noise_std=1.0) for w in row] for row in weights]
    assert found == pytest.approx(np.array(expected), abs=1e-7)  # the norm is summed in another precision


def test_no_seeds_and_tables_without_their_columns_are_refused(toy):
    with pytest.raises(InputError, match=r"seeds=0.*at least one seed"):
        toy_grid(0)
    with pytest.raises(InputError, match=r"two_layer_seeds=0\."):
        toy_grid(1, two_layer_seeds=0)
    with pytest.raises(InputError, match=r"table 'runs' lacks the column 'peak'.*toy_grid"):
        ToyResult(toy.accuracy, toy.runs.drop(columns="peak"), toy.peaks, toy.ratios, toy.traps)
