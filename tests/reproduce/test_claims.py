"""Every claim can come out either way, and what a setting does not show is said."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.invented_evidence import CASES, GAIN, NO_GAIN, accuracies, evidence

from noisesam.reproduce.claims import CLAIMS, COMPARED, JUDGED, comparisons, judge, verdicts
from noisesam.reproduce.decisions import MIXED, REFUTED, SUPPORTED, UNDECIDED, UNTESTED
from noisesam.reproduce.evidence import DEEP, LINEAR, Evidence

ONE_WAY = (SUPPORTED, REFUTED, UNDECIDED, UNTESTED)


def judged(claim, one):
    table = judge([one])
    return table[table["claim"] == claim].iloc[0]


@pytest.mark.parametrize(("claim", "verdict"), CASES, ids=str)
def test_an_invented_setting_gets_the_verdict_that_was_built_into_it(claim, verdict):
    row = judged(claim, CASES[claim, verdict])
    assert row["verdict"] == verdict, (row["estimate"], row["reason"])
    if verdict in (UNDECIDED, UNTESTED):
        assert row["reason"]
    else:
        assert "[" in row["estimate"]
        assert row["seeds"] >= 3


def test_every_claim_has_a_setting_for_every_verdict():
    assert set(CASES) == {(claim, verdict) for claim in CLAIMS for verdict in ONE_WAY}
    assert list(CLAIMS) == [f"C{number}" for number in range(1, 14)]


def test_every_claim_has_a_row_in_every_setting():
    table = judge([evidence(GAIN, setting="a"), evidence(setting="b")])
    assert list(table.columns) == [*JUDGED]
    assert list(zip(table["claim"], table["setting"], strict=True)) == [(c, s) for c in CLAIMS for s in ("a", "b")]


@pytest.mark.parametrize(("claim", "verdict"), [key for key in CASES if key[1] in (SUPPORTED, REFUTED)], ids=str)
def test_a_setting_in_which_sgd_does_not_fit_the_wrong_labels_shows_nothing(claim, verdict):
    runs = CASES[claim, verdict].runs.copy()
    runs.loc[runs["method"] == "sgd", "last_noisy_fitted"] = 0.3
    row = judged(claim, Evidence("a", CASES[claim, verdict].kind, runs))
    assert row["verdict"] == UNTESTED
    assert row["reason"].startswith("SGD did not fit the wrong labels (30% of them at the end, at least 50% needed)")


def test_half_of_the_wrong_labels_is_enough_and_less_is_not():
    for share, expected in ((0.5, SUPPORTED), (0.49, UNTESTED)):
        assert (
            judged("C1", evidence({"sgd": {"early": 0.7, "fits_wrong": share}, "1-sam": {"early": 0.8}}))["verdict"] == expected
        )


def test_nothing_is_said_where_it_is_not_known_which_labels_are_wrong():
    row = judged("C1", evidence({"sgd": {"early": 0.7, "fits_wrong": math.nan}, "1-sam": {"early": 0.8}}))
    assert (row["verdict"], row["reason"]) == (UNTESTED, "it is not known which labels are wrong")


def test_two_seeds_decide_nothing_however_clear_they_are():
    row = judged("C1", evidence(GAIN, seeds=(0, 1)))
    assert row["verdict"] == UNDECIDED
    assert "only 2 seeds, 3 needed" in row["reason"]


def test_a_run_at_chance_is_excluded_and_named():
    runs = evidence(GAIN, seeds=(0, 1, 2, 3)).runs
    lost = (runs["method"] == "1-sam") & (runs["seed"] == 2)
    runs.loc[lost, ["validation_test_accuracy", "excluded"]] = [0.1, "stayed at chance"]
    row = judged("C1", Evidence("a", DEEP, runs))
    assert (row["verdict"], row["seeds"]) == (SUPPORTED, 3)
    assert row["reason"] == "left out: 1-sam seed 2 stayed at chance"


def test_a_method_whose_runs_all_stayed_at_chance_is_not_tested_and_named():
    runs = evidence(GAIN).runs
    runs.loc[runs["method"] == "1-sam", "excluded"] = "stayed at chance"
    row = judged("C1", Evidence("a", DEEP, runs))
    assert row["verdict"] == UNTESTED
    assert "no run of 1-sam counts" in row["reason"]
    assert "1-sam seed 0, 1, 2, 3 stayed at chance" in row["reason"]


def test_the_paired_interval_sees_a_gain_that_the_seeds_hide():
    # The seeds move both methods by up to 20 points, the gain is the same in each.
    runs = evidence(GAIN, noise=0.0).runs
    runs["validation_test_accuracy"] += 0.1 * (runs["seed"] % 3)
    assert judged("C1", Evidence("a", DEEP, runs))["estimate"].startswith("1-sam over sgd at early stopping +10.0 [10.0, 10.0]")


def test_early_stopping_is_selected_on_noisy_validation_and_the_oracle_stands_beside_labelled():
    methods = {"sgd": {"early": 0.7, "oracle": 0.75, "last": 0.5}, "1-sam": {"early": 0.8, "oracle": 0.75, "last": 0.5}}
    row = judged("C1", evidence(methods))
    assert row["verdict"] == SUPPORTED
    assert "1-sam over sgd at early stopping +10.0" in row["estimate"]
    assert re.search(r"beside: at its highest test accuracy \(oracle\) [+-]0\.\d", row["estimate"])


def test_without_validation_examples_the_oracle_decides_and_is_called_so():
    methods = {"sgd": {"oracle": 0.7, "last": 0.5}, "1-sam": {"oracle": 0.8, "last": 0.5}}
    assert "at its highest test accuracy (oracle) +10.0" in judged("C1", evidence(methods))["estimate"]


def test_a_claim_on_deep_models_gives_numbers_but_no_verdict_elsewhere():
    one = CASES["C6", SUPPORTED]
    row = judged("C6", Evidence("a", LINEAR, one.runs))
    assert (row["verdict"], row["reason"]) == (UNTESTED, "a claim on deep models")
    assert "j-sam's share of 1-sam's gain 9" in row["estimate"]


def test_the_share_of_a_gain_that_is_open_is_open():
    row = judged("C6", evidence(accuracies(sgd=0.7, x1_sam=0.72, j_sam=0.72, l_sam=0.7), noise=0.02))
    assert row["verdict"] == UNDECIDED
    assert "1-sam's own gain is open" in row["reason"]


def test_a_size_at_which_sgd_fits_no_noise_is_left_out_and_named():
    small = {"examples": 100.0, "fits_wrong": 0.1}
    sizes = {"size-100": {"sgd": {"early": 0.5, **small}, "1-sam": {"early": 0.5, **small}}}
    row = judged("C9", evidence(GAIN, variants=sizes))
    assert row["verdict"] == UNTESTED
    assert "size-100 left out: SGD did not fit the wrong labels" in row["reason"]


def test_a_fall_between_two_sizes_speaks_against_growth():
    def sizes(middle):
        return {
            f"size-{n:.0f}": {"sgd": {"early": 0.5, "examples": n}, "1-sam": {"early": 0.5 + gain, "examples": n}}
            for n, gain in ((100.0, 0.02), (300.0, middle))
        }

    assert judged("C9", evidence(GAIN, variants=sizes(0.05)))["verdict"] == SUPPORTED
    row = judged("C9", evidence(GAIN, variants=sizes(0.2)))
    assert row["verdict"] == REFUTED
    assert "from 300 to 1000 examples" in row["reason"]


def test_sharpness_at_different_radii_is_not_compared():
    runs = CASES["C12", SUPPORTED].runs.copy()
    runs.loc[runs["method"] == "sam", "tracked_rho"] = 0.05
    row = judged("C12", Evidence("a", DEEP, runs))
    assert (row["verdict"], row["reason"]) == (UNTESTED, "sharpness was not measured at one rho for all methods")


def test_one_form_of_sharpness_that_fails_is_named():
    assert judged("C12", CASES["C12", REFUTED])["reason"] == "fails: rank correlation of low batch sharpness with test accuracy"


def test_the_robust_loss_that_is_compared_is_chosen_on_noisy_validation_not_on_the_test_set():
    methods = {
        "sgd": {"early": 0.7, "validation": 0.4},
        "1-sam": {"early": 0.8, "validation": 0.5},
        "sgd + gce": {"early": 0.75, "validation": 0.5},
        "sgd + mae": {"early": 0.9, "validation": 0.4},
    }
    assert judged("C13", evidence(methods))["estimate"].startswith("1-sam over sgd + gce")


def test_of_several_radii_the_one_with_the_best_noisy_validation_stands_for_its_method():
    methods = {
        "sgd": {"early": 0.7, "validation": 0.4},
        "1-sam|rho=0.1": {"early": 0.75, "validation": 0.6},
        "1-sam|rho=0.5": {"early": 0.9, "validation": 0.5},
    }
    assert judged("C1", evidence(methods, noise=0.0))["estimate"].startswith("1-sam over sgd at early stopping +5.0 ")


def test_verdicts_over_settings_follow_those_of_the_settings():
    one = [
        evidence(GAIN, setting="a"),
        evidence(NO_GAIN, setting="b"),
        evidence(GAIN, setting="c", noise=0.1),
        evidence(setting="d"),
    ]
    expected = [
        ([0], SUPPORTED), ([1], REFUTED), ([2], UNDECIDED), ([3], UNTESTED), ([0, 1], MIXED), ([0, 2, 3], SUPPORTED),
        ([1, 2], REFUTED), ([2, 3], UNDECIDED), ([], UNTESTED),
    ]  # fmt: skip
    for places, verdict in expected:
        table = verdicts(judge([one[place] for place in places]))
        assert list(table["claim"]) == list(CLAIMS)
        assert table.loc[0, "verdict"] == verdict, places
    row = verdicts(judge(one)).iloc[0]
    assert row["settings"] == "supported in a; not supported in b; undecided in c"
    assert (row["supported"], row["not_supported"], row["undecided"], row["not_tested"]) == ("a", "b", "c", "d")


def test_the_numbers_behind_a_verdict_are_given_as_numbers():
    table = comparisons([evidence(GAIN, noise=0.0)])
    assert list(table.columns) == [*COMPARED]
    first = table[(table["claim"] == "C1") & (table["verdict"] == SUPPORTED)].iloc[0]
    assert first[["value", "low", "high", "seeds"]].tolist() == pytest.approx([0.1, 0.1, 0.1, 4])


# Accuracies in sixty-fourths and means over four seeds: sums and differences are exact, so equal means equal.
SIXTY_FOURTHS = st.integers(0, 64).map(lambda number: number / 64)
METHODS = ("sgd", "1-sam", "sam", "l-sam", "j-sam", "reg-sgd", "sgd + gce")
ACCURACIES = ("validation_test_accuracy", "validation_validation_accuracy", "oracle_test_accuracy", "last_test_accuracy")


@st.composite
def settings_of_runs(draw):
    runs = evidence({name: {} for name in METHODS}, variants={"no-noise": {name: {} for name in METHODS}}).runs
    for column in ACCURACIES:
        runs[column] = draw(st.lists(SIXTY_FOURTHS, min_size=len(runs), max_size=len(runs)))
    runs["sharpness"] = runs["batch_sharpness"] = np.arange(len(runs), dtype=float)
    lost = draw(st.sets(st.integers(0, len(runs) - 1), max_size=4))
    runs["excluded"] = ["stayed at chance" if place in lost else "" for place in range(len(runs))]
    return runs


def said(runs, *columns):
    return judge([Evidence("a", DEEP, runs)])[list(columns or ("verdict",))].to_numpy().tolist()


@settings(max_examples=10)
@given(settings_of_runs(), st.integers(-64, 64))
def test_a_constant_added_to_all_accuracies_changes_no_verdict(runs, number):
    moved = runs.assign(**{name: runs[name] + number / 64 for name in ACCURACIES})
    assert said(moved, "verdict", "estimate") == said(runs, "verdict", "estimate")


@settings(max_examples=10)
@given(settings_of_runs(), st.permutations(range(4)), st.randoms(use_true_random=False))
def test_the_names_of_the_seeds_and_the_order_of_the_runs_change_nothing(runs, names, random):
    renamed = runs.assign(seed=[names[seed] for seed in runs["seed"]])
    order = list(range(len(runs)))
    random.shuffle(order)
    assert said(renamed.iloc[order].reset_index(drop=True)) == said(runs)


@settings(max_examples=10)
@given(settings_of_runs())
def test_one_sams_gain_and_sgds_gain_are_never_both_supported(runs):
    swapped = runs.assign(method=runs["method"].replace({"sgd": "1-sam", "1-sam": "sgd"}), last_noisy_fitted=0.9)
    assert not said(runs)[0] == said(swapped)[0] == SUPPORTED


@pytest.mark.parametrize(("claim", "verdict"), [key for key in CASES if key[1] in (SUPPORTED, REFUTED)], ids=str)
def test_less_noise_between_seeds_never_turns_a_verdict_round(claim, verdict):
    one = CASES[claim, verdict]
    numbers = [name for name in one.runs.columns if one.runs[name].dtype == "float64"]
    means = one.runs.groupby(["variant", "method", "options"], sort=False)[numbers].transform("mean")
    for left in (0.5, 0.1, 0.0):
        quiet = one.runs.copy()
        quiet[numbers] = means + left * (one.runs[numbers] - means)
        assert judged(claim, Evidence("a", one.kind, quiet))["verdict"] == verdict


def test_the_page_on_the_claims_states_every_claim_and_its_rule_as_the_code_does():
    page = (Path(__file__).resolve().parents[2] / "docs" / "claims.md").read_text(encoding="utf-8")
    text = " ".join(page.replace("**", "").split())
    for claim in CLAIMS.values():
        assert claim.statement in text, claim.name
        assert claim.rule in text, claim.name
        assert claim.tested in text, claim.name


def test_the_judged_table_survives_a_file(tmp_path):
    table = judge([evidence(GAIN)])
    table.to_csv(tmp_path / "claims.csv", index=False)
    again = pd.read_csv(tmp_path / "claims.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
