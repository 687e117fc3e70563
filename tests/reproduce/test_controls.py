"""Every control's verdict can come out either way, by the rule that its sweep file states."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from reference.invented_controls import control, factor, point

from noisesam.analysis import Interval
from noisesam.errors import InputError
from noisesam.reproduce.controls import CONTROLS, POINTS, judge_control, together
from noisesam.reproduce.controls_regulariser import bootstrap_share
from noisesam.reproduce.controls_rules import ADVANTAGE, RULED, decide, slopes
from noisesam.reproduce.controls_runs import CHANCE, UNFINISHED, ControlRuns

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def ruled(runs: ControlRuns, question: str, at: str) -> pd.Series:
    table = judge_control(runs).verdicts
    found = table[(table["question"] == question) & (table["at"] == at)]
    assert len(found) == 1, (question, at, table[["question", "at"]].to_numpy().tolist())
    return found.iloc[0]


def test_every_sweep_file_has_a_rule_and_every_rule_a_sweep_file():
    assert {path.stem.removeprefix("control-") for path in EXPERIMENTS.glob("control-*.toml")} == set(CONTROLS)


# Width, number of images

WIDTHS = (8.0, 16.0, 32.0, 64.0)
RISING = dict(zip(WIDTHS, (0.02, 0.06, 0.10, 0.14), strict=True))
FALLING = dict(zip(WIDTHS, (0.14, 0.10, 0.06, 0.02), strict=True))
LEVEL = dict.fromkeys(WIDTHS, 0.1)


@pytest.mark.parametrize("name", ["width", "train-size"])
@pytest.mark.parametrize(
    ("gains", "verdict", "came"), [(RISING, "grows", "yes"), (FALLING, "falls", "no"), (LEVEL, "undecided", "open")]
)
def test_an_advantage_grows_falls_or_stays_open_with_the_factor(name, gains, verdict, came):
    what = {"width": "width", "train-size": "images"}[name]
    runs = factor(name, gains, spread=0.004 if verdict != "undecided" else 0.02)
    for method in ("1-sam", "j-sam"):
        row = ruled(runs, f"{method} with {what}", "last")
        assert (row["verdict"], row["as_expected"], row["decided_by"]) == (verdict, came, "rule")
    assert ruled(runs, f"l-sam with {what}", "last")["verdict"] == "undecided"
    early = ruled(runs, f"1-sam with {what}", "early")
    assert early["verdict"] == verdict
    assert early["as_expected"] == ("" if name == "width" else came)


def test_the_trend_is_the_mean_slope_per_doubling_of_every_seed():
    row = ruled(factor("width", RISING), "1-sam with width", "last")
    assert row["value"] == pytest.approx(0.04, abs=0.002)  # 4 points per doubling, and the seeds' own deviations
    assert row["seeds"] == 3
    assert "points per doubling" in row["estimate"]


@pytest.mark.parametrize("name", ["width", "train-size"])
def test_a_place_where_sgd_fits_less_than_half_of_the_wrong_labels_is_left_out_of_the_trend_and_named(name):
    spoilt = {8.0: 0.5, **{place: gain for place, gain in RISING.items() if place > 8}}
    what = {"width": "width", "train-size": "images"}[name]
    told = {"width": "width 8", "train-size": "8 images"}[name]
    kept = ruled(factor(name, spoilt, fits={8.0: 0.49}), f"1-sam with {what}", "last")
    assert kept["verdict"] == "grows"
    assert f"{told} left out: SGD fits 49% of the wrong labels" in kept["reason"]
    assert ruled(factor(name, spoilt, fits={8.0: 0.5}), f"1-sam with {what}", "last")["verdict"] != "grows"
    few = ruled(factor(name, RISING, fits=dict.fromkeys(WIDTHS[:3], 0.1)), f"1-sam with {what}", "last")
    assert few["verdict"] == "not tested"
    assert "fewer than two values" in few["reason"]


@pytest.mark.parametrize(
    ("gain", "spread", "verdict"),
    [(0.05, 0.002, "persists"), (-0.05, 0.002, "does not persist"), (0.05, 0.05, "undecided"), (0.01, 0.001, "persists")],
)
def test_the_gain_at_width_8_persists_or_does_not(gain, spread, verdict):
    runs = factor("width", {8.0: gain, 16.0: 0.1}, spread=spread, fits={8.0: 0.2})
    for stop in ("early", "last"):
        row = ruled(runs, "1-sam persists at width 8", stop)
        assert row["verdict"] == verdict
    if gain == 0.01:
        assert "does not persist holds too" in row["reason"]  # above zero, and below two points
    negative = ruled(runs, "1-sam not negative at width 8", "last")
    assert negative["verdict"] == {0.05: "not negative", -0.05: "negative", 0.01: "not negative"}[gain] or spread == 0.05


@pytest.mark.parametrize(("shares", "verdict"), [((0.2, 0.5, 0.8, 1.0), "grows"), ((1.0, 0.8, 0.5, 0.2), "falls")])
def test_what_sgd_fits_is_held_against_the_expectation(shares, verdict):
    runs = factor("width", LEVEL, fits=dict(zip(WIDTHS, shares, strict=True)))
    row = ruled(runs, "wrong labels that sgd fits, with width", "last")
    assert (row["verdict"], row["decided_by"]) == (verdict, "expectation")


def test_l_sam_far_from_sgd_at_one_width_is_outside():
    near = factor("width", LEVEL)
    assert ruled(near, "l-sam within 6 points of sgd", "last")["verdict"] == "within"
    far = ControlRuns("width", near.runs.copy(), near.metrics)
    away = (far.runs["method"] == "l-sam") & (far.runs["place"] == 32)
    far.runs.loc[away, "last_test_accuracy"] += 0.2
    row = ruled(far, "l-sam within 6 points of sgd", "last")
    assert (row["verdict"], row["reason"], row["as_expected"]) == ("outside", "at width 32", "no")


# Learning rate


def learning_rates(**more) -> ControlRuns:
    return factor("learning-rate", {0.05: 0.1, 0.1: 0.1, 0.2: 0.1}, **more)


def test_an_advantage_at_every_learning_rate_is_supported_and_a_loss_at_one_is_not():
    row = ruled(learning_rates(), "1-sam above sgd at every rate", "last")
    assert (row["verdict"], row["as_expected"]) == ("supported", "yes")
    row = ruled(factor("learning-rate", {0.05: 0.1, 0.1: -0.1, 0.2: 0.1}), "1-sam above sgd at every rate", "last")
    assert (row["verdict"], row["reason"], row["as_expected"]) == ("not supported", "at rate 0.1", "no")
    row = ruled(factor("learning-rate", {0.05: 0.1, 0.1: 0.0, 0.2: 0.1}), "1-sam above sgd at every rate", "last")
    assert (row["verdict"], row["as_expected"]) == ("undecided", "open")
    assert "rate 0.1: interval too wide" in row["reason"]
    assert "rate 0.05: +10.0" in row["estimate"]


def test_a_learning_rate_at_which_sgd_does_not_fit_cannot_turn_the_verdict():
    runs = factor("learning-rate", {0.05: -0.1, 0.1: 0.1}, fits={0.05: 0.3})
    row = ruled(runs, "1-sam above sgd at every rate", "last")
    assert row["verdict"] == "supported"
    assert "rate 0.05 left out: SGD fits 30% of the wrong labels" in row["reason"]
    none = factor("learning-rate", {0.05: 0.1, 0.1: 0.1}, fits={0.05: 0.3, 0.1: 0.3})
    assert ruled(none, "1-sam above sgd at every rate", "last")["verdict"] == "not tested"
    table = judge_control(runs).advantages
    assert set(table.loc[table["place"] == 0.05, "left_out"]) == {"rate 0.05 left out: SGD fits 30% of the wrong labels"}
    assert set(table["stop"]) == {"early stopping", "last epoch", "90% of clean labels fitted"}


@pytest.mark.parametrize(("best", "verdict"), [(0.6, "above"), (0.9, "below")])
def test_each_method_at_its_best_learning_rate_is_chosen_on_validation(best, verdict):
    runs = control(
        "learning-rate",
        [
            point("sgd-low", "sgd", best, place=0.05, validation=0.7),
            point("sgd-high", "sgd", 0.3, place=0.1, validation=0.5),
            point("1-sam-low", "1-sam", 0.95, place=0.05, rho=0.1, validation=0.5),
            point("1-sam-high", "1-sam", 0.8, place=0.1, rho=0.1, validation=0.7),
        ],
    )
    row = ruled(runs, "1-sam over sgd, each at its best rate", "early")
    assert row["verdict"] == verdict
    assert row["reason"].endswith("learning rates: 1-sam at 0.1, sgd at 0.05")
    assert row["value"] == pytest.approx(0.8 - best, abs=0.003)  # the runs' own deviations


# Rate of wrong labels

RATES = (0.0, 0.2, 0.4, 0.6)


@pytest.mark.parametrize(
    ("gains", "clean", "trend"),
    [
        ((0.0, 0.1, 0.2, 0.3), "no difference", "grows"),
        ((0.1, 0.3, 0.2, 0.1), "a difference", "falls"),
        ((0.02, 0.2, 0.1, 0.2), "undecided", "undecided"),
    ],
)
def test_an_advantage_without_noise_and_its_growth_with_the_rate(gains, clean, trend):
    runs = factor("noise-rate", dict(zip(RATES, gains, strict=True)))
    for stop in ("early", "last"):
        assert ruled(runs, "1-sam without noise", stop)["verdict"] == clean
        row = ruled(runs, "j-sam with the rate, 20 to 60%", stop)
        assert row["verdict"] == trend
        assert "realised rates: 0.0%, 20.0%, 40.0%, 60.0%" in row["reason"]
    assert row["as_expected"] == {"grows": "yes", "falls": "no", "undecided": "open"}[trend]


# Equal clean accuracy and compute


def priced(clean90: float, clean80: float, *, spread: float = 0.002) -> ControlRuns:
    """SGD has 0.5 everywhere; 1-SAM, at two passes per step, is at 80% of the clean labels when SGD's budget is spent."""
    base = {f"clean{level}": 0.5 for level in (70, 80, 90)}
    own = {"clean90": clean90, "clean80": clean80, "spread": spread, "rho": 0.1}
    points = [point("sgd", "sgd", 0.5, **base)]
    points += [point(name, name, 0.8, **own) for name in ("1-sam", "j-sam")]
    points += [point(name, name, 0.5, **base, rho=0.1) for name in ("sam", "l-sam")]
    return control("matched", points)


