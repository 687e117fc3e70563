"""The laws of the decision rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from noisesam.analysis import Interval, interval, share_of_gain
from noisesam.reproduce.decisions import (
    MIN_SEEDS,
    NOTHING,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    UNTESTED,
    Part,
    above,
    not_below,
    rank_correlation,
    together,
    untested,
    within,
    written,
)

MARGIN = 0.01
RULES = {
    "above": lambda found: above("x", found, MARGIN),
    "within": lambda found: within("x", found, -MARGIN, MARGIN),
    "not_below": lambda found: not_below("x", found, MARGIN),
}
middles = st.floats(-0.1, 0.1)
halves = st.floats(0, 0.2)


def around(middle, half, n=5):
    return Interval(middle, half, middle - half, middle + half, n)


@pytest.mark.parametrize("rule", RULES)
@given(middles, halves, st.floats(0, 1))
def test_a_narrower_interval_never_turns_a_verdict_round(rule, middle, half, share):
    before, after = RULES[rule](around(middle, half)).verdict, RULES[rule](around(middle, half * share)).verdict
    assert after == before or before == UNDECIDED


@pytest.mark.parametrize("rule", RULES)
@given(middles)
def test_without_any_noise_everything_but_the_very_bound_is_decided(rule, middle):
    assume(abs(abs(middle) - MARGIN) > 1e-9)
    assert RULES[rule](around(middle, 0.0)).verdict in (SUPPORTED, REFUTED)


@given(middles, halves)
def test_what_is_above_has_nothing_above_it(middle, half):
    if above("x", around(middle, half), MARGIN).verdict == SUPPORTED:
        assert above("x", around(-middle, half), MARGIN).verdict == REFUTED


@given(middles, halves)
def test_what_is_above_is_not_below(middle, half):
    if above("x", around(middle, half), MARGIN).verdict == SUPPORTED:
        assert not_below("x", around(middle, half), MARGIN).verdict == SUPPORTED


def test_a_difference_smaller_than_the_margin_is_none_however_exact():
    assert above("x", around(0.5 * MARGIN, 0.1 * MARGIN), MARGIN).verdict == REFUTED


@pytest.mark.parametrize("rule", RULES)
def test_fewer_than_three_seeds_decide_nothing_and_no_number_is_no_test(rule):
    for n in range(1, MIN_SEEDS):
        found = RULES[rule](around(0.0, 0.0, n))
        assert found.verdict == UNDECIDED
        assert found.reason.startswith(f"only {n} seed")
    assert RULES[rule](NOTHING).verdict == UNTESTED
    assert RULES[rule](Interval(0.1, math.nan, math.nan, math.nan, 5)).reason == "no finite interval: x"


def test_a_claim_of_several_parts_holds_only_if_all_do():
    def part(verdict):
        return Part(verdict, NOTHING, verdict=verdict, reason="" if verdict in (SUPPORTED, REFUTED) else f"why {verdict}")

    table = {
        (SUPPORTED, SUPPORTED): (SUPPORTED, ""),
        (SUPPORTED, REFUTED): (REFUTED, "fails: not supported"),
        (UNDECIDED, REFUTED): (REFUTED, "fails: not supported"),
        (SUPPORTED, UNDECIDED): (UNDECIDED, "why undecided"),
        (SUPPORTED, UNTESTED): (UNDECIDED, "why not tested"),
        (UNTESTED, UNTESTED): (UNTESTED, "why not tested"),
        (SUPPORTED, ""): (SUPPORTED, ""),
        (): (UNTESTED, ""),
    }
    for verdicts, expected in table.items():
        assert together([part(verdict) for verdict in verdicts]) == expected, verdicts


def test_a_part_that_was_not_tested_keeps_its_number():
    assert str(untested("gain", "why", around(0.1, 0.05))) == "gain +10.0 [5.0, 15.0] points"


seeds = st.integers(3, 6)
accuracies = st.integers(0, 64).map(lambda number: number / 64)


LOW, HIGH = (st.integers(*ends).map(lambda number: number / 64) for ends in ((0, 8), (56, 64)))


@st.composite
def three_methods(draw, base=accuracies, best=accuracies):
    n = draw(seeds)
    columns = [draw(st.lists(one, min_size=n, max_size=n)) for one in (accuracies, base, best)]
    return [dict(enumerate(column)) for column in columns]


@settings(max_examples=50)
@given(three_methods(LOW, HIGH))
def test_the_bounds_of_a_share_are_where_a_t_test_just_cannot_tell_it(methods):
    values, base, best = methods
    found = share_of_gain(values, base, best)
    full = np.array([best[s] - base[s] for s in base])
    own = np.array([values[s] - base[s] for s in base])
    for bound in (found.low, found.high):
        left = own - bound * full
        error = left.std(ddof=1) / math.sqrt(len(left))
        # As a product, since both sides vanish where the values are an exact share of the gain; roundings are of size 1e-16.
        assert abs(left.mean()) == pytest.approx(stats.t.ppf(0.975, len(left) - 1) * error, rel=1e-6, abs=1e-12)
    assert found.low - 1e-12 <= found.mean <= found.high + 1e-12


@settings(max_examples=50)
@given(three_methods())
def test_a_share_is_finite_exactly_if_the_gain_can_be_told_from_nothing(methods):
    values, base, best = methods
    gain = interval([best[seed] - base[seed] for seed in base])
    assume(gain.mean != 0 and min(abs(gain.low), abs(gain.high)) > 1e-9)
    assert math.isfinite(share_of_gain(values, base, best).low) == (gain.low > 0 or gain.high < 0)


@settings(max_examples=50)
@given(three_methods(), st.integers(-64, 64), st.permutations(range(6)))
def test_a_share_does_not_care_for_a_constant_or_for_the_names_of_the_seeds(methods, number, names):
    moved = [{names[seed]: value + number / 64 for seed, value in one.items()} for one in methods]
    # The seeds come in another order, so sums may round otherwise.
    assert share_of_gain(*moved) == pytest.approx(share_of_gain(*methods), rel=1e-6, abs=1e-9, nan_ok=True)


@settings(max_examples=50)
@given(three_methods(LOW, HIGH))
def test_the_best_has_all_of_its_gain_and_the_baseline_none(methods):
    _, base, best = methods
    assert share_of_gain(best, base, best)[2:4] == pytest.approx((1.0, 1.0), abs=1e-12)
    assert share_of_gain(base, base, best)[2:4] == pytest.approx((0.0, 0.0), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=8))
def test_rank_correlation_is_spearmans_with_ties(pairs):
    left, right = ([float(pair[place]) for pair in pairs] for place in (0, 1))
    assume(len(set(left)) > 1 and len(set(right)) > 1)
    assert rank_correlation(left, right) == pytest.approx(stats.spearmanr(left, right).statistic)


def test_the_rank_correlation_with_a_constant_is_not_defined():
    assert math.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


def test_numbers_are_written_with_interval_and_unit():
    table = {
        ("points", around(0.1, 0.05)): "+10.0 [5.0, 15.0] points",
        ("points", around(-0.0001, 0.0)): "+0.0 [0.0, 0.0] points",
        ("share", around(0.5, 0.25)): "50 [25, 75]%",
        ("factor", around(0.0, math.log(2))): "1.00 [0.50, 2.00]x",
        ("plain", around(-0.5, 0.25)): "-0.50 [-0.75, -0.25]",
        ("points", Interval(0.1, math.nan, math.nan, math.nan, 1)): "+10.0 points (one seed)",
        ("share", Interval(0.1, math.nan, math.nan, math.nan, 4)): "10% (no finite interval)",
        ("points", NOTHING): "not measured",
    }
    for (scale, found), text in table.items():
        assert written(found, scale) == text
