"""A run that was damaged while it lay still is not gone on with: what a checkpoint stands for is never written again."""

from __future__ import annotations

import shutil

import pytest

from noisesam import open_run
from noisesam.errors import RunError
from noisesam.training import fit


@pytest.fixture
def interrupted(tmp_path, small_config):
    """A run of four epochs, evaluated and saved after each, stopped in the third."""

    def stop(done: int, *_: object) -> None:
        if done == 8:
            raise KeyboardInterrupt

    config = small_config(checkpoint={"every": 1, "every_steps": None})
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", progress=stop)
    assert open_run(tmp_path / "run").checkpoint_steps[-1] == 6
    return config, tmp_path / "run"


def test_a_truncated_part_is_refused_and_nothing_says_to_delete_it_alone(interrupted):
    config, path = interrupted
    part = path / "metrics" / "part-000000003.parquet"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(RunError, match=r"part-000000003\.parquet is truncated.*delete the whole run and train it again"):
        fit(config, path)


@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_missing_part_is_refused_wherever_it_lay(interrupted, step):
    config, path = interrupted
    (path / "metrics" / f"part-{step:09d}.parquet").unlink()
    with pytest.raises(RunError, match=rf"has no evaluation at epoch {step // 3}; .* Restore the missing part"):
        fit(config, path)


def test_the_part_put_back_the_run_goes_on_to_the_same_end(interrupted, tmp_path, assert_same_run):
    config, path = interrupted
    part, kept = path / "metrics" / "part-000000003.parquet", tmp_path / "kept"
    shutil.move(part, kept)
    with pytest.raises(RunError):
        fit(config, path)
    shutil.move(kept, part)
    fit(config, path)
    assert_same_run(path, fit(config, tmp_path / "whole").path)


def test_damage_behind_the_last_checkpoint_is_written_over(interrupted, tmp_path, assert_same_run):
    config, path = interrupted
    (path / "metrics" / "part-000000007.parquet").write_bytes(b"half a part of a failure")
    fit(config, path)
    assert_same_run(path, fit(config, tmp_path / "whole").path)