@pytest.mark.parametrize(
    ("clean90", "clean80", "spread", "verdict", "came"),
    [
        (0.7, 0.7, 0.002, "survives", "yes"),
        (0.4, 0.7, 0.002, "owed to slowness or price", "no"),
        (0.7, 0.4, 0.002, "owed to slowness or price", "no"),
        (0.7, 0.5, 0.002, "owed to slowness or price", "no"),
        (0.7, 0.55, 0.05, "undecided", "open"),
    ],
)
def test_an_advantage_survives_matching_or_is_owed_to_price(clean90, clean80, spread, verdict, came):
    row = ruled(priced(clean90, clean80, spread=spread), "1-sam at equal accuracy and compute", "last")
    assert (row["verdict"], row["as_expected"]) == (verdict, came)
    assert "90% fitted: " in row["estimate"]
    assert "whole budget: " in row["estimate"]


def test_the_sizes_that_were_expected_at_equal_accuracy_and_compute():
    runs = priced(0.7, 0.7)
    assert ruled(runs, "1-sam above sgd by 10 points", "all passes")["verdict"] == "by as much"
    assert ruled(priced(0.7, 0.55), "1-sam above sgd by 10 points", "all passes")["verdict"] == "by less"
    assert ruled(runs, "sam over 1-sam", "clean 0.9")["verdict"] == "below"
    assert ruled(priced(0.4, 0.7), "sam over 1-sam", "clean 0.9")["verdict"] == "above"
    assert ruled(runs, "l-sam within 6 points of sgd", "clean 0.9")["verdict"] == "within"
    stops = set(judge_control(runs).advantages["stop"])
    assert {"clean accuracy 0.7", "a quarter of the passes, last epoch", "all of the seconds, early stopping"} <= stops


