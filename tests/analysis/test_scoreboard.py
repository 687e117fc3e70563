"""Gain kept is a ratio of mean differences over seeds, and says nothing where there is no gain."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from noisesam.analysis import gain_kept
from noisesam.errors import InputError
from noisesam.plotting import plot_scoreboard

BASE = {0: 0.70, 1: 0.72, 2: 0.69, 3: 0.71}
BEST = {0: 0.90, 1: 0.91, 2: 0.92, 3: 0.88}


def test_the_baseline_keeps_nothing_and_the_best_method_all():
    assert gain_kept(BASE, BASE, BEST) == (0.0, 0.0, 0.0)
    assert gain_kept(BEST, BASE, BEST) == (1.0, 1.0, 1.0)


def test_half_of_every_seeds_gain_is_half_whatever_the_seeds_are():
    half = {seed: (BASE[seed] + BEST[seed]) / 2 for seed in BASE}
    ratio, low, high = gain_kept(half, BASE, BEST)
    assert ratio == pytest.approx(0.5)
    assert low == pytest.approx(0.5)
    assert high == pytest.approx(0.5)


def test_only_common_seeds_count_and_one_seed_has_no_interval():
    ratio, low, high = gain_kept({0: 0.8, 9: 0.1}, BASE, BEST)
    assert ratio == pytest.approx(0.5)
    assert math.isnan(low)
    assert math.isnan(high)


def test_where_the_best_method_does_not_gain_there_is_no_share():
    assert all(math.isnan(value) for value in gain_kept(BEST, BASE, BASE))
    # The gain changes its sign over the seeds: its mean is positive, and still no interval can be trusted.
    unsure = {0: 0.90, 1: 0.62, 2: 0.79, 3: 0.62}
    ratio, low, high = gain_kept(BEST, BASE, unsure)
    assert ratio > 1
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draws = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        base = {seed: 0.7 + 0.01 * draws.standard_normal() for seed in range(12)}
        best = {seed: value + 0.2 + 0.01 * draws.standard_normal() for seed, value in base.items()}
        own = {seed: base[seed] + 0.1 + 0.01 * draws.standard_normal() for seed in base}
        _, low, high = gain_kept(own, base, best)
        covered += low <= 0.5 <= high
    assert covered >= 85  # a percentile bootstrap over twelve seeds is known to fall somewhat short of 95


def test_the_figure_draws_a_point_for_every_method_with_a_gain():
    rows = [
        {"method": name, "passes": passes, **{f"{end}_gain{part}": value for end in ("early", "last")
         for part, value in (("", gain), ("_low", gain - 0.1), ("_high", gain + 0.1))}}
        for name, passes, gain in (("sgd", 1.0, 0.0), ("sam", 2.0, 0.4), ("1-sam", 2.0, 1.0), ("x", 2.0, math.nan))
    ]  # fmt: skip
    panels = plot_scoreboard(pd.DataFrame(rows))
    for panel in panels:
        assert sorted(text.get_text() for text in panel.texts) == ["1-SAM", "SAM", "SGD"]


def test_a_table_without_gain_is_refused():
    row = {"method": "sgd", "passes": 1.0, **{f"{end}_gain{part}": math.nan for end in ("early", "last")
           for part in ("", "_low", "_high")}}  # fmt: skip
    with pytest.raises(InputError, match="gain"):
        plot_scoreboard(pd.DataFrame([row]))
