"""One row per setting over seeds, and differences paired by seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from noisesam import analysis
from noisesam.analysis.comparison import QUANTITIES


def test_summary_is_the_mean_over_seeds_of_what_each_run_shows(study, twin):
    runs = study({"sgd": {}, "1-sam": {"peak": 0.95, "last": 0.94, "rho": 0.1}})
    table = analysis.summary(runs).set_index("method")
    assert table["seeds"].tolist() == [3, 3]
    for method in ("sgd", "1-sam"):
        curves = [twin.curve(run.metrics, "test", "all", "accuracy") for run in runs.filter(method=method)]
        last = [curve[max(curve)] for curve in curves]
        expected = stats.t.interval(0.95, 2, loc=np.mean(last), scale=stats.sem(last))
        row = table.loc[method]
        # 1e-12: means of three numbers of order one.
        assert row["last_test_accuracy_mean"] == pytest.approx(np.mean(last), abs=1e-12)
        assert row["last_test_accuracy_sd"] == pytest.approx(np.std(last, ddof=1), abs=1e-12)
        assert (row["last_test_accuracy_low"], row["last_test_accuracy_high"]) == pytest.approx(expected, abs=1e-12)
        assert row["oracle_test_accuracy_mean"] == pytest.approx(np.mean([max(c.values()) for c in curves]), abs=1e-12)
        assert (row["last_epoch_mean"], row["oracle_epoch_mean"]) == (20, 10)
        assert (row["forward_passes"], row["backward_passes"], row["step_seconds"]) == (2.0, 2.0, 0.02)
    names = [f"{name}_{part}" for name in QUANTITIES for part in ("mean", "sd", "low", "high")]
    last_columns = ["onset_reached", "forward_passes", "backward_passes", "step_seconds"]
    assert analysis.summary(runs).columns.tolist() == ["method", "setting", "seeds", *names, *last_columns]


def test_early_is_the_first_tenth_without_step_zero_and_best_the_nearest_probe(study):
    runs = study({"sgd": {}}, seeds=(0,))
    row = analysis.summary(runs).iloc[0]
    weight = analysis.gradient_weight(runs).set_index("epoch")
    early = weight.loc[[1.0, 2.0]]  # A tenth of 20 epochs; probes at 0, 1, 2, 5, 10, 15, 20.
    # 1e-12: means of two numbers.
    assert row["early_ratio_mean"] == pytest.approx(early["clean"].mean() / early["noisy"].mean(), rel=1e-12)
    assert row["oracle_ratio_mean"] == weight.loc[10.0, "ratio"]


def test_a_first_probe_within_a_fifth_stands_for_early_and_a_later_one_does_not(study):
    metrics = study({"sgd": {}}, seeds=(0,)).metrics
    probe = metrics["split"] == "probe"
    until = metrics[~probe | (metrics["epoch"] >= 5)]
    assert math.isnan(analysis.summary(until)["early_ratio_mean"].iloc[0])
    stretched = until.assign(epoch=until["epoch"].where(until["epoch"] != 5, 4.0))
    ratio = analysis.gradient_weight(stretched).set_index("epoch")["ratio"]
    assert analysis.summary(stretched)["early_ratio_mean"].iloc[0] == ratio[4.0]


def test_one_seed_has_means_and_no_intervals(study):
    table = analysis.summary(study({"sgd": {}}, seeds=(0,)))
    assert table[[f"{name}_mean" for name in QUANTITIES]].notna().all(axis=None)
    assert table[[f"{name}_{part}" for name in QUANTITIES for part in ("sd", "low", "high")]].isna().all(axis=None)


def test_what_was_not_measured_is_nan_in_the_summary(study):
    runs = study({"sgd": {"validation": False, "probe": False, "true_labels": False}})
    row = analysis.summary(runs).iloc[0]
    assert math.isnan(row["validation_test_accuracy_mean"])
    assert math.isnan(row["early_ratio_mean"])
    assert math.isnan(row["last_noisy_fitted_mean"])
    assert row["onset_reached"] == 0
    assert row["last_test_accuracy_mean"] == pytest.approx(0.7, abs=0.01)  # The invented curve's end, with its jitter.


def test_differences_are_paired_by_seed(study):
    runs = study({"sgd": {}, "1-sam": {"last": 0.9}, "sam": {"last": 0.6}})
    runs = runs.filter(lambda run: not (run.method == "sam" and run.seed == 2))
    table = analysis.paired_differences(runs).set_index(["method", "selection"])
    stopping = analysis.early_stopping(runs).set_index(["method", "selection", "seed"])["test_accuracy"]
    for method, pairs in (("1-sam", 3), ("sam", 2)):
        for selection in ("oracle", "validation", "last"):
            ours, theirs = stopping[method][selection], stopping["sgd"][selection]
            expected = stats.ttest_rel(ours, theirs.loc[ours.index])
            row = table.loc[(method, selection)]
            assert row["pairs"] == pairs
            bounds = expected.confidence_interval(0.95)
            # 1e-9: the same formula, at two or three pairs with a spread of 1e-3.
            assert (row["low"], row["high"]) == pytest.approx((bounds.low, bounds.high), abs=1e-9)
    assert set(table["baseline"]) == {"sgd"}


def test_a_setting_is_compared_with_the_baseline_of_its_own_noise(study):
    def noise(rate: float) -> dict:
        return {"noise": {"kind": "symmetric", "rate": rate}}

    runs = study(
        {
            "sgd-low": {"method": "sgd", "sections": noise(0.2), "last": 0.8},
            "sgd-high": {"method": "sgd", "sections": noise(0.6), "last": 0.4},
            "low": {"method": "1-sam", "rho": 0.1, "sections": noise(0.2), "last": 0.9},
            "high": {"method": "1-sam", "rho": 0.1, "sections": noise(0.6), "last": 0.7},
        }
    )
    table = analysis.paired_differences(runs)
    last = table[table["selection"] == "last"].set_index("setting")
    assert last["baseline_setting"].to_dict() == {"rate=0.2": "rate=0.2", "rate=0.6": "rate=0.6"}
    # 0.02: ten times the sd of the invented jitter.
    assert last["difference"].tolist() == pytest.approx([0.1, 0.3], abs=0.02)


def test_without_an_exact_counterpart_every_baseline_setting_is_shown(study):
    def rate(lr: float) -> dict:
        return {"optimizer": {"lr": lr}}

    runs = study(
        {
            "sgd-a": {"method": "sgd", "sections": rate(0.1)},
            "sgd-b": {"method": "sgd", "sections": rate(0.2)},
            "1-sam": {"sections": rate(0.3)},
        }
    )
    table = analysis.paired_differences(runs)
    assert table["baseline_setting"].unique().tolist() == ["lr=0.1", "lr=0.2"]
    assert len(table) == 6


def test_without_the_baseline_there_is_nothing_to_subtract(study):
    table = analysis.paired_differences(study({"1-sam": {}}))
    assert table.empty
    assert table.columns.tolist()[:2] == ["method", "setting"]
