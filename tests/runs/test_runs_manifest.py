"""A manifest tells what was run, and nothing about who ran it or where."""

from __future__ import annotations

import getpass
import json
import os
import platform
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisesam.errors import RunError
from noisesam.runs import RunWriter, build_manifest, configuration_hash, open_run, setting_hash, validate_manifest
from noisesam.runs.manifest import flatten, git_state, without_places

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(min_size=1, max_size=6), JSON, max_size=5))
def test_the_hash_of_a_configuration_survives_json_and_the_order_of_its_keys(configuration):
    shuffled = dict(reversed(list(configuration.items())))
    assert configuration_hash(configuration) == configuration_hash(shuffled)
    assert configuration_hash(configuration) == configuration_hash(json.loads(json.dumps(configuration)))


def test_runs_of_one_setting_share_its_hash_and_differ_in_their_own():
    first, second = ({"method": {"name": "sgd"}, "seed": seed} for seed in (0, 1))
    assert setting_hash(first) == setting_hash(second)
    assert configuration_hash(first) != configuration_hash(second)
    assert build_manifest(first, seeds={})["id"] != build_manifest(second, seeds={})["id"]


def test_no_host_user_or_place_is_in_a_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "wintermute-host")
    monkeypatch.setattr(socket, "gethostname", lambda: "wintermute-host")
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "molly-user")
    monkeypatch.setenv("HOME", "/home/molly-user")
    np.savez(tmp_path / "mine.npz", inputs=np.zeros(3))
    config = {"data": {"name": str(tmp_path / "mine.npz")}, "method": {"name": "sgd"}, "seed": 1}
    writer = RunWriter.create(
        tmp_path / "run", config=config, seeds={"init": 3}, noise={"kind": "none"}, gpu="NVIDIA A", gpu_count=1
    )
    writer.fail(
        f"OSError: {tmp_path}/mine.npz vanished (see ~/notes and file:///home/molly-user/x, C:\\Users\\molly-user\\y.txt)"
    )
    text = (tmp_path / "run" / "manifest.json").read_text()
    assert getpass.getuser() == "molly-user"
    for private in ("wintermute", "molly", str(tmp_path), str(Path.cwd())):
        assert private not in text
    for _, value in flatten(json.loads(text)):
        assert not (isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")))
    assert json.loads(text)["message"] == "OSError: mine.npz vanished (see notes and x, y.txt)"


def test_a_data_file_is_known_by_its_content_and_not_by_its_place(tmp_path):
    for folder, values in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.npz").write_bytes(b"x" * values)
    a, b, c = (
        build_manifest({"data": {"name": str(tmp_path / folder / "mine.npz")}, "seed": 0}, seeds={})
        for folder in ("a", "b", "c")
    )
    assert a["configuration"]["data"]["name"] == a["data_file"]["name"] == "mine.npz"
    assert a["configuration_hash"] == b["configuration_hash"] != c["configuration_hash"]
    assert a["setting_hash"] == b["setting_hash"] != c["setting_hash"]


def test_a_missing_data_file_and_other_absolute_paths_are_refused():
    with pytest.raises(RunError, match=r"gone\.npz cannot be read: No such file or directory\. Check that the file is there\."):
        build_manifest({"data": {"name": "gone.npz"}}, seeds={})
    with pytest.raises(RunError, match=r"absolute path at model\.options\.weights\. .* Use a path relative to"):
        build_manifest({"model": {"options": {"weights": "/home/me/w.pt"}}}, seeds={})
    with pytest.raises(RunError, match=r"would hold an absolute path at noise\.source"):
        build_manifest({}, seeds={}, noise={"source": "/data/cifar"})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, np.zeros(2)])
def test_a_configuration_that_json_has_no_word_for_is_refused(value):
    with pytest.raises(RunError, match=r"cannot be written as JSON .* Expected strings, finite numbers"):
        build_manifest({"method": {"rho": value}}, seeds={})


def test_a_manifest_states_versions_hardware_times_and_seeds(tmp_path):
    manifest = build_manifest({"method": {"name": "j-sam"}, "seed": 4}, seeds={"init": 9}, data={"train": 10, "classes": 3})
    validate_manifest(manifest, Path("manifest.json"))
    assert manifest["id"].startswith("j-sam-seed4-")
    assert manifest["seeds"] == {"init": 9}
    assert manifest["data"] == {"train": 10, "classes": 3}
    assert {"python", "noisesam", "torch", "numpy", "pyarrow"} <= set(manifest["versions"])
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["hardware"]["cpu_count"] == os.cpu_count()
    assert manifest["times"]["created"].endswith("+00:00")
    assert manifest["times"]["finished"] is None


def test_the_git_state_is_the_commit_and_whether_it_was_changed(tmp_path):
    assert git_state(tmp_path) is None
    identity = ["-c", "user.name=n", "-c", "user.email=e@e"]

    def git(*arguments):
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    clean = git_state(tmp_path)
    assert clean is not None
    assert (len(clean["commit"]), clean["dirty"]) == (40, False)
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == clean | {"dirty": True}


def test_a_machine_without_git_has_no_git_state(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state() is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("loss is NaN at step 3 (lr 1/2, rows 3/4)", "loss is NaN at step 3 (lr 1/2, rows 3/4)"),
        ("'/a/b/c.npz' is gone", "'c.npz' is gone"),
        ("see ./runs/a/manifest.json", "see ./runs/a/manifest.json"),
        (r"\\server\share\x.bin", "x.bin"),
    ],
)
def test_a_message_keeps_everything_but_places(text, told):
    assert without_places(text) == told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, r"schema version 2\. Expected at most 1\. Upgrade noisesam to read this run\."),
        ({"schema_version": "1"}, r"schema version '1'\. Expected a positive whole number"),
        ({"status": "done"}, r"status 'done'\. Expected one of: running, finished, failed\."),
        ({"seeds": []}, r"has list at 'seeds'\. Expected dict\."),
        ({"configuration": None}, r"has no key 'configuration'|has NoneType at 'configuration'"),
    ],
)
def test_a_manifest_of_another_shape_is_named_with_its_file(tmp_path, make, change, message):
    make.run(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=message) as caught:
        open_run(tmp_path / "a")
    assert str(path) in str(caught.value)