# The regulariser


def penalised(activation: float, weight: float, both: float, *, top: float = 0.9) -> ControlRuns:
    pairs = {
        (0.01, 0.0): activation, (0.1, 0.0): 0.5, (0.0, 0.01): weight, (0.0, 0.1): 0.4,
        (0.01, 0.01): both, (0.1, 0.1): 0.5, (0.01, 0.1): 0.5, (0.1, 0.01): 0.5,
    }  # fmt: skip
    points = [point("sgd", "sgd", 0.6, 0.5), point("1-sam", "1-sam", 0.7, top, rho=0.1)]
    for (a, w), accuracy in pairs.items():
        own = {"activation": a, "weight": w, "last_validation": accuracy}
        points.append(point(f"activation{a}-weight{w}", "reg-sgd", 0.65, accuracy, **own))
    return control("regulariser", points)


WHICH = "which penalty does most of the work"


@pytest.mark.parametrize(
    ("activation", "weight", "verdict"), [(0.8, 0.6, "the activation"), (0.6, 0.8, "the weight"), (0.7, 0.7, "undecided")]
)
def test_the_penalty_that_does_most_of_the_work(activation, weight, verdict):
    row = ruled(penalised(activation, weight, 0.85), WHICH, "last")
    assert row["verdict"] == verdict
    assert "activation alone: activation=0.01, weight=0; weight alone: activation=0, weight=0.01" in row["reason"]


