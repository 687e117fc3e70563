import gzip
import os
import pickle
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisesam.data import add_label_noise, class_names, load, names
from noisesam.errors import InputError

REAL = pytest.mark.skipif(not os.environ.get("NOISESAM_DATA"), reason="real data not at hand: set NOISESAM_DATA")


@pytest.fixture(autouse=True)
def _no_data_folder_from_outside(request, monkeypatch):
    if "real" not in request.node.name:
        monkeypatch.delenv("NOISESAM_DATA", raising=False)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(values):
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder, split="train", n=6, zipped=True, mark="-", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pixels(n, 28, 28, seed=seed), (np.arange(n) % 10).astype(np.uint8)
    prefix = {"train": "train", "test": "t10k"}[split]
    for part, values in (("images", images), ("labels", labels)):
        path = folder / f"{prefix}-{part}{mark}idx{values.ndim}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(idx_bytes(values)) if zipped else idx_bytes(values))
    return images, labels


def write_cifar(folder, name="cifar10", n=4, protocol=2):
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "cifar10": ([f"data_batch_{k}" for k in range(1, 6)], ["test_batch"], "labels", 10),
        "cifar100": (["train"], ["test"], "fine_labels", 100),
    }[name]
    written = []
    for k, file in enumerate(files[0] + files[1]):
        data, labels = pixels(n, 3072, seed=k), [int(v) for v in np.random.default_rng(k).integers(0, files[3], n)]
        batch = {"batch_label": file, "data": data, files[2]: labels, "filenames": ["a.png"] * n}
        (folder / file).write_bytes(pickle.dumps(batch, protocol=protocol))
        written.append((data, labels))
    return written


def close_to_pixels(inputs, stored):
    # float32 division of a byte by 255 is correctly rounded, so the exact product is within half a unit of 2**-24.
    return np.abs(inputs.double().numpy() * 255.0 - stored).max() < 255 * 2.0**-24


