"""Kill -9 at random moments: what was flushed is readable, and the resumed run ends as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import random
import sys
import time

import pandas as pd
import pytest

from noisesam import fit, open_run

KILLS = 20

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a fork server and SIGKILL")


@pytest.fixture(scope="module")
def server():
    """Children fork from a process that has imported everything, so that nearly all of their life is training."""
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo: the first optimizer of a process imports it, which takes seconds.
    modules = ["noisesam.training.fitting", "noisesam.methods.per_example", "noisesam.models"]
    context.set_forkserver_preload([*modules, "sklearn.datasets", "torch._dynamo", "pyarrow.pandas_compat"])
    return context


@pytest.fixture(scope="module")
def config(small_config):
    return small_config(
        tracking={"probe_size": 8, "probe_dense": 4},
        checkpoint={"every": 1, "every_steps": 2, "keep": 2},
    )


def start(server, config, path):
    # The threads of a forked child must be its own: `threads` in the configuration is 1.
    child = server.Process(target=fit, args=(config, path), daemon=True)
    child.start()
    return child


def wait_for(path, child):
    """Wait until the child has written its manifest: from here on there is a run to lose."""
    while not (path / "manifest.json").exists() and child.is_alive():
        time.sleep(0.001)


def sorted_rows(frame, keys):
    return frame.sort_values(keys).reset_index(drop=True)


def assert_readable_part_of(path, whole):
    """Everything on disk is whole, and is what the uninterrupted run wrote up to some step."""
    run = open_run(path)
    assert run.problems == []
    for name, keys in (("metrics", ["step", "split", "group", "metric"]), ("examples", ["step", "example"])):
        found, expected = getattr(run, name), getattr(whole, name)
        if name == "metrics":
            found, expected = (frame[frame["metric"] != "step_seconds"] for frame in (found, expected))
        expected = expected[expected["step"].isin(set(found["step"]))]
        if name == "metrics":  # the tables of one flush are two files, and a kill may fall between them
            expected = expected.merge(found[keys], on=keys)
        pd.testing.assert_frame_equal(sorted_rows(found, keys), sorted_rows(expected, keys), check_exact=True)
    return run


def test_a_run_killed_at_random_moments_is_readable_and_ends_bit_identical(server, config, tmp_path, assert_same_run):
    child = start(server, config, tmp_path / "whole")
    wait_for(tmp_path / "whole", child)
    begin = time.perf_counter()
    child.join()
    duration = time.perf_counter() - begin
    assert child.exitcode == 0
    whole = open_run(tmp_path / "whole")
    generator = random.Random(0)
    kills, midway, attempts = 0, 0, 0
    while kills < KILLS:
        path = tmp_path / f"run-{attempts}"
        attempts += 1
        assert attempts <= 5 * KILLS, "the children finish before they are killed"
        child = start(server, config, path)
        wait_for(path, child)
        time.sleep(generator.uniform(0, duration))
        child.kill()
        child.join()
        if child.exitcode == 0:
            continue  # it had finished before
        kills += 1
        run = assert_readable_part_of(path, whole)
        midway += bool(run.checkpoint_steps) and run.status == "running"
        child = start(server, config, path)
        child.join()
        assert child.exitcode == 0
        assert_same_run(path, whole.path)
    assert midway >= KILLS // 4  # the kills fell into the training, not only before and after it