def test_the_pair_is_the_one_that_last_epochs_of_noisy_validation_choose_and_its_place_is_said():
    inside, edge = penalised(0.8, 0.6, 0.85), penalised(0.9, 0.6, 0.85)
    assert "activation=0.01, weight=0.01" in ruled(inside, "where the chosen pair lies", "last")["estimate"]
    row = ruled(edge, "where the chosen pair lies", "last")
    assert row["verdict"] == "on the edge of the grid"
    assert row["reason"] == "weight 0 is the lowest of the grid"
    points = judge_control(inside).points
    assert set(points.loc[points["chosen"], "point"]) == {"sgd", "1-sam", "activation0.01-weight0.01"}


def test_a_pair_inside_the_grid_is_said_to_be_inside():
    pairs = [(a, w) for a in (0.0, 0.01, 0.1) for w in (0.0, 0.01, 0.1) if a or w]
    points = [
        point(f"activation{a}-weight{w}", "reg-sgd", 0.7, 0.7, activation=a, weight=w, last_validation=0.6 - abs(a - 0.01) - w)
        for a, w in pairs
        if w != 0
    ]
    points = [*points, point("sgd", "sgd", 0.6), point("1-sam", "1-sam", 0.9)]
    runs = control("regulariser", [*points, point("lowest", "reg-sgd", 0.7, activation=0.01, weight=0.0, last_validation=0.1)])
    assert ruled(runs, "where the chosen pair lies", "last")["verdict"] == "inside the grid"


def test_the_share_of_the_gap_has_the_bootstrap_that_the_rule_names_and_fieller_s_interval_beside():
    row = ruled(penalised(0.8, 0.6, 0.7), "share of 1-sam's gain that the pair has", "last")
    assert row["verdict"] == "measured"
    assert row["low"] < row["value"] < row["high"]
    assert "Fieller's interval: " in row["reason"]
    none = ruled(penalised(0.8, 0.6, 0.7, top=0.4), "share of 1-sam's gain that the pair has", "last")
    assert none["verdict"] == "not tested"


def test_the_bootstrap_of_a_share_equals_all_27_resamples_of_three_seeds():
    import itertools

    values, base, best = {0: 0.82, 1: 0.86, 2: 0.9}, {0: 0.7, 1: 0.7, 2: 0.72}, {0: 0.9, 1: 0.92, 2: 0.98}
    own, full = ([one[seed] - base[seed] for seed in range(3)] for one in (values, best))
    shares = sorted(sum(own[i] for i in drawn) / sum(full[i] for i in drawn) for drawn in itertools.product(range(3), repeat=3))
    found = bootstrap_share(values, base, best)
    # 2.5% of 27 resamples is less than one of them: both bounds are the extremes, each of which 1 in 27 resamples hits.
    assert (found.low, found.high) == pytest.approx((shares[0], shares[-1]), abs=1e-12)
    assert found.mean == pytest.approx(sum(own) / sum(full), abs=1e-12)


def test_the_grid_of_the_regulariser_is_held_against_what_was_expected_of_it():
    assert ruled(penalised(0.8, 0.6, 0.7), "highest accuracy along the activation", "last")["verdict"] == "inside the grid"
    assert ruled(penalised(0.45, 0.6, 0.7), "highest accuracy along the activation", "last")["as_expected"] == "no"
    larger = ruled(penalised(0.9, 0.5, 0.7), "range along activation over that along weight", "last")
    smaller = ruled(penalised(0.52, 0.9, 0.7), "range along activation over that along weight", "last")
    assert (larger["verdict"], smaller["verdict"]) == ("larger", "smaller")
    over = [ruled(penalised(0.8, 0.6, 0.85, top=top), "the chosen pair over 1-sam", "last")["verdict"] for top in (0.9, 0.7)]
    assert over == ["below", "above"]