@pytest.mark.parametrize("folder", ["", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_found_in_its_usual_places(tmp_path, folder, zipped):
    images, labels = write_idx(tmp_path / folder, "test", zipped=zipped)
    data = load("fashion-mnist", split="test", root=tmp_path)
    assert tuple(data.inputs.shape) == (6, 1, 28, 28)
    assert data.inputs.dtype == torch.float32
    assert close_to_pixels(data.inputs[:, 0], images)
    assert data.labels.tolist() == labels.tolist()
    assert data.index.tolist() == list(range(6))
    assert data.classes[9] == "Ankle boot"
    assert data.name == "fashion-mnist"
    assert not data.is_noisy.any()


def test_mnist_and_fashion_mnist_are_not_taken_for_each_other(tmp_path):
    fashion, _ = write_idx(tmp_path / "FashionMNIST" / "raw", seed=1)
    digits, _ = write_idx(tmp_path / "MNIST" / "raw", seed=2, mark=".")
    assert close_to_pixels(load("fashion-mnist", root=tmp_path).inputs[:, 0], fashion)
    assert close_to_pixels(load("mnist", root=tmp_path).inputs[:, 0], digits)
    with pytest.raises(InputError, match="was not found"):
        load("mnist", root=tmp_path / "FashionMNIST" / "raw")


@given(
    ndim=st.sampled_from([1, 3]),
    shape=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    cut=st.integers(1, 30),
    extra=st.integers(1, 5),
)
@settings(max_examples=40)
def test_idx_files_come_back_equal_and_any_other_length_is_refused(tmp_path_factory, ndim, shape, cut, extra):
    from noisesam.data.idx import read_idx

    values = pixels(*shape[:ndim])
    content = idx_bytes(values)
    path = tmp_path_factory.mktemp("idx") / "images"
    path.write_bytes(content)
    assert np.array_equal(read_idx(path, ndim), values)
    for damaged in (content[:-cut], content + bytes(extra)):
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            read_idx(path, ndim)


def test_damaged_idx_files_name_the_file_and_the_remedy(tmp_path):
    write_idx(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz"
    whole, whole_labels = images.read_bytes(), labels.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: cannot be read .*Fetch the file again"):
        load("mnist", root=tmp_path)
    images.write_bytes(b"plain text")
    with pytest.raises(InputError, match="cannot be read"):
        load("mnist", root=tmp_path)
    images.write_bytes(whole_labels)
    with pytest.raises(InputError, match=r"the first bytes are 00000801\. Expected an IDX header 00000803"):
        load("mnist", root=tmp_path)
    images.write_bytes(gzip.compress(idx_bytes(pixels(5, 28, 28))))
    with pytest.raises(InputError, match=r"5 images, .* 6 labels\. Expected as many labels as images"):
        load("mnist", root=tmp_path)
    images.write_bytes(whole)
    labels.write_bytes(gzip.compress(idx_bytes(np.full(6, 10, dtype=np.uint8))))
    with pytest.raises(InputError, match=r"labels\[0\] = 10, 6 of 6 out of range"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("folder", ["", "cifar-10-batches-py"])
def test_cifar10_batches_are_read_in_order(tmp_path, folder, protocol):
    written = write_cifar(tmp_path / folder, protocol=protocol)
    train, test = load("cifar10", root=tmp_path), load("cifar10", split="test", root=str(tmp_path))
    assert tuple(train.inputs.shape) == (20, 3, 32, 32)
    for k, (data, labels) in enumerate(written[:5]):
        assert close_to_pixels(train.inputs[4 * k : 4 * k + 4].reshape(4, -1), data)
        assert train.labels[4 * k : 4 * k + 4].tolist() == labels
    assert close_to_pixels(test.inputs.reshape(4, -1), written[5][0])
    assert train.classes == class_names.CIFAR10
    assert train.index.tolist() == list(range(20))


def test_cifar100_uses_the_fine_labels(tmp_path):
    written = write_cifar(tmp_path / "cifar-100-python", "cifar100")
    data = load("cifar100", root=tmp_path)
    assert data.labels.tolist() == written[0][1]
    assert data.num_classes == 100


def test_damaged_cifar_files_name_the_file(tmp_path):
    write_cifar(tmp_path)
    batch = tmp_path / "data_batch_3"
    batch.unlink()
    with pytest.raises(InputError, match=r"data_batch_3 is missing\. Expected all batches"):
        load("cifar10", root=tmp_path)
    for content, words in (
        (pickle.dumps({"data": pixels(4, 100), "labels": [0] * 4}), r"'data' is uint8 of shape \(4, 100\)"),
        (pickle.dumps({"data": pixels(4, 3072), "labels": [0] * 3}), "'labels' is a list of 3"),
        (pickle.dumps({"data": pixels(4, 3072), "fine_labels": [0] * 4}), "'labels' is missing"),
        (pickle.dumps([1]), "'data' is missing"),
        *(
            (pickle.dumps({"data": pixels(4, 3072), "labels": labels}), "Expected a list of 4 class numbers")
            for labels in (["a"] * 4, [0.5] * 4, [None] * 4, [[0], [1, 2], [3], [4]], [10**30] * 4, np.array(1), [[0]] * 4)
        ),
        (pickle.dumps({"data": print}), r"asks for builtins\.print, which was refused"),
        (batch.parent.joinpath("data_batch_1").read_bytes()[:200], "not a readable pickle"),
    ):
        batch.write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            load("cifar10", root=tmp_path)
        assert "data_batch_3" in str(caught.value)


def arrays(n=6, test=True, **more):
    made = {
        "train_images": pixels(n, 4, 5, 3),
        "train_labels": np.arange(n) % 3,
        "train_index": np.arange(n) * 7,
        "classes": np.array(["a", "b", "c"]),
        **more,
    }
    if test:
        made |= {"test_images": pixels(2, 4, 5, 3, seed=1), "test_labels": np.array([2, 0]), "test_index": np.array([5, 3])}
    return made


def test_npz_images_become_channels_first_with_their_ids(tmp_path):
    stored = arrays()
    np.savez(tmp_path / "mine.npz", **stored)
    train, test = load(tmp_path / "mine.npz"), load(str(tmp_path / "mine.npz"), split="test")
    assert tuple(train.inputs.shape) == (6, 3, 4, 5)
    assert close_to_pixels(train.inputs.permute(0, 2, 3, 1), stored["train_images"])
    assert train.index.tolist() == [0, 7, 14, 21, 28, 35]
    assert test.labels.tolist() == [2, 0]
    assert train.classes == ("a", "b", "c")
    assert torch.equal(train.clean_labels, train.labels)
    assert (train.name, train.noise) == ("mine", None)


def test_a_benchmark_may_lie_as_npz_under_the_root(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **arrays(classes=np.array(class_names.CIFAR10)))
    data = load("cifar10", root=tmp_path)
    assert (data.name, len(data), data.classes) == ("cifar10", 6, class_names.CIFAR10)
    assert len(load("cifar10", root=tmp_path / "cifar10.npz", split="test")) == 2
    assert add_label_noise(data, "asymmetric", 0.5, seed=0).noise.kind == "asymmetric"


def test_data_folder_comes_from_the_environment_when_no_root_is_given(tmp_path, monkeypatch):
    np.savez(tmp_path / "cifar10.npz", **arrays())
    monkeypatch.setenv("NOISESAM_DATA", str(tmp_path))
    assert len(load("cifar10")) == 6


@pytest.mark.parametrize("as_folder", [False, True])
def test_own_arrays_keep_what_is_said_about_the_truth(tmp_path, as_folder):
    def saved(name, **stored):
        if not as_folder:
            np.savez(tmp_path / f"{name}.npz", **stored)
            return tmp_path / f"{name}.npz"
        (tmp_path / name).mkdir()
        for key, values in stored.items():
            np.save(tmp_path / name / f"{key}.npy", values)
        return tmp_path / name

    inputs = np.random.default_rng(0).standard_normal((4, 3))
    plain = load(saved("plain", inputs=inputs, labels=np.array([0, 1, 1, 0])))
    assert plain.clean_labels is None
    assert np.array_equal(plain.inputs.numpy(), inputs.astype(np.float32))
    assert plain.index.tolist() == [0, 1, 2, 3]
    noisy = load(saved("noisy", inputs=inputs, labels=np.array([0, 1, 1, 2]), clean_labels=np.array([0, 1, 1, 0])))
    assert noisy.is_noisy.tolist() == [False, False, False, True]
    assert (noisy.noise.kind, noisy.noise.realised_rate, noisy.num_classes) == ("given", 0.25, 3)
    assert noisy.noise.transition_matrix == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    both = {"train_inputs": inputs, "train_labels": np.arange(4), "test_inputs": inputs[:1], "test_labels": np.array([1])}
    assert load(saved("wide", **both), split="test").num_classes == 4
    grey = load(saved("grey", images=pixels(2, 5, 6), labels=np.array([0, 1], dtype=np.uint8)))
    assert tuple(grey.inputs.shape) == (2, 1, 5, 6)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"labels": np.array([0])}, "no train examples, its arrays are labels. Expected train_images"),
        ({"inputs": np.zeros((1, 2))}, "no train examples"),
        (
            {"inputs": np.zeros((1, 2), dtype=np.int64), "labels": np.array([0])},
            "'inputs' of type int64. Expected floating",
        ),
        ({"inputs": np.zeros((1, 2)), "labels": np.array([0.0])}, "'labels' of type float64. Expected integers"),
        ({"images": np.zeros((1, 2, 2)), "labels": np.array([0])}, "'images' of type float64 and shape"),
        ({"inputs": np.full((2, 2), np.nan), "labels": np.array([0, 1])}, "NaN or infinite values in rows 0, 1"),
        ({"inputs": np.array([{}], dtype=object), "labels": np.array([0])}, "array 'inputs' cannot be read"),
        ({"inputs": np.zeros((2, 2)), "labels": np.array([0])}, "labels of shape (1,) for 2 inputs"),
        ({"inputs": np.zeros((1, 2)), "labels": np.array([3]), "classes": np.array(["a"])}, "out of range"),
        ({"inputs": np.zeros((1, 2)), "labels": np.array([3]), "classes": np.array("a")}, "out of range"),
        ({"inputs": np.zeros((1, 2)), "labels": np.array([2**40])}, "a label of 1099511627776. Expected class numbers below"),
        ({"inputs": np.full((1, 2), 1e300), "labels": np.array([0])}, "NaN or infinite values in row 0"),
        ({"inputs": np.float32(1), "labels": np.int64(0)}, "inputs of shape ()"),
    ],
)
def test_unusable_npz_files_are_refused(tmp_path, stored, words):
    np.savez(tmp_path / "mine.npz", **stored)
    with pytest.raises(InputError) as caught:
        load(tmp_path / "mine.npz")
    assert words in str(caught.value)


