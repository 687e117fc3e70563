"""A user's own data in a configuration: what the run is called, what it is known by, and data without a test split."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from noisesam.analysis import early_stopping, findings, summary
from noisesam.errors import InputError
from noisesam.training import default_directory, fit, load_config

SMALL = {"model": {"name": "linear"}, "training": {"epochs": 1}, "tracking": {"probe_size": 8}, "data": {"validation_size": 6}}


def configured(place: Path | str, **data):
    return load_config(SMALL | {"data": {"name": str(place), "validation_size": 6, **data}})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    place = tmp_path / "my data"
    place.mkdir()
    for part in ("train", "test"):
        np.save(place / f"{part}_inputs.npy", generator.normal(size=(20, 3)).astype(np.float32))
        np.save(place / f"{part}_labels.npy", generator.integers(0, 2, 20))
    return place


def test_a_folder_is_known_by_its_content_however_its_place_is_written(folder, monkeypatch):
    run = fit(configured(folder))
    assert run.config["data"]["name"] == "my data"
    assert str(folder.parent) not in (run.path / "manifest.json").read_text()
    (folder / "notes.txt").write_text("no data")
    for name in ("my data", "./my data", folder):
        assert fit(configured(name)).path.resolve() == run.path.resolve()
    other = shutil.copytree(folder, folder.parent / "copy" / "my data")
    assert default_directory(configured(other)).name == run.path.name
    np.save(other / "train_inputs.npy", np.zeros((20, 3), dtype=np.float32))
    assert default_directory(configured(other)).name != run.path.name
    monkeypatch.chdir(folder)
    assert default_directory(configured(".")).name == run.path.name


def test_a_folder_with_the_name_of_a_data_set_is_no_data_of_the_user(folder):
    Path("digits").mkdir()
    plain = default_directory(configured("digits"))
    Path("digits").rmdir()
    assert default_directory(configured("digits")) == plain


def test_two_seeds_never_share_a_directory_and_one_setting_shares_all_but_the_seed(folder):
    paths = [default_directory(replace(configured(folder), seed=seed)) for seed in range(12)]
    assert len(set(paths)) == len(paths)
    assert len({path.name.removesuffix(f"seed{seed}") for seed, path in enumerate(paths)}) == 1


def test_own_data_without_a_test_split_trains_and_has_no_test_accuracy(folder):
    for file in folder.glob("test_*"):
        file.unlink()
    with pytest.warns(UserWarning, match="no test examples.*no test accuracy"):
        run = fit(configured(folder, standardise=True))
    assert run.manifest["data"]["test"] == 0
    assert set(run.metrics["split"]) == {"train", "val", "probe"}
    stops = early_stopping(run).set_index("selection")
    assert stops["test_accuracy"].isna().all()
    assert stops["epoch"].isna().tolist() == [True, False, False]
    assert summary(run)["seeds"].tolist() == [1]
    assert findings(run) == ["Compared: sgd with 1 seed. There are no test data, so nothing is said on test accuracy."]


def test_a_test_size_or_half_a_test_split_asks_for_the_test_split(folder):
    (folder / "test_labels.npy").unlink()
    with pytest.raises(InputError, match="no test examples"):
        fit(configured(folder))
    (folder / "test_inputs.npy").unlink()
    with pytest.raises(InputError, match="no test examples"):
        fit(configured(folder, test_size=4))
