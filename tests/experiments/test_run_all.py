"""Many runs: finished ones are skipped, broken ones resumed, failing ones reported, and none depends on where it is made."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pandas as pd
import pytest
import torch

from noisesam.errors import InputError, NoisesamError, RunError
from noisesam.experiments import FailedRunError, Failure, Job, Outcome, Report, is_finished, processes, run_all
from noisesam.runs import open_run
from noisesam.training import fit, load_config

SETTING = {
    "data": {"train_size": 120, "validation_size": 30, "test_size": 60},
    "noise": {"kind": "symmetric", "rate": 0.4},
    "model": {"name": "mlp", "options": {"hidden": [8]}},
    "optimizer": {"lr": 0.2},
    "training": {"epochs": 3, "batch_size": 30},
    "tracking": {"probe_size": 0},
    "checkpoint": {"every": 1, "keep": 1},
}


def job(folder: Path, seed: int = 0, **method) -> Job:
    return Job(load_config({**SETTING, "method": {"name": "sgd", **method}, "seed": seed}), folder)


def diverging(folder: Path) -> Job:
    config = load_config({**SETTING, "optimizer": {"lr": 1e30}, "method": {"name": "sgd"}})
    return Job(config, folder)


def values(folder: Path) -> pd.DataFrame:
    metrics = open_run(folder).metrics
    return metrics[metrics["metric"] != "step_seconds"].reset_index(drop=True)


class Inline(Executor):
    """The smallest executor that keeps the contract: work is done at submit."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def submit(self, fn, /, *args, **kwargs):
        self.calls.append(args)
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Breaking(Executor):
    """An executor whose process is killed by the second run."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        if args[1] == 1:
            future.set_exception(BrokenProcessPool("killed"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_a_run_does_not_depend_on_the_executor(tmp_path):
    fit(job(tmp_path / "fit").config, tmp_path / "fit")
    run_all([job(tmp_path / "inline")], executor=Inline())
    with ThreadPoolExecutor(2) as threads:
        run_all([job(tmp_path / "thread"), job(tmp_path / "thread1", 1)], executor=threads)
    outcome = run_all([job(tmp_path / "process"), job(tmp_path / "process1", 1)], workers=2)
    assert outcome == Outcome(2, 0)
    for name in ("inline", "thread", "process"):
        pd.testing.assert_frame_equal(values(tmp_path / name), values(tmp_path / "fit"), check_exact=True)
    pd.testing.assert_frame_equal(values(tmp_path / "process1"), values(tmp_path / "thread1"), check_exact=True)


def test_a_worker_has_one_thread_whatever_the_parent_has(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    threads = (
        "(__import__('torch').get_num_threads(), *map(__import__('os').environ.get, ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')))"
    )
    with processes.pool(1, processes.make_queue()) as pool:
        assert pool.submit(eval, threads).result() == (1, "1", "1")
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_run_on_another_executor_has_one_thread_and_gives_the_others_back(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("noisesam.training.fit", lambda *_, **__: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        run_all([job(tmp_path / "a")], executor=Inline())
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(1)


def test_threads_of_one_process_make_one_run_at_a_time(tmp_path, monkeypatch):
    under_way, most = 0, 0
    lock = threading.Lock()

    def slow(*_, **__):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        threading.Event().wait(0.02)
        with lock:
            under_way -= 1

    monkeypatch.setattr("noisesam.training.fit", slow)
    with ThreadPoolExecutor(4) as threads:
        run_all([job(tmp_path / str(seed), seed) for seed in range(4)], executor=threads)
    assert most == 1


def test_finished_runs_are_skipped_and_broken_ones_go_on_from_their_checkpoint(tmp_path):
    finished, broken = job(tmp_path / "finished"), job(tmp_path / "broken", 1)
    fit(finished.config, finished.folder)

    def stop(step, total, text):
        if step == 6:  # of 9: in the middle of the run, one step after its second checkpoint at the earliest
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken.config, broken.folder, progress=stop)
    assert [is_finished(one) for one in (finished, broken)] == [True, False]
    before = (finished.folder / "manifest.json").read_bytes()
    reports: list[Report] = []
    assert run_all([finished, broken], executor=Inline(), progress=reports.append) == Outcome(1, 1)
    assert (finished.folder / "manifest.json").read_bytes() == before
    fit(broken.config, tmp_path / "at once")
    pd.testing.assert_frame_equal(values(broken.folder), values(tmp_path / "at once"), check_exact=True)
    assert {report.runs for report in reports} == {1}
    executor = Inline()
    assert run_all([finished, broken], executor=executor) == Outcome(0, 2)
    assert executor.calls == []


def test_a_finished_run_of_another_configuration_or_with_a_lost_part_is_not_this_run(tmp_path):
    one = job(tmp_path / "a")
    fit(one.config, one.folder)
    assert not is_finished(job(one.folder, 1))
    next((one.folder / "metrics").iterdir()).unlink()
    assert not is_finished(one)
    (one.folder / "manifest.json").write_text("{")
    assert not is_finished(one)


def test_a_users_own_data_is_known_by_its_content(tmp_path, monkeypatch):
    import numpy as np

    def write(seed: int) -> None:
        generator = np.random.default_rng(seed)
        inputs, labels = generator.normal(size=(60, 4)).astype("float32"), generator.integers(0, 2, 60)
        np.savez(tmp_path / "own.npz", train_inputs=inputs, train_labels=labels, test_inputs=inputs, test_labels=labels)

    write(0)
    config = load_config({**SETTING, "data": {"name": str(tmp_path / "own.npz")}, "noise": {}})
    one = Job(config, tmp_path / "run")
    fit(config, one.folder)
    assert is_finished(one)
    write(1)
    assert not is_finished(one)


def test_a_failing_run_ends_everything_unless_failures_are_collected(tmp_path):
    jobs = [job(tmp_path / "before"), diverging(tmp_path / "bad"), job(tmp_path / "after", 1)]
    with pytest.raises(FailedRunError, match=r"bad: Training diverged .* Expected a finite loss. Lower optimizer.lr"):
        run_all(jobs, executor=Inline())
    outcome = run_all(jobs, executor=Inline(), on_failure="collect")
    assert (outcome.made, outcome.skipped) in {(0, 2), (1, 1)}
    (failure,) = outcome.failed
    assert (failure.name, failure.expected) == ("bad", "a finite loss")
    assert failure.given.startswith("Training diverged after")
    assert failure.remedy.startswith("Lower optimizer.lr")
    assert str(failure).startswith("bad: Training diverged")
    assert all(is_finished(jobs[place]) for place in (0, 2))


def test_processes_go_on_past_a_failing_run_and_past_a_warning(tmp_path):
    stuck = Job(
        load_config({**SETTING, "optimizer": {"lr": 0.0}, "training": {"epochs": 60, "batch_size": 30}}), tmp_path / "stuck"
    )
    reports: list[Report] = []
    jobs = [diverging(tmp_path / "bad"), stuck, job(tmp_path / "good")]
    outcome = run_all(jobs, workers=1, on_failure="collect", progress=reports.append)
    assert (outcome.made, outcome.skipped, [failure.name for failure in outcome.failed]) == (2, 0, ["bad"])
    (warning,) = [report.warning for report in reports if report.warning]
    assert warning.startswith("stuck: Training accuracy is")
    counted = [report for report in reports if not report.warning]
    assert (counted[0].ended, counted[0].epochs, counted[0].seconds_left) == (0, 0, None)
    assert (counted[-1].ended, counted[-1].failed, counted[-1].epochs) == (3, 1, 66)
    assert counted[-1].total_epochs == 66
    assert counted[-1].seconds_left == 0
    assert len({report.epochs for report in counted}) > 10  # it was told while it ran, not only at the end of each run


def test_what_noisesam_does_not_foresee_is_collected_too_and_raised_as_it_is(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("noisesam.training.fit", fails)
    with pytest.raises(ZeroDivisionError):
        run_all([job(tmp_path / "a")], executor=Inline())
    (failure,) = run_all([job(tmp_path / "a")], executor=Inline(), on_failure="collect").failed
    assert failure == Failure("a", "ZeroDivisionError: a bug", "", failure.remedy)
    assert "alone" in failure.remedy


def test_a_killed_worker_costs_no_other_run(tmp_path, monkeypatch):
    """The first worker that begins is killed by the system; its run and its neighbours are made all the same."""
    followed = []
    told = threading.Event()

    def kill_once(report: Report) -> None:
        if followed and not told.is_set():
            told.set()
            for process in list(followed[0]._processes):
                os.kill(process, signal.SIGKILL)

    original = processes.pool

    class Pool:
        def __init__(self, workers, reports):
            self.context = original(workers, reports)

        def __enter__(self):
            followed.append(self.context.__enter__())
            return followed[-1]

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    monkeypatch.setattr(processes, "pool", Pool)
    long = {"training": {"epochs": 1000, "batch_size": 60}, "tracking": {"evaluate_every": 1000, "probe_size": 0}}
    jobs = [
        Job(load_config({**SETTING, **long, "checkpoint": {"every": 1000}, "seed": seed}), tmp_path / f"seed{seed}")
        for seed in range(2)
    ]
    assert run_all(jobs, workers=1, on_failure="collect", progress=kill_once) == Outcome(2, 0)
    assert all(is_finished(one) for one in jobs)
    assert len(followed) >= 2


def test_a_broken_executor_is_a_failure_of_what_had_not_ended(tmp_path):
    jobs = [job(tmp_path / str(seed), seed) for seed in range(3)]
    outcome = run_all(jobs, executor=Breaking(), on_failure="collect")
    assert (outcome.made, [failure.name for failure in outcome.failed]) == (2, ["1"])
    with pytest.raises(RunError, match="killed from outside"):
        run_all([job(tmp_path / "other"), jobs[1]], executor=Breaking())


def test_two_jobs_of_one_folder_and_no_workers_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"Two jobs have the folder .* Expected a folder for each run"):
        run_all([job(tmp_path / "a"), job(tmp_path / "a", 1)])
    with pytest.raises(InputError, match=r"workers = 0. Expected at least 1"):
        run_all([], workers=0)


def test_relative_folders_and_data_are_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOISESAM_DATA", "data")
    executor = Inline()
    run_all([job(Path("runs") / "a")], executor=executor)
    ((sent, _, root),) = executor.calls
    assert (sent.folder, root) == (tmp_path / "runs" / "a", tmp_path / "data")
    assert is_finished(job(tmp_path / "runs" / "a"))


def test_warnings_reach_a_caller_without_progress_as_warnings(tmp_path):
    config = load_config({**SETTING, "optimizer": {"lr": 0.0}, "training": {"epochs": 60, "batch_size": 30}})
    with pytest.warns(UserWarning, match="stuck: Training accuracy is"):
        run_all([Job(config, tmp_path / "stuck")], executor=Inline())


def test_failed_runs_cross_a_process_border_with_their_parts():
    import pickle

    error = pickle.loads(pickle.dumps(FailedRunError("a", "It broke", "a whole disk", "Make room")))
    assert isinstance(error, NoisesamError)
    assert error.failure == Failure("a", "It broke", "a whole disk", "Make room")