def test_a_member_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
        archive.writestr("inputs.npy", "text")
        archive.writestr("labels.npy", b"")
    with pytest.raises(InputError, match="array 'labels' cannot be read"):
        load(tmp_path / "mine.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    """Readers differ in which of them they take."""
    path = tmp_path / "mine.npz"
    np.savez(path, inputs=np.zeros((2, 2)), labels=np.array([0, 1]))
    np.save(tmp_path / "other.npy", np.array([1, 0]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(tmp_path / "other.npy", "labels.npy")
    with pytest.raises(InputError, match=r"mine\.npz: 2 arrays are named 'labels'"):
        load(path)


def test_truncated_npz_and_missing_splits_are_refused(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays(test=False))
    with pytest.raises(InputError, match="no test examples, its arrays are classes, train_images"):
        load(path, split="test")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"mine\.npz: not a readable \.npz file"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="not a readable"):
        load(path)
    path.write_bytes(b"plain text")
    with pytest.raises(InputError, match="not a readable"):
        load(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(InputError, match="not a readable"):
        load(path)


def test_csv_columns_are_features_labels_truth_and_ids(tmp_path):
    columns = {"label": [1, 0, 1], "x": [0.5, 1.0, 2.0], "y": [1, 2, 3], "clean_label": [1, 1, 1], "index": [4, 2, 9]}
    table = pd.DataFrame(columns)
    table.to_csv(tmp_path / "mine.csv", index=False)
    data = load(tmp_path / "mine.csv")
    assert data.inputs.tolist() == [[0.5, 1.0], [1.0, 2.0], [2.0, 3.0]]
    assert data.inputs.dtype == torch.float32
    assert data.is_noisy.tolist() == [False, True, False]
    assert data.index.tolist() == [4, 2, 9]
    assert data.noise.kind == "given"


def test_csv_folder_numbers_class_names_over_both_files(tmp_path):
    pd.DataFrame({"x": [1.0, 2.0], "species": ["cat", "ant"]}).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"x": [3.0], "species": ["bee"]}).to_csv(tmp_path / "test.csv", index=False)
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert train.classes == test.classes == ("ant", "bee", "cat")
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 0], [1])
    assert train.clean_labels is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,label\n1,0\nfoo,1\n", "column 'x' holds text"),
        ("x,label\n1,0\n,1\n", "empty cells in row 1"),
        ("x,label\n1,0\n2,\n", "empty labels"),
        ("x,label\n1,0.5\n", "labels with a decimal point"),
        ("x,label\n1,-1\n", "label -1"),
        ("label\n1\n", "columns label. Expected a column `label` and at least one feature"),
        ("", "not a readable table"),
        ("x,label\n1,500000000\n", "a label of 500000000"),
        ("x,label\n1e39,0\n", "NaN or infinite values in row 0"),
        ("x,label,clean_label\n1,cat,0\n2,dog,1\n", "class names in one column of labels, class numbers in another"),
        ("x,label,index\n1,0,0\n1,0,0\n", "index with repeated ids"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, text, words):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        load(tmp_path / "mine.csv")
    assert words in str(caught.value)


def test_missing_data_says_where_was_searched_and_what_to_put_there(tmp_path):
    for name in names()[1:]:
        with pytest.raises(InputError) as caught:
            load(name, root=tmp_path)
        text = str(caught.value)
        assert f"{name} (train) was not found; searched: {tmp_path}" in text
        assert f"{name}.npz" in text
        assert "--data-root, root= or NOISESAM_DATA" in text
        with pytest.raises(InputError, match="no data folder is given and NOISESAM_DATA is not set"):
            load(name)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(InputError, match=r"Unpack cifar-10-python\.tar\.gz there first"):
        load("cifar10", root=tmp_path)


def test_unknown_names_splits_and_paths_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"Unknown data set 'digit'.*Did you mean 'digits'"):
        load("digit")
    with pytest.raises(InputError, match=r"Unknown split 'val'\. Expected one of: train, test"):
        load("digits", split="val")
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "none.npz")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"not read on their own.*Put inputs\.npy and labels\.npy into one folder"):
        load(tmp_path / "x.npy")
    (tmp_path / "a.csv").write_text("x,label\n1,0\n")
    with pytest.raises(InputError, match="no test split"):
        load(tmp_path / "a.csv", split="test")


def real(name):
    """The test split of a data set on disk; a folder that holds other data sets only is no failure."""
    try:
        return load(name, split="test")
    except InputError as error:
        if "was not found" in str(error):
            pytest.skip(f"{name} not under NOISESAM_DATA")
        raise


@REAL
def test_real_fashion_mnist_is_balanced():
    data = real("fashion-mnist")
    assert data.labels.bincount().tolist() == [1000] * 10
    assert tuple(data.inputs.shape) == (10_000, 1, 28, 28)


@REAL
def test_real_cifar10_has_ten_classes_and_distinct_ids():
    data = real("cifar10")
    assert data.num_classes == 10
    assert tuple(data.inputs.shape[1:]) == (3, 32, 32)
    assert float(data.inputs.max()) == 1.0


def test_csv_blanks_behind_commas_are_no_part_of_a_name_or_a_class(tmp_path):
    plain, blanks = tmp_path / "plain.csv", tmp_path / "blanks.csv"
    plain.write_text("a,b,label,clean_label\n1,2,dog,cat\n3,4,cat,cat\n5,6,cat,dog\n")
    blanks.write_text("a, b , label, clean_label \n1, 2, dog ,cat\n3, 4,cat, cat\n5, 6, cat,dog \n")
    first, second = load(plain), load(blanks)
    assert first.classes == second.classes == ("cat", "dog")
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.clean_labels, second.clean_labels)


@pytest.mark.parametrize("header", ["a,label,label", "a,Label,b", "a,Clean Label,label", "a,b,INDEX"])
def test_csv_columns_that_seem_to_be_labels_are_no_features(tmp_path, header):
    (tmp_path / "mine.csv").write_text(header + "\n1,0,1\n2,1,0\n")
    with pytest.raises(InputError, match=r"two columns are called|which would be a feature"):
        load(tmp_path / "mine.csv")


def test_csv_classes_may_be_called_na_or_none(tmp_path):
    (tmp_path / "mine.csv").write_text("a,label\n1,NA\n2,None\n3,nan\n4,SA\n")
    assert load(tmp_path / "mine.csv").classes == ("NA", "None", "SA", "nan")
    (tmp_path / "mine.csv").write_text("a,label\n1,NA\n2,\n3,SA\n")
    with pytest.raises(InputError, match="empty labels"):
        load(tmp_path / "mine.csv")
