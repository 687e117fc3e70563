from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisesam.errors import InputError
from noisesam.training import PURPOSES, BatchOrder, seed_for


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**53 - 1), epoch=st.integers(0, 1000))
def test_every_example_is_seen_exactly_once_per_epoch(size, batch_size, seed, epoch):
    order = BatchOrder(size=size, batch_size=batch_size, seed=seed)
    first = epoch * order.steps_per_epoch
    batches = [order.batch(first + position) for position in range(order.steps_per_epoch)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(order.epoch_of(first + position) == epoch for position in range(order.steps_per_epoch))


def test_a_batch_depends_on_the_step_alone_and_not_on_what_was_drawn_before():
    walked = BatchOrder(size=23, batch_size=4, seed=5)
    batches = [walked.batch(step) for step in range(40)]
    for step in (39, 0, 17, 6, 5):
        np.testing.assert_array_equal(BatchOrder(size=23, batch_size=4, seed=5).batch(step), batches[step])
        np.testing.assert_array_equal(walked.batch(step), batches[step])


def test_epochs_and_seeds_have_different_orders():
    order = BatchOrder(size=50, batch_size=10, seed=0)
    assert not np.array_equal(order.order(0), order.order(1))
    assert not np.array_equal(order.order(0), BatchOrder(size=50, batch_size=10, seed=1).order(0))


def test_no_two_purposes_and_root_seeds_share_a_seed():
    seeds = {seed_for(root, purpose) for root in range(200) for purpose in PURPOSES}
    assert len(seeds) == 200 * len(PURPOSES)
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_seed_is_the_same_in_every_process():
    code = "from noisesam.training import seed_for; print(seed_for(3, 'noise'))"
    printed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "17"}, capture_output=True, check=True
    ).stdout
    assert int(printed) == seed_for(3, "noise") == 2221530915388100


def test_unknown_purpose_and_negative_seed_are_refused():
    with pytest.raises(InputError, match="Did you mean 'noise'"):
        seed_for(0, "noize")
    with pytest.raises(InputError, match="Root seed -1"):
        seed_for(-1, "noise")
