import os

import numpy as np
import pytest
import torch

from noisesam.data import NoisyDataset, add_label_noise, class_names
from noisesam.data.human import _find, _read
from noisesam.errors import InputError

REAL = pytest.mark.skipif(not os.environ.get("NOISESAM_DATA"), reason="real data not at hand: set NOISESAM_DATA")

N = 200
AUTHORS = {
    "clean": "clean_label",
    "aggregate": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
    "worst": "worse_label",
}


@pytest.fixture(autouse=True)
def _no_data_folder_from_outside(request, monkeypatch):
    if "real" not in request.node.name:
        monkeypatch.delenv("NOISESAM_DATA", raising=False)


def label_sets(classes=10):
    rng = np.random.default_rng(0)
    keys = AUTHORS if classes == 10 else {"clean": "clean_label", "noisy": "noisy_label"}
    return {key: rng.integers(0, classes, N) for key in keys}


def training_images(labels, classes=10):
    labels = torch.from_numpy(labels)
    names = class_names.CIFAR10 if classes == 10 else class_names.CIFAR100
    return NoisyDataset(torch.zeros(N, 2), labels, clean_labels=labels, classes=names, name=f"cifar{classes}")


def write(folder, form, sets, classes=10):
    authors = AUTHORS if classes == 10 else {"clean": "clean_label", "noisy": "noisy_label"}
    table = {authors[key]: values for key, values in sets.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if form == "npz":
        np.savez(folder / f"cifar{classes}n_labels.npz", **{key: values.astype(np.int8) for key, values in sets.items()})
    elif form == "npy":
        np.save(folder / f"CIFAR-{classes}_human.npy", np.array(table, dtype=object), allow_pickle=True)
    else:
        torch.save(table, folder / f"CIFAR-{classes}_human.pt", _use_new_zipfile_serialization=form == "pt")


@pytest.mark.parametrize("form", ["npz", "npy", "pt", "old pt"])
@pytest.mark.parametrize("source", ["aggregate", "random1", "random2", "random3", "worst"])
def test_every_label_set_is_read_from_every_form(tmp_path, form, source):
    sets = label_sets()
    write(tmp_path, form, sets)
    data = add_label_noise(training_images(sets["clean"]), "human", seed=0, source=source, root=tmp_path)
    assert data.labels.tolist() == sets[source].tolist()
    rate = float(np.mean(sets[source] != sets["clean"]))
    assert data.noise.realised_rate == rate
    assert (data.noise.kind, data.noise.requested_rate, data.noise.source, data.noise.seed) == ("human", None, source, None)
    row = np.array([np.sum((sets["clean"] == 3) & (sets[source] == j)) for j in range(10)])
    np.testing.assert_allclose(data.noise.transition_matrix[3], row / row.sum(), rtol=1e-15)  # one division


@pytest.mark.parametrize("form", ["npz", "pt", "npy"])
def test_cifar100n_has_one_label_set_and_needs_no_name(tmp_path, form):
    sets = label_sets(100)
    write(tmp_path / "cifar100n", form, sets, 100)
    data = add_label_noise(training_images(sets["clean"], 100), "human", seed=0, root=tmp_path)
    assert data.labels.tolist() == sets["noisy"].tolist()
    with pytest.raises(InputError, match=r"Unknown human label set for 100 classes 'worst'\. Expected one of: noisy"):
        add_label_noise(training_images(sets["clean"], 100), "human", seed=0, source="worst", root=tmp_path)


def test_a_subset_gets_the_labels_of_its_own_ids(tmp_path):
    sets = label_sets()
    write(tmp_path / "cifar10n", "npz", sets)
    positions = np.random.default_rng(1).permutation(N)[:50]
    part = training_images(sets["clean"]).subset(positions)
    data = add_label_noise(part, "human", seed=0, source="worst", root=tmp_path)
    assert data.labels.tolist() == sets["worst"][positions].tolist()
    direct = add_label_noise(part, "human", seed=0, root=tmp_path / "cifar10n" / "cifar10n_labels.npz")
    assert torch.equal(direct.labels, data.labels)


def test_labels_in_another_order_are_refused(tmp_path):
    sets = label_sets()
    write(tmp_path, "npz", sets)
    data = training_images(np.roll(sets["clean"], 1))
    wrong = int(np.sum(np.roll(sets["clean"], 1) != sets["clean"]))
    with pytest.raises(InputError, match=f"differ from the data set's at {wrong} of {N} examples") as caught:
        add_label_noise(data, "human", seed=0, source="worst", root=tmp_path)
    assert "Expected the training images in the order of the Python version of CIFAR" in str(caught.value)


def test_one_differing_true_label_is_enough_to_refuse(tmp_path):
    sets = label_sets()
    write(tmp_path, "npz", sets)
    clean = sets["clean"].copy()
    clean[17] = (clean[17] + 1) % 10
    with pytest.raises(InputError, match="at 1 of 200 examples, first at id 17"):
        add_label_noise(training_images(clean), "human", seed=0, source="worst", root=tmp_path)


def test_ids_beyond_the_file_are_refused(tmp_path):
    sets = label_sets()
    write(tmp_path, "npz", {key: values[:100] for key, values in sets.items()})
    with pytest.raises(InputError, match="has 100 labels, the data set ids up to 199"):
        add_label_noise(training_images(sets["clean"]), "human", seed=0, source="worst", root=tmp_path)


def test_unusable_label_files_are_refused(tmp_path):
    sets = label_sets()
    data = training_images(sets["clean"])

    def error(**changed):
        np.savez(tmp_path / "cifar10n_labels.npz", **changed)
        with pytest.raises(InputError) as caught:
            add_label_noise(data, "human", seed=0, source="worst", root=tmp_path)
        return str(caught.value)

    assert "was not found; searched" not in error(**{**sets, "worst": sets["worst"].astype(float)})
    assert "'worst' is float64 of shape (200,)" in error(**{**sets, "worst": sets["worst"].astype(float)})
    assert "class numbers 0 to 9" in error(**{**sets, "worst": sets["worst"] + 5})
    assert "no label set 'worst', it has clean" in error(clean=sets["clean"])
    assert "label sets of 200 and 3 entries" in error(clean=sets["clean"], worst=np.zeros(3, dtype=int))
    (tmp_path / "cifar10n_labels.npz").write_bytes(b"text")
    with pytest.raises(InputError, match="not a readable"):
        add_label_noise(data, "human", seed=0, source="worst", root=tmp_path)
    torch.save([1, 2], tmp_path / "labels.pt")
    with pytest.raises(InputError, match=r"a list\. Expected a dictionary of label arrays"):
        add_label_noise(data, "human", seed=0, source="worst", root=tmp_path / "labels.pt")


def test_missing_label_file_says_what_to_put_where(tmp_path):
    data = training_images(label_sets()["clean"])
    with pytest.raises(InputError, match=r"human labels for 10 classes was not found.*one of cifar10n_labels\.npz"):
        add_label_noise(data, "human", seed=0, source="worst", root=tmp_path)
    with pytest.raises(InputError, match="NOISESAM_DATA is not set"):
        add_label_noise(data, "human", seed=0, source="worst")
    with pytest.raises(InputError, match=r"Unknown human label set for 10 classes 'worse'.*Did you mean 'worst'"):
        add_label_noise(data, "human", seed=0, source="worse", root=tmp_path)


@REAL
def test_real_cifar10n_has_the_published_noise_rates():
    try:
        sets = _read(_find(10, None))
    except InputError as error:
        if "was not found" in str(error):
            pytest.skip("CIFAR-10N not under NOISESAM_DATA")
        raise
    published = {"aggregate": 9.01, "random1": 17.23, "random2": 18.12, "random3": 17.64, "worst": 40.21}
    clean = np.asarray(sets["clean"] if "clean" in sets else sets["clean_label"])
    for source, percent in published.items():
        labels = np.asarray(sets[source] if source in sets else sets[AUTHORS[source]])
        assert round(100 * float(np.mean(labels != clean)), 2) == percent  # Wei et al. 2022 print two decimals


def test_label_files_of_objects_or_of_an_impossible_size_are_one_error(tmp_path):
    np.savez(tmp_path / "cifar10n_labels.npz", clean=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="not readable label sets"):
        _read(tmp_path / "cifar10n_labels.npz")
    with (tmp_path / "CIFAR-10_human.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with pytest.raises(InputError, match=r"not a readable \.npy file"):
        _read(tmp_path / "CIFAR-10_human.npy")
