"""Runs at equal compute: what is spent, what is affordable, and differences where runs are matched."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from noisesam import analysis
from noisesam.errors import InputError

FRONT = ["run", "method", "setting", "seed"]


def curve(method, *, seed=0, setting="", epochs=10, passes=1.0, seconds=0.01, test=None, validation=None, every=1, steps=5):
    """A run with stated passes per step; test accuracies rise by one hundredth an epoch unless they are given."""
    run = f"{method}-{setting}-{seed}"
    rows = []
    for epoch in range(0, epochs + 1, every):
        values = {
            ("test", "all", "accuracy"): epoch / 100 if test is None else test[epoch],
            ("train", "clean", "accuracy"): epoch / epochs,
            ("train", "noisy", "predicts_observed"): epoch / 50,
        }
        if validation is not None:
            values["val", "all", "accuracy"] = validation[epoch]
        if epoch:
            forward, backward = passes if isinstance(passes, tuple) else (passes, passes)
            values |= {("train", "all", "forward_passes"): forward, ("train", "all", "backward_passes"): backward}
            values["train", "all", "step_seconds"] = seconds
        for (split, group, metric), value in values.items():
            rows.append(
                {"run": run, "method": method, "setting": setting, "seed": seed, "step": epoch * steps, "epoch": float(epoch),
                 "split": split, "group": group, "metric": metric, "value": value}
            )  # fmt: skip
    return pd.DataFrame(rows)


def both(*frames):
    return pd.concat(frames, ignore_index=True)


def at(table, method, selection="last", budget=None):
    own = table[(table["method"] == method) & (table["selection"] == selection)]
    return own.iloc[-1] if budget is None else own[own["budget"] == budget].iloc[0]


def test_what_is_spent_is_the_price_of_every_step_so_far(study):
    runs = study({"sgd": {}}, seeds=(0, 1))
    table = analysis.compute_spent(runs)
    assert table.columns.tolist() == [*FRONT, "step", "epoch", "spent"]
    # The invented runs take two forward and two backward passes a step: two steps of SGD each.
    assert table["spent"].tolist() == pytest.approx((2 * table["step"]).tolist(), rel=1e-12)
    seconds = analysis.compute_spent(runs, "seconds")
    expected = seconds["step"] * 0.01 * (seconds["seed"] + 1)
    assert seconds["spent"].tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_a_price_that_changes_is_summed_over_its_own_steps():
    frame = curve("looksam", epochs=4, steps=10)
    price = {1: 2.0, 2: 1.0, 3: 1.5, 4: 1.0}
    frame["value"] = np.where(frame["metric"].str.endswith("_passes"), frame["epoch"].map(price), frame["value"])
    assert analysis.compute_spent(frame)["spent"].tolist() == [0.0, 20.0, 30.0, 45.0, 55.0]


def test_a_backward_pass_counts_as_two_forward_passes():
    spent = analysis.compute_spent(curve("saf", passes=(2.0, 1.0), epochs=3, steps=3))["spent"]
    assert spent.tolist() == pytest.approx([0.0, 4.0, 8.0, 12.0], rel=1e-15)


def test_two_passes_a_step_afford_half_of_the_epochs():
    runs = both(curve("sgd"), curve("sam", passes=2.0))
    table = analysis.at_equal_compute(runs, budgets=[30])
    assert table.columns.tolist() == [
        *FRONT, "cost", "budget", "selection", "reached", "step", "epoch", "spent",
        "test_accuracy", "validation_accuracy", "train_accuracy", "clean_fitted", "noisy_fitted",
    ]  # fmt: skip
    sgd, sam = at(table, "sgd"), at(table, "sam")
    assert (sgd["epoch"], sgd["spent"], sgd["test_accuracy"]) == (6, 30, 0.06)
    assert (sam["epoch"], sam["spent"], sam["test_accuracy"]) == (3, 30, 0.03)
    assert sam["clean_fitted"] == 0.3
    assert sam["noisy_fitted"] == 0.06


def test_the_documented_columns_are_those_of_the_table(study):
    documented = (analysis.__doc__ or "").split("at_equal_compute(runs")[1].split("compute_spent(runs")[0]
    table = analysis.at_equal_compute(study({"sgd": {}}, seeds=(0,)))
    for column in table.columns[4:]:
        assert column in documented


def test_an_evaluation_that_costs_more_than_the_budget_is_not_used():
    runs = both(curve("sgd"), curve("sam", passes=2.0))
    row = at(analysis.at_equal_compute(runs, budgets=[29.9]), "sam")
    assert (row["epoch"], row["spent"]) == (2, 20)


def test_each_selection_is_made_within_the_budget():
    test = [0.1, 0.2, 0.5, 0.4, 0.3, 0.9, 0.2, 0.2, 0.2, 0.2, 0.2]
    validation = [0.1, 0.3, 0.2, 0.2, 0.2, 0.8, 0.2, 0.2, 0.2, 0.2, 0.2]
    runs = both(curve("sgd"), curve("sam", passes=2.0, test=test, validation=validation))
    table = analysis.at_equal_compute(runs, budgets=[40])
    chosen = [at(table, "sam", selection) for selection in ("oracle", "validation", "last")]
    assert [row["epoch"] for row in chosen] == [2, 1, 4]  # the peaks at epoch 5 cost 50
    assert [row["test_accuracy"] for row in chosen] == [0.5, 0.2, 0.3]
    assert math.isnan(at(table, "sgd", "validation")["test_accuracy"])  # without a validation split


def test_without_a_budget_it_is_parts_of_what_the_cheapest_run_spent():
    runs = both(curve("sgd"), curve("sam", passes=2.0))
    table = analysis.at_equal_compute(runs)
    assert table["budget"].unique().tolist() == [12.5, 25.0, 37.5, 50.0]
    assert table["reached"].all()
    assert at(table, "sgd")["epoch"] == 10
    assert at(table, "sam")["epoch"] == 5


def test_seconds_are_a_cost_of_their_own():
    runs = both(curve("sgd", seconds=0.01), curve("sam", passes=2.0, seconds=0.025))
    table = analysis.at_equal_compute(runs, budgets=[0.5], cost="seconds")
    assert (at(table, "sgd")["epoch"], at(table, "sam")["epoch"]) == (10, 4)
    assert set(table["cost"]) == {"seconds"}


def test_a_run_that_never_spent_the_budget_has_no_value_there():
    runs = both(curve("sgd"), curve("sam", passes=2.0))
    table = analysis.at_equal_compute(runs, budgets=[100])
    assert not at(table, "sgd")["reached"]
    assert math.isnan(at(table, "sgd")["test_accuracy"])
    assert at(table, "sam")["reached"]
    assert at(table, "sam")["epoch"] == 10


def test_what_was_not_measured_is_nan_and_not_free():
    silent = curve("sam")
    silent = silent[~silent["metric"].str.endswith("_passes")]
    spent = analysis.compute_spent(silent)["spent"]
    assert spent.iloc[0] == 0
    assert spent.iloc[1:].isna().all()
    table = analysis.at_equal_compute(both(curve("sgd"), silent), budgets=[20])
    assert not at(table, "sam")["reached"]
    assert math.isnan(at(table, "sam")["test_accuracy"])
    with pytest.raises(InputError, match="No run says what it spent in passes"):
        analysis.at_equal_compute(silent)


def test_evaluations_further_apart_are_paid_in_full():
    runs = both(curve("sgd", every=1), curve("sam", passes=2.0, every=5))
    assert at(analysis.at_equal_compute(runs, budgets=[50]), "sam")["epoch"] == 5
    assert at(analysis.at_equal_compute(runs, budgets=[49]), "sam")["epoch"] == 0  # only the untrained model is paid for


def test_differences_at_equal_compute_are_paired_by_seed():
    generator = np.random.default_rng(0)
    frames, values = [], {}
    for method, passes in (("sgd", 1.0), ("sam", 2.0)):
        for seed in range(4 if method == "sgd" else 3):
            test = generator.uniform(0.4, 0.9, 11)
            values[method, seed] = test
            frames.append(curve(method, seed=seed, passes=passes, test=test))
    table = analysis.at_equal_compute(both(*frames), budgets=[20, 40])
    found = analysis.matched_differences(table).set_index(["budget", "selection"])
    for budget in (20, 40):
        ours = [values["sam", seed][budget // 10] for seed in range(3)]
        theirs = [values["sgd", seed][budget // 5] for seed in range(3)]
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        row = found.loc[(budget, "last")]
        assert row["pairs"] == 3
        # 1e-9: the same formula at three pairs.
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    columns = ["method", "setting", "baseline", "baseline_setting", "cost", "budget", "selection", "difference", "sd", "low",
               "high", "pairs"]  # fmt: skip
    assert analysis.matched_differences(table).columns.tolist() == columns


def test_differences_at_equal_clean_accuracy_leave_out_seeds_that_did_not_reach_it(study):
    runs = study({"sgd": {}, "1-sam": {"last": 0.9}})
    table = analysis.at_equal_clean_accuracy(runs, levels=[0.5, 0.9])
    table.loc[(table["method"] == "1-sam") & (table["seed"] == 2) & (table["level"] == 0.9), "test_accuracy"] = math.nan
    found = analysis.matched_differences(table).set_index("level")
    assert found["pairs"].to_dict() == {0.5: 3, 0.9: 2}
    own = table[table["level"] == 0.5].set_index(["method", "seed"])["test_accuracy"]
    assert found.loc[0.5, "difference"] == pytest.approx((own["1-sam"] - own["sgd"]).mean(), abs=1e-12)


def test_a_setting_is_matched_with_the_baseline_of_its_name_and_never_with_another():
    frames = [curve(method, setting=setting, passes=1.0 + (method == "sam"))
              for method in ("sgd", "sam") for setting in ("rate=0.2", "rate=0.4")]  # fmt: skip
    table = analysis.at_equal_compute(both(*frames), budgets=[20])
    found = analysis.matched_differences(table)
    assert (found["setting"] == found["baseline_setting"]).all()
    stranger = both(*frames, curve("1-sam", setting="rate=0.6", passes=2.0))
    with pytest.raises(InputError, match=r"No setting of sgd is called 'rate=0.6'.*'rate=0.2'"):
        analysis.matched_differences(analysis.at_equal_compute(stranger, budgets=[20]))
    assert analysis.matched_differences(table, baseline="asam").empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cost": "pass"}, "Unknown cost 'pass'.*Did you mean 'passes'"),
        ({"budgets": [0.0]}, "budgets=.*positive"),
        ({"budgets": [10, float("nan")]}, "budgets=.*positive"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_remedy(arguments, message):
    with pytest.raises(InputError, match=message):
        analysis.at_equal_compute(curve("sgd"), **arguments)
    with pytest.raises(InputError, match="without levels or budgets"):
        analysis.matched_differences(pd.DataFrame({"method": ["sgd"], "test_accuracy": [0.5]}))
