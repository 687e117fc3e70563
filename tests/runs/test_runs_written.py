"""What was flushed is never lost, never doubled and never half there."""

from __future__ import annotations

import copy
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from noisesam.errors import InputError, RunError
from noisesam.runs import EXAMPLES_COLUMNS, METRICS_COLUMNS, RunWriter, open_run, verify
from noisesam.runs import files as low_level


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def temporaries(root: Path) -> list[Path]:
    return list(root.rglob(".tmp-*"))


def test_a_run_reads_back_as_it_was_written(tmp_path, make):
    make.run(tmp_path / "a")
    run = open_run(tmp_path / "a")
    expected = pd.DataFrame([row for step in (0, 10, 20, 30) for row in make.metric_rows(step)])
    assert run.metrics.columns.tolist() == [column.name for column in METRICS_COLUMNS]
    assert run.metrics.to_dict("records") == expected.to_dict("records")
    assert run.examples.columns.tolist() == [column.name for column in EXAMPLES_COLUMNS]
    for step in (0, 10, 20, 30):
        own = run.examples[run.examples["step"] == step]
        for name, values in make.example_columns(step).items():
            np.testing.assert_array_equal(own[name].to_numpy(), values)
    assert (run.status, run.seed, run.method, run.problems, run.checkpoint_steps) == ("finished", 0, "sgd", [], [20, 30])
    assert verify(tmp_path / "a") == []


def test_rows_columns_and_frames_write_the_same_bytes(tmp_path, make):
    rows = make.metric_rows(0)
    forms = {"rows": rows, "columns": {name: [row[name] for row in rows] for name in rows[0]}, "frame": pd.DataFrame(rows)}
    written = set()
    for name, form in forms.items():
        writer = RunWriter.create(tmp_path / name, config=make.config, seeds={})
        writer.add_metrics(form)
        writer.flush(0)
        written.add((tmp_path / name / "metrics" / "part-000000000.parquet").read_bytes())
    assert len(written) == 1


def test_a_missing_column_or_a_wrong_type_is_refused_at_the_door(tmp_path, make):
    writer = RunWriter.create(tmp_path / "a", config=make.config, seeds={})
    row = make.metric_rows(0)[0]
    with pytest.raises(InputError, match=r"The metrics table lacks the column 'value'\. Expected step, epoch"):
        writer.add_metrics([{name: value for name, value in row.items() if name != "value"}])
    with pytest.raises(InputError, match=r"Column 'step' of the metrics table: a value is not a whole number\. Expected int64"):
        writer.add_metrics([row | {"step": 0.5}])
    with pytest.raises(InputError, match=r"Column 'split'.*Expected string"):
        writer.add_metrics([row | {"split": 3}])


def test_flushing_the_same_steps_after_a_resume_changes_no_byte(tmp_path, make):
    make.run(tmp_path / "a", finish=False)
    before = contents(tmp_path / "a")
    writer = RunWriter.resume(tmp_path / "a", config=make.config)
    for step in (20, 30):
        make.stretch(writer, step)
    after = contents(tmp_path / "a")
    assert {name: data for name, data in after.items() if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }


def test_a_second_flush_at_one_step_adds_to_the_first(tmp_path, make):
    writer = RunWriter.create(tmp_path / "a", config=make.config, seeds={})
    first, second = make.metric_rows(10)
    for row in (first, second, second | {"value": 0.9}):
        writer.add_metrics([row])
        writer.flush(10)
    assert open_run(tmp_path / "a").metrics["value"].tolist() == [first["value"], 0.9]


def test_the_later_part_wins_where_two_parts_speak_of_the_same_thing(tmp_path, make):
    writer = RunWriter.create(tmp_path / "a", config=make.config, seeds={})
    row = make.metric_rows(10)[0]
    for step, value in ((10, 0.1), (20, 0.2)):
        writer.add_metrics([row | {"value": value}])
        writer.flush(step)
    assert open_run(tmp_path / "a").metrics["value"].tolist() == [0.2]


