"""What is said of a published architecture is what it runs on, and how far it is from a loop; without the libraries."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from noisesam.bench import architecture_members
from noisesam.bench.architecture_members import Member
from noisesam.bench.architectures import look_at, run_architectures
from noisesam.bench.architectures_report import summary, write_architectures
from noisesam.cli import app
from noisesam.errors import MissingExtraError

WIDTH = 4


class Mixes(nn.Linear):
    def forward(self, input):
        return super().forward(input - input.mean(0))


class NamesItsLogits(nn.Linear):
    def forward(self, input):
        return {"logits": super().forward(input)}


class Recurrent(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.cell, self.head = nn.LSTM(width, 3, batch_first=True), nn.Linear(3, classes)

    def forward(self, input):
        return self.head(self.cell(input.unsqueeze(1))[0][:, -1])


def normalised(width: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, classes))


def member(kind, dtype=torch.float64) -> Member:
    name = getattr(kind, "__name__", "model")
    return Member("own", name, name, lambda: (kind(WIDTH, 3), (torch.randn(3, WIDTH), torch.arange(3))), dtype)


@pytest.mark.parametrize("kind", [normalised, NamesItsLogits])
def test_a_model_as_it_is_runs_fast_and_as_the_loop(kind):
    row = look_at(member(kind))
    assert (row["engine"], row["reason"]) == ("fast", "")
    assert row["error"] < 1e-13
    assert 0 < row["rounding"] < 1e-13


def test_a_fallback_is_named_and_exact():
    row = look_at(member(Recurrent))
    assert row["engine"] == "reference"
    assert "lstm" in row["reason"]
    assert row["error"] < 1e-13


def test_a_model_that_mixes_is_refused_with_the_reason():
    row = look_at(member(Mixes))
    assert (row["engine"], row["error"]) == ("refused", None)
    assert "mixes the examples" in row["reason"]


def test_a_model_that_cannot_be_made_is_counted_as_such():
    def broken(width, classes):
        raise OSError("weights are to be fetched")

    row = look_at(member(broken))
    assert row["engine"] is None
    assert "weights are to be fetched" in row["reason"]


def test_the_page_counts_what_the_document_holds(tmp_path):
    kinds = [normalised, NamesItsLogits, Recurrent, Mixes]
    document = run_architectures([member(kind) for kind in kinds])
    (line,) = summary(document)
    assert "4 architectures, 2 on fast, 1 on reference, 1 refused" in line
    target, page = write_architectures(document, tmp_path)
    assert json.loads(target.read_text(encoding="utf-8")) == document
    text = page.read_text(encoding="utf-8")
    assert line in text
    assert all(kind.__name__ in text for kind in kinds)


def test_a_library_that_is_missing_is_named_with_the_extra():
    with pytest.raises(MissingExtraError, match=r"no_such_library.*noisesam\[architectures\]"):
        architecture_members._required("no_such_library")


def test_architectures_beside_other_kinds_of_bench_are_refused():
    result = CliRunner().invoke(app, ["bench", "--architectures", "--family", "--rounds", "2"])
    assert result.exit_code == 2
    assert "--family, --rounds" in " ".join(result.output.split())
