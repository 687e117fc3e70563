"""A user's own table is read as it stands or refused: no column and no example is lost in silence."""

from __future__ import annotations

import pytest
import torch

from noisesam.data import load
from noisesam.errors import InputError


def written(tmp_path, text: str, **options):
    path = tmp_path / "own.csv"
    path.write_text(text, **{"encoding": "utf-8", **options})
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,label\n1,0.1,1.1,1\n2,0.2,1.2,0\n", r"3 columns in the header, 4 in line 2.*Name every column"),
        ("a,b,label\n0.1,1.1,1\n0.2,1.2,0,9\n", r"3 columns in the header, 4 in line 3"),
        ("a,b,label\n0.1,1.1,1\n0.2,1.2\n", r"3 columns in the header, 2 in line 3"),
        ("0.1,1.1,1\n0.2,1.2,0\n", r"a first line of numbers alone \(0\.1, 1\.1, 1\).*Write the names above"),
        ("a;b;label\n0.1;1.1;1\n", r"columns separated by ';' \('a;b;label'\).*Save the table with commas"),
        ("a,b,label\n", r"a header and no rows.*Add the examples"),
    ],
    ids=["index column without a name", "longer row", "shorter row", "no header", "semicolons", "no rows"],
)
def test_a_table_that_does_not_fit_its_header_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load(str(written(tmp_path, text)))


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_a_table_is_read_as_it_stands(tmp_path, mark):
    found = load(str(written(tmp_path, mark + 'a,"b, c",label\n0.5,1.5,1\n\n2.5,3.5,0\n')))
    assert torch.equal(found.inputs, torch.tensor([[0.5, 1.5], [2.5, 3.5]]))
    assert found.labels.tolist() == [1, 0]


def test_numbered_columns_are_a_header(tmp_path):
    found = load(str(written(tmp_path, "0,1,2\n0.5,1.5,1\n2.5,3.5,0\n")))
    assert len(found) == 2
    assert found.labels.tolist() == [1, 0]
