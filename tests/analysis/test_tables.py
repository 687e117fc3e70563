"""Every table against its slow twin, and with what a run may lack."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from noisesam import analysis
from noisesam.analysis.inputs import as_tables
from noisesam.errors import InputError
from noisesam.runs import open_runs

FRONT = ["run", "method", "setting", "seed"]

COLUMNS = {
    "early_stopping": "selection step epoch test_accuracy validation_accuracy train_accuracy clean_fitted noisy_fitted gap",
    "noise_fitting_onset": "reached step epoch noisy_fitted clean_fitted test_accuracy chance threshold noisy_count",
    "gradient_weight": "step epoch quantity clean noisy ratio clean_share noisy_share cumulative_ratio",
    "gradient_weight_at_equal_weights": "step epoch rule clean noisy ratio clean_share noisy_share relative_ratio",
    "weights_against_loss": "step epoch group bin loss_low loss_high loss count logit_weight jacobian_weight "
    "logit_weight_median jacobian_weight_median left_out",
    "memorisation": "step epoch predicts_true predicts_observed predicts_other clean_fitted train_accuracy "
    "validation_accuracy test_accuracy",
    "norms": "step epoch hidden_activation_norm hidden_activation_norm_clean hidden_activation_norm_noisy last_layer_norm "
    "weight_norm distance_from_initialisation feature_rank",
    "at_equal_clean_accuracy": "level group reached step epoch fitted test_accuracy validation_accuracy noisy_fitted",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_have_the_documented_columns_whatever_was_measured(study, name):
    for arguments in ({}, {"probe": False, "true_labels": False, "validation": False, "rho": 0.1}):
        runs = study({f"sgd{'-bare' * bool(arguments)}": {"method": "sgd"} | arguments}, seeds=(0,))
        table = getattr(analysis, name)(runs)
        documented = [column for column in COLUMNS[name].split() if column in (analysis.__doc__ or "")]
        assert table.columns.tolist() == [*FRONT, *documented]
        assert documented == COLUMNS[name].split()


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "weights_against_loss"])
def test_the_bare_metrics_table_gives_the_same_but_for_shares(study, name):
    runs = study({"sgd": {}, "1-sam": {"rho": 0.1}}, seeds=(0, 1))
    arguments = {"classes": 10} if name == "noise_fitting_onset" else {}
    function = getattr(analysis, name)
    shares = ["clean_share", "noisy_share"]
    left, right = (function(source, **arguments).drop(columns=shares, errors="ignore") for source in (runs, runs.metrics))
    pd.testing.assert_frame_equal(left, right)


def test_one_run_is_a_collection_of_one(study):
    runs = study({"sgd": {}}, seeds=(0,))
    pd.testing.assert_frame_equal(analysis.summary(runs[0]), analysis.summary(runs))


def test_early_stopping_is_the_first_highest_evaluation(study, twin):
    runs = study({"sgd": {}, "1-sam": {"last": 0.9}})
    table = analysis.early_stopping(runs).set_index(["run", "selection"])
    for run in runs:
        test = twin.curve(run.metrics, "test", "all", "accuracy")
        validation = twin.curve(run.metrics, "val", "all", "accuracy")
        chosen = {"oracle": twin.first_highest(test), "validation": twin.first_highest(validation), "last": max(test)}
        for selection, step in chosen.items():
            row = table.loc[(run.id, selection)]
            assert row["step"] == step
            assert row["test_accuracy"] == test[step]
            assert row["gap"] == max(test.values()) - test[step]
            assert row["noisy_fitted"] == twin.curve(run.metrics, "train", "noisy", "predicts_observed")[step]
    assert table.xs("validation", level="selection")["epoch"].nunique() == 2  # The selections do differ between seeds.


def test_the_onset_is_the_first_of_two_evaluations_above_chance(study, twin):
    runs = study({"sgd": {"memorised": 0.9}, "1-sam": {"memorised": 0.12}, "never": {"memorised": 0.1}})
    table = analysis.noise_fitting_onset(runs).set_index("run")
    for run in runs:
        step = twin.onset(run.metrics, 10)
        assert table.loc[run.id, "reached"] == (step is not None)
        assert table.loc[run.id, "step"] == step or (step is None and math.isnan(table.loc[run.id, "step"]))
    # 0.13 = 0.1 + 2 sqrt(0.1 * 0.9 / 400), to rounding.
    assert table["threshold"].tolist() == pytest.approx([0.13] * 9, abs=1e-12)
    assert table["reached"].tolist().count(True) == 3


def test_a_single_evaluation_above_chance_is_no_onset():
    front = {"run": "a", "method": "sgd", "setting": "", "seed": 0, "split": "train", "group": "noisy"}
    values = [0.1, 0.9, 0.1, 0.9]
    rows = [front | {"metric": "predicts_observed", "step": s, "epoch": s, "value": v} for s, v in enumerate(values)]
    rows += [front | {"metric": "count", "step": s, "epoch": s, "value": 100.0} for s in range(4)]
    assert not analysis.noise_fitting_onset(pd.DataFrame(rows), classes=10)["reached"].any()
    with pytest.raises(InputError, match=r"number of classes of run 'a' is unknown\. Expected at least 2\. Hand in classes=\."):
        analysis.noise_fitting_onset(pd.DataFrame(rows))


@pytest.mark.parametrize("quantity", ["step_gradient_norm", "gradient_norm", "residual_norm"])
def test_shares_and_ratios_are_those_of_the_single_examples(study, twin, quantity):
    runs = study({"sgd": {}}, seeds=(0, 1))
    table = analysis.gradient_weight(runs, quantity)
    for run in runs:
        own = table[table["run"] == run.id]
        for row in own.itertuples():
            shares = [twin.share_of_sum(run.examples, row.step, quantity, group) for group in ("clean", "noisy")]
            # 1e-12: sums of thirty numbers of order one.
            assert [row.clean_share, row.noisy_share] == pytest.approx(shares, abs=1e-12)
        assert own["cumulative_ratio"].tolist() == pytest.approx(twin.cumulative_ratio(run.metrics, quantity), rel=1e-12)
        np.testing.assert_array_equal(own["ratio"], own["clean"] / own["noisy"])
    # 1e-12: the two shares of one sum.
    assert (table["clean_share"] + table["noisy_share"]).tolist() == pytest.approx([1.0] * len(table), abs=1e-12)


def test_the_step_term_and_the_plain_gradient_are_never_mixed(study):
    runs = study({"sgd": {}}, seeds=(0,))
    step, plain = (analysis.gradient_weight(runs, name)["clean"] for name in ("step_gradient_norm", "gradient_norm"))
    assert (step > plain).all()  # The invented step terms are 1.1 times the plain ones.
    with pytest.raises(InputError, match=r"Unknown quantity 'gradient_norms'\. .* Did you mean 'gradient_norm'\?"):
        analysis.gradient_weight(runs, "gradient_norms")


def test_at_equal_weights_the_relative_ratio_is_what_the_rule_does_to_clean_examples(study):
    gains = {"sam": 1.2, "one_sam": 1.5, "l_sam": 1.0, "j_sam": 0.8}
    runs = study({"sgd": {"rule_gain": gains}, "1-sam": {"rule_gain": {"one_sam": 9.0}}}, seeds=(0, 1))
    table = analysis.gradient_weight_at_equal_weights(runs)
    assert set(table["method"]) == {"sgd"}
    for rule, gain in {"sgd": 1.0, "sam": 1.2, "1-sam": 1.5, "l-sam": 1.0, "j-sam": 0.8}.items():
        # 1e-12: a ratio of means of thirty numbers.
        np.testing.assert_allclose(table.loc[table["rule"] == rule, "relative_ratio"], gain, rtol=1e-12)
    assert analysis.gradient_weight_at_equal_weights(runs, baseline="sam").empty


@pytest.mark.parametrize("bins", [1, 4, 8])
def test_weights_in_loss_bins_are_those_of_a_loop_over_examples(study, twin, bins):
    runs = study({"sgd": {"rule_gain": {"j_sam": 1.3}}}, seeds=(0,))
    table = analysis.weights_against_loss(runs, bins=bins)
    assert table["left_out"].sum() == 2 * runs[0].examples["step"].nunique()  # One example per probe, in `all` and its group.
    for (step, group), own in table.groupby(["step", "group"]):
        expected = twin.loss_bins(runs[0].examples, step, group, bins)
        assert own["bin"].tolist() == sorted(expected)
        for row in own.to_dict("records"):
            for name, value in expected[row["bin"]].items():
                # 1e-12: sums of at most thirty numbers of order one.
                assert row[name] == pytest.approx(value, rel=1e-12), (step, group, row["bin"], name)
    counts = {group: own.groupby("step")["count"].sum() for group, own in table.groupby("group")}
    assert (counts["clean"] + counts["noisy"] == counts["all"]).all()


def test_weights_against_loss_needs_the_examples(study):
    runs = study({"sgd": {}}, seeds=(0,))
    with pytest.raises(
        InputError, match=r"A metrics table holds no examples\. Expected saved runs\. Hand in the RunCollection"
    ):
        analysis.weights_against_loss(runs.metrics)
    with pytest.raises(InputError, match=r"bins=0\. Expected a whole number of at least 1\."):
        analysis.weights_against_loss(runs, bins=0)


def test_methods_are_compared_at_the_first_evaluation_that_reaches_the_level(study, twin):
    runs = study({"sgd": {}}, seeds=(0,))
    table = analysis.at_equal_clean_accuracy(runs, levels=[0.0, 0.5, 1.0])
    clean = twin.curve(runs[0].metrics, "train", "clean", "accuracy")
    for row in table.itertuples():
        assert row.step == min(step for step, value in clean.items() if value >= row.level)
    bare = analysis.at_equal_clean_accuracy(
        study({"bare": {"true_labels": False}}, seeds=(0,)).filter(method="bare"), [0.5, 0.99]
    )
    assert bare["group"].tolist() == ["all", "all"]
    assert bare["reached"].tolist() == [True, False]
    assert bare["noisy_fitted"].isna().all()
    with pytest.raises(InputError, match=r"levels=\[90\.0\]\. Expected training accuracies between 0 and 1"):
        analysis.at_equal_clean_accuracy(runs, levels=[90.0])


def test_the_three_fates_of_wrong_labels_sum_to_one(study):
    table = analysis.memorisation(study({"sgd": {}}, seeds=(0,)))
    # 1e-12: three fractions of one whole.
    assert table[["predicts_true", "predicts_observed", "predicts_other"]].sum(axis=1).tolist() == pytest.approx(
        [1.0] * len(table), abs=1e-12
    )


def test_a_run_without_true_labels_has_no_groups_and_every_other_number(study):
    runs = study({"sgd": {"true_labels": False}}, seeds=(0,))
    assert analysis.gradient_weight(runs).empty
    assert set(analysis.weights_against_loss(runs)["group"]) == {"all"}
    stopping = analysis.early_stopping(runs)
    assert stopping["test_accuracy"].notna().all()
    assert stopping["noisy_fitted"].isna().all()
    assert not analysis.noise_fitting_onset(runs)["reached"].any()


def test_no_runs_and_a_foreign_table_are_refused(study, tmp_path):
    runs = study({"sgd": {}}, seeds=(0,))
    with pytest.raises(InputError, match=r"No run to analyse\. Expected at least one saved run"):
        analysis.summary(runs.filter(method="sam"))
    with pytest.raises(InputError, match=r"The table lacks the column 'setting'\."):
        analysis.summary(runs.metrics.drop(columns="setting"))
    twice = pd.concat([runs.metrics, runs.metrics.assign(run="copy")])
    with pytest.raises(InputError, match=r"Two runs share method and setting and seed \(sgd, , 0\)"):
        analysis.summary(twice)


def test_a_broken_part_takes_only_its_own_rows(invented, tmp_path):
    invented(tmp_path / "sgd-0", flush_every=5)
    part = tmp_path / "sgd-0" / "metrics" / "part-000000150.parquet"
    part.write_bytes(part.read_bytes()[:50])
    runs = open_runs(tmp_path)
    assert len(runs.problems) == 1
    curve = analysis.memorisation(runs)
    assert curve["epoch"].tolist() == [*range(11), *range(16, 21)]


def test_a_loss_on_an_edge_belongs_to_the_upper_bin(study, twin):
    tables = as_tables(study({"sgd": {}}, seeds=(0,)))
    tied = tables.examples.assign(loss=np.floor(4 * tables.examples["loss"]))
    table = analysis.weights_against_loss(dataclasses.replace(tables, examples=tied), bins=4)
    for (step, group), own in table.groupby(["step", "group"]):
        expected = twin.loss_bins(tied, step, group, 4)
        assert own.set_index("bin")["count"].to_dict() == {number: values["count"] for number, values in expected.items()}