def test_a_directory_with_another_configuration_is_never_reused(tmp_path, make):
    make.run(tmp_path / "a")
    other = copy.deepcopy(make.config)
    other["method"]["rho"] = 0.2
    before = contents(tmp_path / "a")
    for begin in (
        lambda: RunWriter.create(tmp_path / "a", config=other, seeds={}),
        lambda: RunWriter.resume(tmp_path / "a", config=other),
    ):
        with pytest.raises(RunError) as caught:
            begin()
        stored = open_run(tmp_path / "a").manifest["configuration_hash"][:12]
        assert f"manifest.json holds another configuration ({stored}, here " in str(caught.value)
        assert "method.rho: 0.1 / 0.2" in str(caught.value)
        assert "Choose another directory, or delete this one." in str(caught.value)
    with pytest.raises(RunError, match=r"already holds this run\. Resume it, or choose another directory"):
        RunWriter.create(tmp_path / "a", config=make.config, seeds={})
    assert contents(tmp_path / "a") == before


def test_a_directory_that_is_no_run_is_refused_and_left_alone(tmp_path, make):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(
        RunError, match=r"is not empty and not a run \(it holds 'thesis.tex'\)\. Expected a new or empty directory"
    ):
        RunWriter.create(tmp_path, config=make.config, seeds={})
    with pytest.raises(RunError, match=r"is not a run\. Expected a directory with a manifest\.json\. Start the run anew\."):
        RunWriter.resume(tmp_path, config=make.config)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_kill_before_the_first_manifest_left_is_no_obstacle(tmp_path, make):
    (tmp_path / ".lock").touch()
    (tmp_path / ".tmp-manifest.json").write_text("{")
    make.run(tmp_path)
    assert temporaries(tmp_path) == []


