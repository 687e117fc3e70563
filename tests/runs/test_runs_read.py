"""Broken runs, strangers' runs and many runs: one clear message each, and the rest still readable."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference.manifests import altered

from noisesam.analysis import summary
from noisesam.errors import InputError, RunError
from noisesam.runs import RunCollection, configuration_hash, open_run, open_runs, setting_hash, verify

PART = Path("metrics") / "part-000000020.parquet"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def garbage(path: Path) -> None:
    path.write_bytes(b"PAR1" + os.urandom(200) + b"PAR1")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_value(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["value"]), path)


def text_as_step(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "step", pa.array(["ten"] * table.num_rows)), path)


def hole_in_split(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "split", pa.array([None] * table.num_rows, pa.string())), path)


def outside_link(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere.parquet"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


BREAKS = {
    truncate: "is truncated or not a parquet file",
    garbage: "is truncated or not a parquet file",
    empty: "is truncated or not a parquet file",
    without_value: "lacks the column 'value'. Expected the columns of the metrics table: step, epoch, split",
    text_as_step: "has string in column 'step'. Expected int64",
    hole_in_split: "has empty cells in column 'split'. Expected a value in each row",
    outside_link: "is a link to a file outside the run. Expected every file of a run to lie inside its folder",
    dangling_link: "is missing",
    directory: "is not a regular file",
}


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_a_broken_part_is_named_with_its_remedy_and_the_rest_is_read(tmp_path, make, broken):
    make.run(tmp_path / "a")
    broken(tmp_path / "a" / PART)
    run = open_run(tmp_path / "a")
    assert run.metrics["step"].unique().tolist() == [0, 10, 30]
    assert run.examples["step"].unique().tolist() == [0, 10, 20, 30]
    (problem,) = run.problems
    assert problem.file == str(tmp_path / "a" / PART)
    assert f"{tmp_path / 'a' / PART} {BREAKS[broken]}" in problem.message
    assert problem.remedy.endswith(".")
    assert str(problem) == f"{problem.message} {problem.remedy}"
    assert problem in verify(tmp_path / "a")
    with pytest.raises(RunError, match="part-000000020"):
        _ = open_run(tmp_path / "a", strict=True).metrics


def test_further_plain_columns_are_kept_and_others_left_out(tmp_path, make):
    make.run(tmp_path / "a", finish=False)
    path = tmp_path / "a" / PART
    table = pq.read_table(path)
    table = table.append_column("note", pa.array(["mine"] * table.num_rows))
    pq.write_table(table.append_column("nested", pa.array([{"a": 1}] * table.num_rows)), path)
    metrics = open_run(tmp_path / "a", strict=True).metrics
    assert metrics.columns.tolist()[6:] == ["note"]
    assert metrics.loc[metrics["step"] == 20, "note"].tolist() == ["mine", "mine"]
    assert metrics.loc[metrics["step"] != 20, "note"].isna().all()


def test_narrower_types_of_another_writer_are_read_as_the_documented_ones(tmp_path, make):
    make.run(tmp_path / "a", finish=False)
    path = tmp_path / "a" / PART
    table = pq.read_table(path)
    pq.write_table(
        table.set_column(0, "step", table["step"].cast(pa.int16())).set_column(5, "value", table["value"].cast(pa.float32())),
        path,
    )
    assert open_run(tmp_path / "a", strict=True).metrics.dtypes[["step", "value"]].astype(str).tolist() == ["int64", "float64"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1', r"is not valid JSON \(JSONDecodeError\)\. Restore manifest\.json from a copy of the run"),
        ("\xff\xfe", r"is not valid JSON"),
        ("[" * 100_000, r"is not valid JSON \(RecursionError\)"),
        ("[]", r"holds list\. Expected a JSON object"),
        ("{}", r"has schema version None"),
        (" " * (16 * 2**20 + 1), r"has 16777217 bytes\. Expected at most 16777216"),
    ],
    ids=["truncated", "no text", "deep", "list", "empty", "huge"],
)
def test_a_corrupt_manifest_is_one_clear_error(tmp_path, make, text, message):
    make.run(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=message) as caught:
        open_run(tmp_path / "a")
    assert str(tmp_path / "a" / "manifest.json") in str(caught.value)
    assert [problem.file for problem in verify(tmp_path / "a")] == [str(tmp_path / "a" / "manifest.json")]


def test_what_is_no_run_is_said_to_be_none(tmp_path, make):
    make.run(tmp_path / "folder" / "a")
    with pytest.raises(
        RunError,
        match=r"folder is not a run: it has no manifest\.json\. .* For a folder of runs: noisesam runs list",
    ):
        open_run(tmp_path / "folder")
    with pytest.raises(RunError, match=r"is a file\. Expected the directory of a run\. Name the directory that holds"):
        open_run(tmp_path / "folder" / "a" / "manifest.json")
    with pytest.raises(RunError, match="does not exist"):
        open_run(tmp_path / "nothing")
    (tmp_path / "void").mkdir()
    with pytest.raises(
        RunError, match=r"No run below .*void\. Expected a directory that holds manifest\.json\. Check the path\."
    ):
        open_runs(tmp_path / "void")


def test_a_manifest_that_is_a_link_out_of_the_run_is_refused(tmp_path, make):
    make.run(tmp_path / "a")
    shutil.move(tmp_path / "a" / "manifest.json", tmp_path / "manifest.json")
    (tmp_path / "a" / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(RunError, match="is a link to a file outside the run"):
        open_run(tmp_path / "a")


@pytest.mark.parametrize("what", ["payload", "marker", "link"])
def test_a_damaged_checkpoint_is_never_loaded(tmp_path, make, what):
    make.run(tmp_path / "a")
    tensors = tmp_path / "a" / "checkpoints" / "step-000000030.safetensors"
    if what == "payload":
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    elif what == "marker":
        tensors.with_suffix(".json").write_text("{}")
    else:
        shutil.move(tensors, tmp_path / "elsewhere")
        tensors.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="step-000000030") as caught:
        open_run(tmp_path / "a").checkpoint()
    if what != "link":
        assert "the run then resumes from step 20." in str(caught.value)
    assert open_run(tmp_path / "a").checkpoint(20).step == 20
    assert len(verify(tmp_path / "a")) == 1


def test_verify_sees_a_changed_a_missing_and_an_added_part(tmp_path, make):
    make.run(tmp_path / "a")
    assert verify(tmp_path / "a") == []
    path = tmp_path / "a" / PART
    frame = pq.read_table(path).to_pandas()
    pq.write_table(pa.Table.from_pandas(frame.assign(value=0.99), preserve_index=False), path)
    changed, gap = [problem.message for problem in verify(tmp_path / "a")]
    assert changed == f"{path} does not match its checksum in the manifest."
    assert "has no evaluation between the epochs 1 and 3" in gap  # what was changed is no evaluation of this run
    shutil.move(path, path.with_name("part-000000099.parquet"))
    messages = " ".join(problem.message for problem in verify(tmp_path / "a"))
    assert "lists the part 'metrics/part-000000020.parquet', which is missing" in messages
    assert "part-000000099.parquet was added after the run had finished" in messages
    assert "part-000000099.parquet holds steps 20 to 20, outside its stretch from 30 to 99" in messages


def test_verify_sees_a_gap_between_evaluations_and_a_changed_configuration(tmp_path, make):
    make.run(tmp_path / "a", finish=False)
    (tmp_path / "a" / PART).unlink()
    (problem,) = verify(tmp_path / "a")
    assert "has no evaluation between the epochs 1 and 3; one is due every 1." in problem.message
    path = tmp_path / "a" / "manifest.json"
    path.write_text(path.read_text().replace('"rho": 0.1', '"rho": 0.2'))
    messages = [problem.message for problem in verify(tmp_path / "a")]
    assert any("configuration_hash does not match the configuration" in message for message in messages)


def resealed(manifest: dict) -> None:
    """Give a manifest the hashes of its configuration, as somebody would who means to change it."""
    identity = manifest.get("data_file")
    for key, compute in (("configuration_hash", configuration_hash), ("setting_hash", setting_hash)):
        manifest[key] = compute(manifest["configuration"], identity)


@pytest.mark.parametrize("seed", ["1", 1.0, True, [1], {}])
def test_a_seed_that_is_no_whole_number_is_none(tmp_path, make, seed):
    make.run(tmp_path / "a")
    make.run(tmp_path / "b", config=variant(make.config, seed=1))
    altered(tmp_path / "a", lambda manifest: (manifest["configuration"].update(seed=seed), resealed(manifest)))
    runs = open_runs(tmp_path)
    assert [run.path.name for run in runs] == ["b"]
    assert "configuration.seed = " in runs.problems[0].message


@pytest.mark.parametrize(("section", "key", "value"), [(None, "seed", 7), ("method", "rho", 0.9), ("noise", "rate", 0.0)])
def test_a_configuration_that_was_changed_by_hand_is_no_run_of_its_hash(tmp_path, make, section, key, value):
    make.run(tmp_path / "a")
    make.run(tmp_path / "b", config=variant(make.config, seed=1))
    place = (lambda configuration: configuration) if section is None else itemgetter(section)
    altered(tmp_path / "a", lambda manifest: place(manifest["configuration"]).update({key: value}))
    runs = open_runs(tmp_path)
    assert [run.path.name for run in runs] == ["b"]
    assert "hash does not match the configuration" in runs.problems[0].message
    with pytest.raises(RunError, match="hash does not match the configuration"):
        open_run(tmp_path / "a")


@pytest.mark.parametrize("classes", [-3, 0, "ten", 2.5, ["a", "b"]])
def test_a_number_of_classes_that_is_none_leaves_one_run_out_and_no_analysis(tmp_path, make, classes):
    make.run(tmp_path / "a")
    make.run(tmp_path / "b", config=variant(make.config, seed=1))
    altered(tmp_path / "a", lambda manifest: manifest["data"].update(classes=classes))
    runs = open_runs(tmp_path)
    assert [run.path.name for run in runs] == ["b"]
    assert "data.classes = " in runs.problems[0].message


def test_one_changed_bit_of_a_sealed_part_is_named_and_gives_no_number(tmp_path, make):
    make.run(tmp_path / "a")
    path = tmp_path / "a" / PART
    content, seen = path.read_bytes(), 0
    for place in range(4, len(content) - 12, 7):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        run = open_run(tmp_path / "a")
        assert 20 not in set(run.metrics["step"]), place
        assert [problem.file for problem in run.problems] == [str(path)]
        seen += "does not match its checksum" in run.problems[0].message
    assert seen > 10  # parquet itself does not notice these
    path.write_bytes(content)
    assert open_run(tmp_path / "a").problems == []


def test_a_radius_of_one_is_one_setting_however_it_is_written(tmp_path, make):
    for seed in (0, 1):
        for name, rho in (("float", 1.0), ("whole", 1)):
            make.run(tmp_path / f"{name}{seed}", config=variant(make.config, seed=seed, method__rho=rho))
    runs = open_runs(tmp_path)
    assert len(runs) == 2
    assert sum("holds the same run" in problem.message for problem in runs.problems) == 2
    every = RunCollection([open_run(tmp_path / f"{name}{seed}") for seed in (0, 1) for name in ("float", "whole")])
    with pytest.raises(InputError, match="Two runs share method and setting and seed"):
        summary(every)


def test_a_link_to_a_run_is_named_and_not_followed(tmp_path, make):
    make.run(tmp_path / "elsewhere" / "a")
    make.run(tmp_path / "runs" / "b", config=variant(make.config, seed=1))
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere" / "a")
    runs = open_runs(tmp_path / "runs")
    assert [run.path.name for run in runs] == ["b"]
    assert "is a link to a run" in runs.problems[0].message
    only = tmp_path / "only"
    only.mkdir()
    (only / "linked").symlink_to(tmp_path / "elsewhere" / "a")
    assert "is a link to a run" in open_runs(only).problems[0].message


def variant(config: dict, **changes) -> dict:
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = config
        for section in sections:
            place = place[section]
        place[last] = value
    return config


def test_a_collection_lists_broken_runs_and_loads_the_others(tmp_path, make):
    for seed in range(4):
        make.run(tmp_path / f"deep/{seed}", config=variant(make.config, seed=seed))
    (tmp_path / "deep/1/manifest.json").write_text("{")
    (tmp_path / "deep/2/manifest.json").unlink()
    truncate(tmp_path / "deep/3" / PART)
    runs = open_runs(tmp_path)
    assert [run.seed for run in runs] == [0, 3]
    assert [Path(problem.file).relative_to(tmp_path).as_posix() for problem in runs.problems] == [
        "deep/1/manifest.json",
        "deep/2/manifest.json",
        "deep/3/metrics/part-000000020.parquet",
    ]
    assert runs.metrics.groupby("seed").size().tolist() == [8, 6]
    assert runs.metrics.columns.tolist()[:5] == ["run", "method", "setting", "seed", "step"]
    assert runs.examples.columns.tolist()[:5] == ["run", "method", "setting", "seed", "step"]
    with pytest.raises(RunError, match="not valid JSON"):
        open_runs(tmp_path, strict=True)


def test_a_copy_of_a_run_is_not_another_seed(tmp_path, make):
    make.run(tmp_path / "a", finish=False)
    make.run(tmp_path / "b")
    make.run(tmp_path / "c")
    runs = open_runs([tmp_path, tmp_path / "a", tmp_path / "b"])
    assert [run.path.name for run in runs] == ["b"]
    assert [problem.message for problem in runs.problems] == [
        f"{tmp_path / name} holds the same run as {tmp_path / 'b'} and is left out." for name in ("a", "c")
    ]


def test_a_setting_is_labelled_by_what_differs_and_by_nothing_else(tmp_path, make):
    one = variant(make.config, method={"name": "1-sam", "rho": 0.1})
    configs = {
        "sgd": variant(make.config, method={"name": "sgd"}),
        "sgd-1": variant(make.config, method={"name": "sgd"}, seed=1),
        "one-a": one,
        "one-b": variant(one, method__rho=0.05),
    }
    for name, config in configs.items():
        make.run(tmp_path / name, config=config, flushes=1)
    runs = open_runs(tmp_path)
    assert {run.path.name: runs.setting(run) for run in runs} == {
        "one-a": "rho=0.1",
        "one-b": "rho=0.05",
        "sgd": "",
        "sgd-1": "",
    }
    only = runs.filter(setting="rho=0.1")
    assert [only.setting(run) for run in only] == [""]
    make.run(tmp_path / "other-noise", config=variant(configs["sgd"], noise__rate=0.2), flushes=1)
    labels = {run.path.name: open_runs(tmp_path).setting(run) for run in open_runs(tmp_path)}
    assert labels["sgd"] == "rate=0.4"
    assert labels["other-noise"] == "rate=0.2"
    assert labels["one-b"] == "rho=0.05, rate=0.4" or labels["one-b"] == "rate=0.4, rho=0.05"


def test_a_filter_keeps_what_meets_every_condition(tmp_path, make):
    for seed in range(3):
        make.run(tmp_path / f"{seed}", config=variant(make.config, seed=seed), flushes=1, finish=seed != 2)
    runs = open_runs(tmp_path)
    assert [run.seed for run in runs.filter(seed=[0, 2])] == [0, 2]
    assert [run.seed for run in runs.filter(seed=[0, 2], status="finished")] == [0]
    assert [run.seed for run in runs.filter(lambda run: run.seed > 0)] == [1, 2]
    assert len(runs.filter(config={"noise.rate": 0.4})) == 3
    assert len(runs.filter(config={"noise.rate": 0.3})) == 0
    assert runs.filter(method="sam").metrics.columns.tolist() == runs.metrics.columns.tolist()
    with pytest.raises(RunError, match=r"cannot be filtered by 'colour'\. Expected method, setting, seed, status, id\."):
        runs.filter(colour="red")


def test_tables_handed_out_are_copies(tmp_path, make):
    make.run(tmp_path / "a")
    run = open_run(tmp_path / "a")
    table = run.metrics
    table["value"] = 7.0
    run.config["method"]["name"] = "other"
    assert (run.metrics["value"] < 1).all()
    assert run.method == "sgd"


def test_a_run_without_any_part_has_typed_empty_tables(tmp_path, make):
    make.run(tmp_path / "a", flushes=0)
    runs = open_runs(tmp_path)
    assert runs.metrics.empty
    assert runs[0].examples.dtypes.astype(str)["loss"] == "float64"
    assert isinstance(runs.examples, pd.DataFrame)


def test_reading_and_analysing_runs_loads_no_torch(tmp_path, make):
    make.run(tmp_path / "a")
    program = (
        "import sys, noisesam, noisesam.runs, noisesam.analysis\n"
        "runs = noisesam.open_runs(sys.argv[1])\n"
        "noisesam.runs.verify(sys.argv[1] + '/a')\n"
        "noisesam.analysis.summary(runs); noisesam.analysis.findings(runs)\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)


def test_a_manifest_of_a_stranger_with_odd_values_is_still_only_data(tmp_path, make):
    make.run(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["configuration"] |= {"method": "sgd", "tracking": [1]}
    resealed(manifest)
    manifest["parts"] = {"../../etc/passwd": "0"}
    path.write_text(json.dumps(manifest))
    run = open_run(tmp_path / "a")
    assert (run.method, run.seed) == ("sgd", manifest["configuration"]["seed"])
    assert "lists the part '../../etc/passwd', which is missing" in " ".join(p.message for p in verify(tmp_path / "a"))
