"""What evidence takes from runs: variants told apart, numbers as they were written, runs that do not count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from reference.invented_evidence import GAIN, evidence
from reference.invented_runs import invent

from noisesam.errors import InputError
from noisesam.reproduce import toy
from noisesam.reproduce.claims import judge
from noisesam.reproduce.decisions import SUPPORTED, UNDECIDED
from noisesam.reproduce.evidence import DEEP, LINEAR, MAIN, NO_NOISE, TWO_LAYER, Evidence
from noisesam.reproduce.evidence_measures import measure, parameters_of
from noisesam.reproduce.evidence_runs import combine, evidence_of
from noisesam.reproduce.evidence_toy import WRONG_LABELS, evidence_of_toy
from noisesam.runs import RunCollection, open_runs

NOT_NOISY = {"noise": {"kind": "symmetric", "rate": 0.0}, "training": {"epochs": 8}}
SMALL = {"data": {"name": "digits", "train_size": 300, "validation_size": 200}, "training": {"epochs": 80}}
NARROW = {"model": {"name": "mlp", "options": {"hidden": [4]}}}
NARROWER = {"model": {"name": "mlp", "options": {"hidden": [2]}}}


@pytest.fixture
def runs(tmp_path):
    """Write runs: `runs({...}, {...})`, one dictionary of arguments each."""
    numbers = itertools.count()

    def write(*every):
        return RunCollection([invent(tmp_path / str(next(numbers)), **own) for own in every])

    return write


def test_variants_are_told_by_what_the_configurations_differ_in(runs):
    every = [
        *({"method": method} for method in ("sgd", "1-sam", "j-sam")),
        {"method": "sgd", "sections": NOT_NOISY},
        {"method": "sgd", "sections": SMALL, "sizes": {"train": 100}},
        {"method": "sgd", "sections": NARROW},
        {"method": "sgd", "sections": {"optimizer": {"lr": 0.5}}},
    ]
    found = evidence_of(runs(*every), setting="digits")
    assert (found.setting, found.kind) == ("digits", DEEP)
    expected = [*[MAIN] * 3, NO_NOISE, "size-100", "narrow", "optimizer.lr=0.5"]
    assert found.runs["variant"].tolist() == expected
    assert found.variants("size") == ["size-100"]


def test_several_widths_are_variants_of_their_own_smallest_first(runs):
    found = evidence_of(runs({"method": "sgd"}, {"sections": NARROW}, {"sections": NARROWER}), setting="digits")
    assert found.variants("narrow") == ["narrow-160", "narrow-310"]
    assert found.runs["parameters"].tolist() == [65 * 16 + 17 * 10, 65 * 4 + 5 * 10, 65 * 2 + 3 * 10]


def test_the_setting_itself_is_where_most_methods_were_run_then_the_largest(runs):
    small = {"sections": SMALL, "sizes": {"train": 100}}
    found = evidence_of(runs({"method": "sgd"}, {"method": "1-sam"}, {"method": "sgd", **small}), setting="a")
    assert found.runs["variant"].tolist() == [MAIN, MAIN, "size-100"]
    found = evidence_of(runs(small, {"method": "1-sam", **small}, {"method": "sgd"}, {"method": "1-sam"}), setting="a")
    assert dict(zip(found.runs["train_examples"], found.runs["variant"], strict=True)) == {100: "size-100", 1000: MAIN}
    found = evidence_of(runs(small, {"method": "1-sam", **small}, {"method": "sgd"}), setting="a")
    assert dict(zip(found.runs["train_examples"], found.runs["variant"], strict=True)) == {100: MAIN, 1000: "size-1000"}


def test_what_only_looks_on_or_computes_elsewhere_makes_no_other_setting(runs):
    looks = {"tracking": {"rho": 0.2}, "checkpoint": {"every": 3}, "training": {"epochs": 8, "threads": 2, "device": "cuda"}}
    found = evidence_of(runs({"method": "sgd"}, {"method": "1-sam", "sections": looks}), setting="a")
    assert set(found.runs["variant"]) == {MAIN}
    assert found.runs["tracked_rho"].tolist() == [0.1, 0.2]


@pytest.mark.parametrize(("model", "kind"), [("linear", LINEAR), ("two-layer-linear", TWO_LAYER), ("mlp", DEEP), ("own", DEEP)])
def test_the_kind_of_a_setting_follows_from_its_model(runs, model, kind):
    assert evidence_of(runs({"sections": {"model": {"name": model}}}), setting="a").kind == kind


def test_a_setting_without_wrong_labels_is_refused(runs):
    with pytest.raises(InputError, match=r"No run of a has wrong labels\. Expected saved runs of a setting with label noise\."):
        evidence_of(runs({"sections": NOT_NOISY}), setting="a")


def test_two_settings_that_could_both_be_meant_are_refused_with_what_they_differ_in(runs):
    with pytest.raises(InputError, match=r"The runs of a differ in noise\.rate\. Expected one setting"):
        evidence_of(runs({}, {"sections": {"noise": {"kind": "symmetric", "rate": 0.2}}}), setting="a")


def test_the_three_ends_of_training_are_those_of_early_stopping(runs):
    row = measure(runs({})).iloc[0]
    assert row[["oracle_test_accuracy", "validation_test_accuracy", "last_test_accuracy"]].tolist() == [0.8, 0.8, 0.5]
    assert row["validation_validation_accuracy"] == 0.5
    assert (row["last_noisy_fitted"], row["last_train_accuracy"]) == (0.9, pytest.approx(0.96))


def test_clean_examples_fitted_before_the_noise_are_those_at_the_onset(runs):
    assert measure(runs({}))["fitted_before_noise"].item() == 0.9  # 0.3 at epoch 3 is the first of two above 0.13.


def test_a_run_that_never_fits_noise_fitted_all_it_knows_before(runs):
    falls = (0.1, 0.5, 0.8, 0.97, 0.95, 0.9, 0.9, 0.9, 0.9)
    assert measure(runs({"noisy": (0.1,) * 9, "clean": falls}))["fitted_before_noise"].item() == 0.97


def test_low_losses_are_weighed_after_step_zero_and_up_to_early_stopping(runs):
    # Weights of 9 stand at step 0 and after epoch 2, where validation accuracy is highest.
    assert measure(runs({}))["low_loss_factor"].item() == pytest.approx(math.log(2.0))


def test_the_clean_noisy_ratio_is_a_time_mean_over_the_first_quarter(runs):
    expected = (0 + 2 * math.log(0.5) + math.log(0.25)) / 4  # trapezoids of epochs 0, 1, 2; from epoch 3 on it is 9
    assert measure(runs({}))["log_weight_ratio"].item() == pytest.approx(expected)


def test_norms_and_sharpness_are_those_of_the_last_probe(runs):
    row = measure(runs({"norm": 4.0})).iloc[0]
    names = ["hidden_activation_norm", "last_layer_norm", "sharpness", "batch_sharpness"]
    assert row[names].tolist() == pytest.approx([4.0, 4.0, 0.4, 0.04])


def test_a_run_at_chance_and_one_that_did_not_finish_are_marked_not_dropped(runs):
    found = measure(runs({}, {"seed": 1, "validation": (0.1, 0.14) + (0.1,) * 7}, {"seed": 2, "finish": False}))
    assert found["excluded"].tolist() == ["", "stayed at chance", "did not finish"]
    # The bound is 0.1 + 2 sqrt(0.09 / 200) = 0.1424, to be passed twice in succession.
    once, twice = ((0.1, *above) + (0.1,) * 6 for above in ((0.15, 0.1), (0.15, 0.15)))
    found = measure(runs({"seed": 3, "validation": once}, {"seed": 4, "validation": twice}))
    assert found["excluded"].tolist() == ["stayed at chance", ""]


def test_without_validation_examples_nothing_is_said_to_be_at_chance(runs):
    found = evidence_of(runs({"validation": None, "sizes": {"validation": 0}}), setting="a")
    assert found.runs["excluded"].tolist() == [""]
    assert (found.selection, found.early) == ("oracle", "at its highest test accuracy (oracle)")


def test_a_robust_loss_makes_another_method_and_hyper_parameters_make_options(runs):
    found = measure(runs({"options": {"loss": "mae"}}, {"method": "1-sam", "options": {"rho": 0.2, "loss": "cross_entropy"}}))
    assert found["method"].tolist() == ["sgd + mae", "1-sam"]
    assert found["options"].tolist() == ["", "rho=0.2"]
    assert found["rho"].tolist()[1] == 0.2


def test_the_weights_of_a_model_that_is_not_registered_are_not_known(runs):
    assert parameters_of(runs({"sections": {"model": {"name": "own"}}})[0]) is None


def test_what_was_not_measured_is_nan(runs):
    collection = runs({})
    metrics = collection.metrics
    row = measure(metrics[metrics["split"] == "test"]).iloc[0]
    assert row["oracle_test_accuracy"] == 0.8
    assert row[["validation_test_accuracy", "low_loss_factor", "fitted_before_noise", "sharpness"]].isna().all()


def test_variants_can_be_named_by_the_caller(runs, tmp_path):
    main, clean = runs({}), RunCollection([invent(tmp_path / "clean", sections=NOT_NOISY)])
    found = combine("a", DEEP, {MAIN: main, NO_NOISE: clean, "size-10": RunCollection([])})
    assert found.runs["variant"].tolist() == [MAIN, NO_NOISE]


def test_saved_runs_are_judged_as_they_were_invented(tmp_path):
    for seed in range(3):
        invent(tmp_path / f"sgd{seed}", "sgd", seed)
        better = tuple(value + 0.1 + 0.001 * seed for value in (0.1, 0.5, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5, 0.5))
        invent(tmp_path / f"one{seed}", "1-sam", seed, test=better, noisy=(0.1,) * 9)
    found = judge([evidence_of(open_runs(tmp_path), setting="digits")]).set_index("claim")
    assert found.loc["C1", "verdict"] == SUPPORTED
    assert found.loc["C1", "estimate"].startswith("1-sam over sgd at early stopping +10.1 [9.9, 10.3] points")
    assert found.loc["C3", "estimate"].startswith("1-sam over sgd +10.0 [10.0, 10.0] points")
    assert found.loc["C7", "verdict"] != SUPPORTED


def test_an_unknown_kind_a_missing_column_and_a_doubled_run_are_refused():
    frame = evidence(GAIN).runs
    with pytest.raises(InputError, match=r"Unknown kind of setting 'deap'.*Did you mean 'deep'"):
        Evidence("a", "deap", frame)
    with pytest.raises(InputError, match="lack the column 'rho'"):
        Evidence("a", DEEP, frame.drop(columns="rho"))
    with pytest.raises(InputError, match=r"share variant, method, options and seed \(main, sgd, , 0\)"):
        Evidence("a", DEEP, pd.concat([frame, frame]))


def test_of_options_that_lose_a_seed_at_chance_the_mean_counts_the_lost_seed():
    # Without the lost run rho=0.5 would look best.
    methods = {
        "sgd": {"early": 0.7, "validation": 0.4},
        "1-sam|rho=0.1": {"early": 0.8, "validation": 0.55},
        "1-sam|rho=0.5": {"early": 0.9, "validation": 0.6},
    }
    runs = evidence(methods).runs
    lost = (runs["options"] == "rho=0.5") & (runs["seed"] == 0)
    runs.loc[lost, ["validation_validation_accuracy", "excluded"]] = [0.1, "stayed at chance"]
    assert set(Evidence("a", DEEP, runs).rows("1-sam")["options"]) == {"rho=0.1"}


def toy_tables(seeds=3):
    """Invent the toy: in the linear setting 1-SAM is ahead, with a higher ratio the larger rho; from zero it is not."""
    accuracy, ratios = [], []
    methods = [("sgd", math.nan, 0.6), ("1-sam", 0.1, 0.8), ("1-sam", 0.3, 0.9), ("sam", 0.1, 0.62)]
    for setting in (toy.LINEAR, toy.ZERO_START):
        for method, rho, peak in methods:
            for seed in range(seeds):
                front = {"setting": setting, "method": method, "rho": rho, "seed": seed}
                highest = (peak if setting == toy.LINEAR else 0.95) + 0.001 * seed
                for step, test in ((0, 0.5), (100, highest), (200, 0.6), (400, 0.55)):
                    fitted = {0: 0.5, 100: 0.5, 200: 0.9, 400: 1.0}[step]
                    row = {"step": step, "epoch": float(step), "test_accuracy": test, "train_accuracy": fitted}
                    accuracy.append({**front, **row, "clean_fitted": min(1.0, test + 0.1), "noisy_fitted": fitted})
                    clean = 0.8 if step and rho != 0.3 else 1.0
                    names = [name for name in toy.COLUMNS["ratios"] if name not in (*toy.RUN, "step")]
                    ratios.append({**front, "step": step, **dict.fromkeys(names, 1.0), "step_term_clean": clean})
    empty = {name: pd.DataFrame(columns=[*toy.COLUMNS[name]]) for name in ("runs", "peaks", "traps")}
    return toy.ToyResult(accuracy=pd.DataFrame(accuracy), ratios=pd.DataFrame(ratios), **empty)


def test_the_settings_of_the_toy_are_judged_by_the_rules_of_saved_runs():
    found = evidence_of_toy(toy_tables())
    assert [(one.setting, one.kind, one.selection) for one in found] == [
        ("toy: linear", LINEAR, "oracle"),
        ("toy: linear, zero start", LINEAR, "oracle"),
    ]
    assert found[0].values("1-sam", "early_test_accuracy") == pytest.approx({0: 0.9, 1: 0.901, 2: 0.902})
    assert set(found[0].rows("1-sam")["rho"]) == {0.3}
    table = judge([], toy_tables()).set_index(["claim", "setting"])["verdict"]
    linear, zero = ("toy: linear", "toy: linear, zero start")
    assert (table["C1", linear], table["C1", zero]) == ("supported", "not supported")
    assert (table["C2", linear], table["C2", zero]) == ("supported", "not supported")
    assert table["C4", linear] == "supported"
    assert table["C10", linear] == "supported"
    assert {table[claim, linear] for claim in ("C5", "C6", "C7", "C8", "C9", "C11", "C12", "C13")} == {"not tested"}


def test_the_toy_with_two_seeds_decides_nothing():
    assert judge([], toy_tables(seeds=2)).set_index(["claim", "setting"])["verdict"]["C1", "toy: linear"] == UNDECIDED


def test_the_wrong_labels_of_the_toy_are_as_many_as_it_flips():
    from noisesam.reproduce import toy_runs

    assert int(np.floor(toy_runs.NOISE_RATE * toy_runs.EXAMPLES)) == WRONG_LABELS
