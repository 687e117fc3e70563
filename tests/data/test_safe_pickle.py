import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from noisesam.data.pickled_files import load_object_array, load_torch_file
from noisesam.data.safe_pickle import load_pickle
from noisesam.errors import InputError


class Attack:
    """A pickle of this calls os.system when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def restored(value, protocol):
    return load_pickle(io.BytesIO(pickle.dumps(value, protocol=protocol)), "file")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_builtin_values_come_back_equal_in_every_protocol(protocol):
    arrays = [
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(5, dtype=">i4"),
        np.array(7),
        np.zeros((0, 3), dtype=np.float32),
        np.array([True, False]),
        np.array(["cat", "dog"]),
        np.array([b"cat"]),
    ]
    for array in arrays:
        back = restored(array, protocol)
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert np.array_equal(back, array)
    value = {"a": [1, 2.5, None, True, (3, "x")], "s": {1, 2}, "c": 1 + 2j, "n": -(10**30), "u": "\u00e9"}
    assert restored(value, protocol) == value
    scalar = restored(np.int64(5), protocol)
    assert scalar == 5
    assert restored([np.float32(0.5)], protocol) == [0.5]
    objects = restored(np.array([{"a": np.arange(2)}, [1]], dtype=object), protocol)
    assert np.array_equal(objects[0]["a"], [0, 1])
    assert objects[1] == [1]


def test_python_2_pickles_of_arrays_are_read():
    # What Python 2 wrote for {'data': array([[1, 2]], uint8), 'labels': [6]} with protocol 2: text where bytes are meant.
    content = (
        b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x02\x01\xfetbU\x06labels]K\x06au."
    )
    value = load_pickle(io.BytesIO(content), "batch")
    assert value["labels"] == [6]
    assert value["data"].tolist() == [[1, 254]]
    assert value["data"].dtype == np.uint8


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    witness = tmp_path / "executed"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(InputError) as caught:
            restored({"labels": [1], "data": Attack(f"touch {witness}")}, protocol)
        assert f"{os.system.__module__}.system, which was refused" in str(caught.value)
        assert "Expected numpy arrays and built-in values only" in str(caught.value)
        assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"c__builtin__\nexec\n.", "__builtin__.exec"),
        (b"(S'1'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", "numpy.ndarray.dumps"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"c_codecs\ndecode\n.", "_codecs.decode"),
        (b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.", "the codec 'zlib'"),
        (b"cnumpy\ndtype\n(S'V8'\ntR.", "the array type 'V8'"),
        (b"cnumpy\ndtype\n(S'M8[ns]'\ntR.", "the array type 'M8[ns]'"),
        (b"cnumpy\ndtype\n(S'O8'\ntR(I3\nS'|'\nN(S'a'\nt}I8\nI8\nI0\ntb.", "a structured array type"),
        (b"P123\n.", "a stored tensor"),
        (b"\x82\x01.", ""),
    ],
)
def test_every_name_outside_the_list_is_refused(content, named):
    with pytest.raises(InputError) as caught:
        load_pickle(io.BytesIO(content), "file")
    assert named in str(caught.value)


def test_ordered_dictionaries_and_other_classes_are_refused_by_name():
    with pytest.raises(InputError, match=r"collections\.OrderedDict"):
        restored(collections.OrderedDict(a=1), 4)
    with pytest.raises(InputError, match=r"pathlib"):
        restored(type(__import__("pathlib").Path())("x"), 4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps(np.arange(100), protocol=2)[:60],
        # Attributes of the allowed functions cannot be set, arrays cannot be made by size, and cycles end.
        b"\x80\x02c_codecs\nencode\nN}X\x08\x00\x00\x00functionK\x01s\x86b.",
        b"cnumpy\nndarray\n((I1000000000000\nttR.",
        b"\x80\x02]q\x00h\x00a.",
    ],
)
def test_damaged_pickles_give_one_clear_error(content):
    with pytest.raises(InputError, match="not a readable pickle"):
        load_pickle(io.BytesIO(content), "file")


def test_raw_bytes_cannot_stand_for_objects():
    # An array of objects whose "objects" are raw bytes would be a pointer of the file's choosing.
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8"
        b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89U\x08AAAAAAAAtb."
    )
    with pytest.raises(InputError, match="an array of objects of the wrong size"):
        load_pickle(io.BytesIO(content), "file")


def test_shared_parts_are_expanded_once():
    nested = [0]
    for _ in range(60):  # 2**60 leaves if every reference were followed anew
        nested = [nested, nested]
    back = restored(nested, 4)
    assert back[0] is back[1]


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_arrays_are_read_in_both_formats(tmp_path, zipped):
    path = tmp_path / "labels.pt"
    torch.save({"clean_label": np.arange(5), "n": 2}, path, _use_new_zipfile_serialization=zipped)
    table = load_torch_file(path)
    assert table["clean_label"].tolist() == [0, 1, 2, 3, 4]
    assert table["n"] == 2


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_with_code_or_tensors_are_refused(tmp_path, zipped):
    path, witness = tmp_path / "labels.pt", tmp_path / "executed"
    torch.save({"clean_label": Attack(f"touch {witness}")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="which was refused"):
        load_torch_file(path)
    assert not witness.exists()
    torch.save({"clean_label": torch.arange(3)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="asks for "):
        load_torch_file(path)


def test_archives_without_one_pickle_or_with_a_huge_one_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "labels.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/other", b"")
    with pytest.raises(InputError, match=r"an archive with 0 members named data\.pkl"):
        load_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps([1]))
        archive.writestr("b/data.pkl", pickle.dumps([1]))
    with pytest.raises(InputError, match="with 2 members"):
        load_torch_file(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(300_000))
    monkeypatch.setattr("noisesam.data.pickled_files.MAX_BYTES", 200_000)
    with pytest.raises(InputError, match=r"a pickle of 300000 bytes\. Expected at most 200000"):
        load_torch_file(path)


def test_damaged_archives_give_one_clear_error(tmp_path):
    path = tmp_path / "labels.pt"
    torch.save({"clean_label": np.arange(500)}, path)
    content = bytearray(path.read_bytes())
    where = content.index(b"clean_label")
    content[where] ^= 0xFF  # the stored checksum no longer fits
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable archive"):
        load_torch_file(path)


def test_object_arrays_in_npy_files_are_read_and_attacks_refused(tmp_path):
    path, witness = tmp_path / "labels.npy", tmp_path / "executed"
    np.save(path, np.array({"clean_label": np.arange(3)}, dtype=object), allow_pickle=True)
    assert load_object_array(path)["clean_label"].tolist() == [0, 1, 2]
    np.save(path, np.arange(3))
    assert load_object_array(path).tolist() == [0, 1, 2]
    np.save(path, np.array({"clean_label": Attack(f"touch {witness}")}, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="which was refused"):
        load_object_array(path)
    assert not witness.exists()
    path.write_bytes(struct.pack("<I", 1))
    with pytest.raises(InputError, match=r"not a readable \.npy file"):
        load_object_array(path)