def test_an_unwritable_place_gives_one_message(tmp_path, make, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written: Not a directory\. Choose a path of which no part is a file\."):
        RunWriter.create(tmp_path / "file" / "run", config=make.config, seeds={})

    def refuse(*arguments, **keywords):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"cannot be written: Permission denied\. Choose a directory that you may write to"):
        RunWriter.create(tmp_path / "run", config=make.config, seeds={})


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_directory_gives_one_message(tmp_path, make):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="Permission denied"):
            RunWriter.create(tmp_path / "run", config=make.config, seeds={})
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_loses_nothing_and_the_flush_can_be_repeated(tmp_path, make, monkeypatch):
    writer = make.run(tmp_path / "a", finish=False, flushes=2)
    before = contents(tmp_path / "a")
    write = low_level._write

    def half_then_full(handle, data):
        handle.write(data[: len(data) // 2])
        handle.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer.add_metrics(make.metric_rows(20))
    writer.add_examples(make.example_columns(20))
    monkeypatch.setattr(low_level, "_write", half_then_full)
    message = r"cannot be written: No space left on device\. Free some space and resume the run; everything written before"
    with pytest.raises(RunError, match=message):
        writer.flush(20)
    with pytest.raises(RunError, match=message):
        writer.write_checkpoint(20, make.payload(), {})
    with pytest.raises(RunError, match=message):
        writer.fail("no space")
    assert contents(tmp_path / "a") == before
    assert temporaries(tmp_path) == []
    monkeypatch.setattr(low_level, "_write", write)
    writer.flush(20)
    run = open_run(tmp_path / "a")
    assert run.metrics["step"].unique().tolist() == [0, 10, 20]
    assert run.examples["step"].unique().tolist() == [0, 10, 20]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the writer may catch it, so the disk is left as a kill leaves it."""


def test_a_kill_before_any_rename_leaves_a_readable_run_that_resumes_to_the_same_bytes(tmp_path, make, monkeypatch):
    make.run(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    replace = os.replace
    kills = 0
    for moment in range(1, 100):
        root = tmp_path / f"killed-{moment}"
        calls = 0

        def killing(source, target, moment=moment):
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", killing)
        try:
            make.run(root)
        except Killed:
            kills += 1
        else:
            break
        finally:
            monkeypatch.setattr(os, "replace", replace)
        if not (root / "manifest.json").exists():
            make.run(root)
        else:
            run = open_run(root, strict=True)
            flushed = sorted(run.metrics["step"].unique())
            assert flushed == list(range(0, 10 * len(flushed), 10))
            assert all(state["step"] in flushed for state in (run.checkpoint(step).state for step in run.checkpoint_steps))
            resumed_from = run.checkpoint_steps[-1] if run.checkpoint_steps else -10
            writer = RunWriter.resume(root, config=make.config)
            assert temporaries(root) == []
            for step in range(resumed_from + 10, 40, 10):
                make.stretch(writer, step)
            writer.finish()
        assert {k: v for k, v in contents(root).items() if k != "manifest.json"} == {
            k: v for k, v in whole.items() if k != "manifest.json"
        }
        assert verify(root) == []
    assert kills == 18  # Two manifests and, four times, two parts and a checkpoint of two files.


CHILD = """
import os, signal, sys
from noisesam.runs import RunWriter
replace, calls = os.replace, 0
def killing(source, target):
    global calls
    calls += 1
    if calls == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killing
writer = RunWriter.create(sys.argv[1], config={"method": {"name": "sgd"}, "seed": 0}, seeds={})
for step in range(9):
    writer.add_metrics([{"step": step, "epoch": step, "split": "test", "group": "all", "metric": "loss", "value": 0.5}])
    writer.flush(step)
"""


def test_a_process_killed_by_the_system_leaves_what_it_had_flushed(tmp_path):
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "a")], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(temporaries(tmp_path)) == 1
    run = open_run(tmp_path / "a", strict=True)
    assert (run.status, run.metrics["step"].tolist()) == ("running", [0, 1])
    RunWriter.resume(tmp_path / "a", config={"method": {"name": "sgd"}, "seed": 0})
    assert temporaries(tmp_path) == []


HOLDER = """
import sys
from noisesam.runs import RunWriter
writer = RunWriter.resume(sys.argv[1], config={"method": {"name": "sgd"}, "seed": 0})
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_never_write_one_run(tmp_path):
    config = {"method": {"name": "sgd"}, "seed": 0}
    RunWriter.create(tmp_path / "a", config=config, seeds={}).close()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=r"Another process is writing the run .* Wait for it, or choose another directory\."):
            RunWriter.resume(tmp_path / "a", config=config)
        holder.kill()
    RunWriter.resume(tmp_path / "a", config=config).close()


def test_finishing_with_rows_that_were_not_flushed_is_refused(tmp_path, make):
    writer = RunWriter.create(tmp_path / "a", config=make.config, seeds={})
    writer.add_metrics(make.metric_rows(0))
    with pytest.raises(RunError, match=r"rows that were not flushed\. Call flush\(step\) before finish\(\)\."):
        writer.finish()


def test_a_checkpoint_returns_the_tensors_and_the_state(tmp_path, make):
    make.run(tmp_path / "a")
    run = open_run(tmp_path / "a")
    newest, older = run.checkpoint(), run.checkpoint(20)
    assert (newest.step, newest.state, older.state) == (30, {"step": 30}, {"step": 20})
    assert newest.tensors["weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    with pytest.raises(RunError, match=r"has no checkpoint at step 10\. Expected one of: 20, 30\."):
        run.checkpoint(10)


def test_a_checkpoint_without_its_marker_is_none_and_goes_at_resume(tmp_path, make):
    make.run(tmp_path / "a", finish=False)
    (tmp_path / "a" / "checkpoints" / "step-000000030.json").unlink()
    assert open_run(tmp_path / "a").checkpoint().step == 20
    assert [problem.file.rsplit("/", 1)[-1] for problem in verify(tmp_path / "a")] == ["step-000000030.safetensors"]
    RunWriter.resume(tmp_path / "a", config=make.config)
    assert verify(tmp_path / "a") == []


def test_pruning_keeps_the_newest_and_zero_keeps_all(tmp_path, make):
    writer = RunWriter.create(tmp_path / "a", config=make.config, seeds={})
    for step in range(5):
        writer.write_checkpoint(step, make.payload(), {})
    writer.prune(0)
    assert open_run(tmp_path / "a").checkpoint_steps == [0, 1, 2, 3, 4]
    writer.prune(3)
    assert open_run(tmp_path / "a").checkpoint_steps == [2, 3, 4]
    assert len(list((tmp_path / "a" / "checkpoints").iterdir())) == 6


def test_a_state_that_json_cannot_hold_leaves_the_last_checkpoint_alone(tmp_path, make):
    writer = make.run(tmp_path / "a", finish=False)
    with pytest.raises(
        RunError, match=r"state of the checkpoint at step 40 cannot be written as JSON.*Put arrays into the payload"
    ):
        writer.write_checkpoint(40, make.payload(), {"array": np.zeros(2)})
    assert open_run(tmp_path / "a").checkpoint_steps == [20, 30]


def test_no_marker_ever_vouches_for_another_payload(tmp_path, make, monkeypatch):
    writer = make.run(tmp_path / "a", finish=False)

    def kill(source, target):
        raise Killed

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        writer.write_checkpoint(30, b"other bytes", {})
    monkeypatch.undo()
    assert open_run(tmp_path / "a").checkpoint().step == 20
