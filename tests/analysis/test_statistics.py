"""Means over seeds against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noisesam.analysis import interval, paired_difference
from noisesam.errors import InputError

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


@settings(deadline=None, max_examples=50)
@given(VALUES, st.sampled_from([0.5, 0.9, 0.95]))
def test_the_t_interval_is_that_of_scipy(values, confidence):
    found = interval(values, confidence)
    assert found.n == len(values)
    # 1e-9: sums of at most eight numbers below 1e3, in another order.
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.sd == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    if found.sd > 1e-6:
        expected = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found.low, found.high) == pytest.approx(expected, abs=1e-7)


def test_the_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(size=12)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1))
    found = interval(values, method="bootstrap")
    # Both are Monte Carlo: 10,000 resamples place a 2.5% quantile within about 0.02 standard errors of the mean times 3.
    tolerance = 0.1 * float(stats.sem(values))
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=tolerance)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=tolerance)
    assert interval(values, method="bootstrap") == found


def test_one_value_has_no_interval_and_none_has_no_mean():
    one = interval([0.5, math.nan])
    assert (one.mean, one.n) == (0.5, 1)
    assert all(math.isnan(value) for value in (one.sd, one.low, one.high))
    none = interval([math.nan])
    assert none.n == 0
    assert math.isnan(none.mean)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.integers(0, 9), st.floats(-1, 1), min_size=2, max_size=6), st.floats(-1, 1))
def test_what_a_seed_does_to_both_cancels_in_a_paired_difference(baseline, shift):
    values = {seed: value + shift for seed, value in baseline.items()}
    found = paired_difference(values, baseline | {99: 0.3})
    # 1e-12: rounding of numbers of order one.
    assert found.mean == pytest.approx(shift, abs=1e-12)
    assert found.sd == pytest.approx(0, abs=1e-12)
    assert found.n == len(baseline)


def test_paired_and_t_test_agree():
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=6), generator.normal(size=6)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    # 1e-12: the same formula on numbers of order one.
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match=r"confidence=95\.0\. Expected a number between 0 and 1\. Write 0\.95 for 95%\."):
        interval([1.0], confidence=95.0)
    with pytest.raises(InputError, match=r"Unknown interval method 'boot'\. .* Did you mean 'bootstrap'\?"):
        interval([1.0], method="boot")
