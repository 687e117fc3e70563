"""Manifests that no noisesam wrote: refused by one message or read as data, never obeyed."""

from __future__ import annotations

import shutil

import pytest
from reference.manifests import altered

from noisesam.analysis import summary
from noisesam.errors import RunError
from noisesam.runs import configuration_hash, open_run, open_runs, setting_hash, verify


def nested(depth: int) -> dict:
    inner: dict = {}
    for _ in range(depth):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("configuration", "x"), nested(500), "tables more than"),
        (("configuration", "seed"), 10**30, "more than 64 bits"),
        (("data", "classes"), 10**400, "more than 64 bits"),
        (("configuration", "epochs"), float("nan"), "not finite"),
        (("configuration", "epochs"), float("inf"), "not finite"),
        (("configuration", "name"), "\ud800", "no Unicode"),
        (("noise",), {"kind": [["\udfff"]]}, "no Unicode"),
    ],
)
def test_a_value_that_no_reader_can_hold_is_one_error_and_no_run(tmp_path, make, place, value, message):
    make.run(tmp_path / "a")

    def change(manifest: dict) -> None:
        for key in place[:-1]:
            manifest = manifest[key]
        manifest[place[-1]] = value

    altered(tmp_path / "a", change)
    with pytest.raises(RunError, match=message):
        open_run(tmp_path / "a")
    assert message in verify(tmp_path / "a")[0].message


def with_another_radius(manifest):
    manifest["configuration"]["method"]["rho"] = 0.7
    for key, compute in (("configuration_hash", configuration_hash), ("setting_hash", setting_hash)):
        manifest[key] = compute(manifest["configuration"], manifest["data_file"])


def test_two_manifests_with_one_id_are_one_run(tmp_path, make):
    make.run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    altered(tmp_path / "b", with_another_radius)
    runs = open_runs(tmp_path)
    assert [run.path.name for run in runs] == ["a"]
    assert "same run" in runs.problems[0].message
    assert summary(runs)["seeds"].tolist() == [1]


def test_a_part_that_a_finished_run_lost_is_a_problem_of_the_run(tmp_path, make):
    make.run(tmp_path / "a")
    assert open_run(tmp_path / "a").problems == []
    (tmp_path / "a" / "metrics" / "part-000000020.parquet").unlink()
    shutil.rmtree(tmp_path / "a" / "examples")
    run = open_run(tmp_path / "a")
    assert len(run.problems) == 5
    assert sum("'metrics/part-000000020.parquet', which is missing" in problem.message for problem in run.problems) == 1
    assert sorted(set(run.metrics["step"])) == [0, 10, 30]
    with pytest.raises(RunError, match="which is missing"):
        _ = open_run(tmp_path / "a", strict=True).metrics
