"""Gain kept is a ratio of mean differences over seeds, and says nothing where there is no gain."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from noisesam.analysis import scoreboard, share_of_gain
from noisesam.errors import InputError
from noisesam.plotting import plot_scoreboard
from noisesam.runs import open_runs

BASE = {0: 0.70, 1: 0.72, 2: 0.69, 3: 0.71}
BEST = {0: 0.90, 1: 0.91, 2: 0.92, 3: 0.88}


def kept(values, base=BASE, best=BEST):
    """Return the share with its bounds, as the scoreboard takes it."""
    found = share_of_gain(values, base, best)
    return found.mean, found.low, found.high


def test_the_baseline_keeps_nothing_and_the_best_method_all():
    assert kept(BASE) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)  # float64 rounding
    assert kept(BEST) == pytest.approx((1.0, 1.0, 1.0))


def test_half_of_every_seeds_gain_is_half_whatever_the_seeds_are():
    half = {seed: (BASE[seed] + BEST[seed]) / 2 for seed in BASE}
    assert kept(half) == pytest.approx((0.5, 0.5, 0.5))


def test_only_common_seeds_count_and_one_seed_has_no_interval():
    ratio, low, high = kept({0: 0.8, 9: 0.1})
    assert ratio == pytest.approx(0.5)
    assert math.isnan(low)
    assert math.isnan(high)


def test_where_the_gain_changes_its_sign_over_the_seeds_no_interval_is_given():
    ratio, low, high = kept(BEST, best={0: 0.90, 1: 0.62, 2: 0.79, 3: 0.62})
    assert ratio > 1
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("seeds", [3, 12])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(seeds):
    draws = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        base = {seed: 0.7 + 0.01 * draws.standard_normal() for seed in range(seeds)}
        best = {seed: value + 0.2 + 0.01 * draws.standard_normal() for seed, value in base.items()}
        own = {seed: base[seed] + 0.1 + 0.01 * draws.standard_normal() for seed in base}
        _, low, high = kept(own, base, best)
        covered += low <= 0.5 <= high
    # 95% of 400 is 380 with a standard deviation of 4.4; a bootstrap over three seeds covers about three quarters.
    assert 367 <= covered <= 393


def test_shares_stand_where_the_best_gains_beyond_doubt_and_nowhere_else(invented, tmp_path):
    # At the end the best is far above in every seed; at its peak it is above in one seed and below in the other.
    peaks = {0: 0.95, 1: 0.85}
    for seed, peak in peaks.items():
        invented(tmp_path / f"base{seed}", "sgd", seed, peak=0.9, last=0.5)
        invented(tmp_path / f"best{seed}", "1-sam", seed, peak=peak, last=0.8)
        invented(tmp_path / f"half{seed}", "sam", seed, peak=0.9, last=0.65)
    table = scoreboard(open_runs(tmp_path)).set_index("method")
    assert table.loc["sam", "last_gain"] == pytest.approx(0.5, abs=0.1)  # the invented accuracies scatter by 0.01
    assert table.loc["sam", "last_gain_low"] < 0.5 < table.loc["sam", "last_gain_high"]
    assert table[["early_gain", "early_gain_low", "early_gain_high"]].isna().all(axis=None)
    assert table["early_mean"].notna().all()
    assert table["wrong_labels_fitted"].tolist() == pytest.approx([0.8] * 3)  # what the invented runs memorise
    timed = pd.DataFrame({"method": ["sgd", "sam"], "step_seconds": [0.1, 0.3], "seconds_ratio": [1.0, 3.0]})
    beside = scoreboard(open_runs(tmp_path), costs=timed).set_index("method")["seconds_ratio"]
    assert (beside["sgd"], beside["sam"], math.isnan(beside["1-sam"])) == (1.0, 3.0, True)


def test_the_figure_has_a_row_for_every_method_the_cheapest_first_and_a_point_where_there_is_a_gain():
    rows = [
        {"method": name, "passes": passes, **{f"{end}_gain{part}": value for end in ("early", "last")
         for part, value in (("", gain), ("_low", gain - 0.1), ("_high", gain + 0.1))}}
        for name, passes, gain in (("sgd", 1.0, 0.0), ("sam", 2.0, 0.4), ("1-sam", 2.0, 1.0), ("x", 2.0, math.nan))
    ]  # fmt: skip
    panels = plot_scoreboard(pd.DataFrame(rows))
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        "SGD   1.00", "1-SAM   2.00", "SAM   2.00", "x   2.00"
    ]  # fmt: skip
    for panel in panels:
        points = [tuple(float(v[0]) for v in line.get_data()) for line in panel.lines if line.get_marker() != "None"]
        assert points == [(0.0, 0), (1.0, 1), (0.4, 2)]


def test_a_table_without_gain_is_refused():
    row = {"method": "sgd", "passes": 1.0, **{f"{end}_gain{part}": math.nan for end in ("early", "last")
           for part in ("", "_low", "_high")}}  # fmt: skip
    with pytest.raises(InputError, match="gain"):
        plot_scoreboard(pd.DataFrame([row]))