# Robust losses

GCE = "generalised_cross_entropy(q=0.{})"
SMOOTH = "label_smoothing(epsilon=0.3)"


def losses(gce: float = 0.9, smoothing: float = 0.6, adds: float = 0.2, **mae) -> ControlRuns:
    return control(
        "robust-losses",
        [
            point("sgd-ce", "sgd", 0.7, 0.5),
            point("sgd-gce-3", "sgd", 0.2, loss=GCE.format(3), validation=0.5),
            point("sgd-gce-7", "sgd", gce, loss=GCE.format(7), validation=0.65),
            point("sgd-mae", "sgd", 0.4, loss="mean_absolute_error", **mae),
            point("sgd-smoothing", "sgd", smoothing, loss=SMOOTH),
            point("1-sam-ce-a", "1-sam", 0.1, rho=0.05, validation=0.5),
            point("1-sam-ce-b", "1-sam", 0.8, rho=0.1, validation=0.65),
            point("1-sam-smoothing", "1-sam", smoothing + adds, rho=0.1, loss=SMOOTH),
            point("j-sam-smoothing", "j-sam", smoothing - adds, rho=0.1, loss=SMOOTH),
            point("1-sam-gce", "1-sam", gce + 0.01, rho=0.1, loss=GCE.format(7), spread=0.001),
        ],
    )


@pytest.mark.parametrize(("gce", "verdict", "came"), [(0.9, "above", "yes"), (0.7, "below", "no"), (0.8, "undecided", "open")])
def test_a_robust_loss_is_above_or_below_1_sam_with_cross_entropy(gce, verdict, came):
    row = ruled(losses(gce), "sgd + gce over 1-sam", "last")
    assert (row["verdict"], row["as_expected"]) == (verdict, came)
    assert "generalised_cross_entropy(q=0.7)" in row["reason"]  # the parameter that validation chooses


def test_a_method_adds_to_a_loss_only_above_sgd_with_the_same_loss():
    assert ruled(losses(), "1-sam adds to smoothing", "last")["verdict"] == "adds"
    assert ruled(losses(), "j-sam adds to smoothing", "last")["verdict"] == "lowers"
    assert ruled(losses(adds=0.0), "1-sam adds to smoothing", "last")["verdict"] == "undecided"
    little = ruled(losses(), "1-sam adds little to gce", "last")
    assert (little["verdict"], little["decided_by"]) == ("little", "expectation")


def test_robust_losses_at_chance_are_named_and_not_ranked():
    whole = ruled(losses(excluded=dict.fromkeys(range(3), CHANCE)), "sgd + mae over 1-sam", "last")
    assert whole["verdict"] == "not tested"
    assert "mean_absolute_error, at chance with seed 0, 1, 2" in whole["reason"]
    one = ruled(losses(excluded={1: CHANCE}), "sgd + mae over 1-sam", "last")
    assert (one["verdict"], one["seeds"]) == ("undecided", 2)
    assert "only 2 seeds, 3 needed" in one["reason"]
    assert "runs left out, stayed at chance: sgd-mae (seed 1)" in one["reason"]


# Step length


def lengths(l_sam: float, matched: float, *, spread: float = 0.002, last: float = 0.8) -> ControlRuns:
    points = [point("sgd", "sgd", 0.5)]
    for method, accuracy in (("l-sam", l_sam), ("length-matched-sgd", matched), ("1-sam", last), ("j-sam", last)):
        points.append(point(method, method, accuracy, rho=0.1, spread=spread))
    return control("step-length", points)


@pytest.mark.parametrize(
    ("l_sam", "matched", "spread", "verdict"),
    [
        (0.6, 0.6, 0.001, "explains l-sam"),
        (0.7, 0.6, 0.002, "weighing helps"),
        (0.5, 0.6, 0.002, "weighing hurts"),
        (0.62, 0.6, 0.05, "undecided"),
    ],
)
def test_step_length_explains_l_sam_or_does_not(l_sam, matched, spread, verdict):
    runs = lengths(l_sam, matched, spread=spread)
    for at in ("early", "last", "clean 0.9"):
        row = ruled(runs, "step length at rho 0.1", at)
        assert row["verdict"] == verdict
    assert row["as_expected"] == {"explains l-sam": "yes", "undecided": "open"}.get(verdict, "no")
    if spread < 0.01:
        assert ruled(runs, "longer steps by themselves, rho 0.1", "last")["verdict"] == "help"
    assert ruled(lengths(0.4, 0.4), "longer steps by themselves, rho 0.1", "last")["verdict"] == "hurt"
    assert ruled(lengths(0.5, 0.5, spread=0.001), "longer steps by themselves, rho 0.1", "last")["verdict"] == "change nothing"


def test_neither_near_the_two_methods_is_held_against_the_expectation():
    assert ruled(lengths(0.6, 0.6), "l-sam below 1-sam and j-sam, rho 0.1", "last")["verdict"] == "below"
    assert ruled(lengths(0.6, 0.6, last=0.4), "l-sam below 1-sam and j-sam, rho 0.1", "last")["verdict"] == "above"


# What holds for all


def test_rho_is_chosen_by_noisy_validation_at_its_best_epoch_and_never_by_the_test_set():
    points = [
        point("sgd", "sgd", 0.5, place=16.0),
        point("low", "1-sam", 0.6, rho=0.05, place=16.0, validation=0.7),
        point("high", "1-sam", 0.9, rho=0.1, place=16.0, validation=0.6),
    ]
    table = judge_control(control("width", points)).advantages
    assert set(table["chosen"]) == {"rho=0.05"}
    assert table["estimate"].to_numpy() == pytest.approx(0.1, abs=0.003)  # the runs' own deviations


def test_a_point_with_an_unfinished_run_is_not_chosen_and_equal_points_go_to_the_first():
    points = [
        point("sgd", "sgd", 0.5),
        point("broken", "1-sam", 0.9, rho=0.2, validation=0.9, excluded={2: UNFINISHED}),
        point("first", "1-sam", 0.6, rho=0.05),
        point("second", "1-sam", 0.7, rho=0.1),
    ]
    runs = control("matched", points)
    assert runs.best_of("1-sam") == "first"
    assert runs.best([]) == ""
    assert runs.exclusions == ["did not finish: broken (seed 2)"]


def test_two_seeds_decide_nothing_however_clear_they_are():
    row = ruled(factor("width", RISING, seeds=(0, 1)), "1-sam with width", "last")
    assert row["verdict"] == "undecided"
    assert "only 2 seeds" in row["reason"]


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_without_runs_of_some_methods_is_judged_without_an_error(name):
    tables = judge_control(control(name, [point("sgd", "sgd", 0.5, place=8.0), point("1-sam", "1-sam", 0.6, place=8.0)]))
    assert list(tables.verdicts.columns) == [*RULED]
    assert list(tables.points.columns) == [*POINTS]
    decided = tables.verdicts[tables.verdicts["estimate"].str.contains(r"\[")]
    assert set(tables.verdicts.loc[~tables.verdicts.index.isin(decided.index), "verdict"]) <= {
        "not tested", "on the edge of the grid", "inside the grid",
    }  # fmt: skip


def test_the_tables_of_several_controls_are_joined_in_one_order():
    parts = [judge_control(factor("width", RISING)), judge_control(priced(0.7, 0.7))]
    whole = together(parts)
    assert list(dict.fromkeys(whole.verdicts["control"])) == ["matched", "width"]
    assert list(whole.advantages.columns) == [*ADVANTAGE]
    assert len(whole.points) == sum(len(part.points) for part in parts)
    assert together([]).verdicts.empty
    with pytest.raises(InputError, match="Did you mean 'width'"):
        judge_control(ControlRuns("widht", parts[0].points, parts[0].points))


def test_the_first_condition_of_a_rule_decides_and_the_other_is_said():
    assert decide(Interval(0.1, 0, 0, 0, 3), ("a", True), ("b", True)) == ("a", "b holds too")
    assert decide(Interval(math.nan, 0, 0, 0, 3), ("a", True)) == ("not tested", "not measured")
    assert slopes({8.0: {0: 1.0}}).n == 0


def test_judging_a_control_loads_no_torch():
    code = "import sys, noisesam.reproduce.controls; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
