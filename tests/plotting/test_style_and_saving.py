"""Laws of the look and of the files: every method apart, equal figures equal bytes, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from noisesam.errors import InputError, RunError
from noisesam.plotting import METHOD_STYLES, method_style, plot_test_accuracy, plot_transition_matrix, save
from noisesam.plotting._layout import spread

METHODS = [
    "sgd",
    "sam",
    "m-sam",
    "1-sam",
    "l-sam",
    "j-sam",
    "reg-sgd",
    "esam",
    "looksam",
    "looklayersam",
    "saf",
    "mesa",
    "ssam-f",
    "ssam-d",
    "f-sam",
    "ausam",
    "asam",
    "gsam",
    "saner",
    "vasso",
    "gnp",
    "random-sam",
]

DRAW_AND_SAVE = """
import sys
import pandas as pd
from noisesam.plotting import plot_test_accuracy, save
rows = [("sgd", "", s, epoch, "test", "all", "accuracy", 0.5 + 0.01 * s * epoch) for s in range(2) for epoch in range(9)]
table = pd.DataFrame(rows, columns=["method", "setting", "seed", "epoch", "split", "group", "metric", "value"])
save(plot_test_accuracy(table).figure, sys.argv[1], table)
assert "torch" not in sys.modules
"""


def test_every_method_has_a_look_and_no_two_share_line_and_colour_or_marker():
    assert list(METHOD_STYLES) == METHODS
    assert len({(look.color, look.linestyle) for look in METHOD_STYLES.values()}) == len(METHODS)
    assert len({look.marker for look in METHOD_STYLES.values()}) == len(METHODS)
    assert len({look.label for look in METHOD_STYLES.values()}) == len(METHODS)


def test_the_methods_of_the_paper_have_hues_of_their_own():
    assert len({METHOD_STYLES[name].color for name in METHODS[:7]}) == 7


def test_variants_keep_the_marker_and_differ_in_colour_or_line():
    for name in (*METHODS, "my own"):
        looks = [method_style(name, variant) for variant in range(4)]
        assert len({(look.color, look.linestyle) for look in looks}) == 4
        assert len({look.marker for look in looks}) == 1


def test_spread_keeps_order_and_gap_and_moves_nothing_that_has_room():
    assert spread(np.array([0.0, 0.5, 1.0]), 0.1) == pytest.approx([0.0, 0.5, 1.0])
    assert spread(np.array([0.5, 0.5, 0.5]), 0.1) == pytest.approx([0.4, 0.5, 0.6])
    values = np.sort(np.random.default_rng(0).uniform(size=30))
    placed = spread(values, 0.05)
    assert np.diff(placed).min() >= 0.05 - 1e-12  # rounding of sums of thirty numbers near 1
    assert placed.mean() == pytest.approx(values.mean())


def test_two_processes_write_the_same_bytes_and_load_no_torch(tmp_path):
    written = []
    for name, hash_seed in (("a", "1"), ("b", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", DRAW_AND_SAVE, str(tmp_path / name)], check=True, env=environment)
        written.append([(tmp_path / f"{name}{suffix}").read_bytes() for suffix in (".png", ".pdf", ".csv")])
    assert written[0] == written[1]


def test_saved_files_hold_no_time_program_or_place(tmp_path, tables):
    whole = tables(seeds=2)
    saved = save(plot_test_accuracy(whole.metrics).figure, tmp_path / "new" / "figure", whole.metrics)
    with Image.open(saved.png) as picture:
        assert picture.info.keys() == {"dpi"}
    for word in (b"CreationDate", b"ModDate", b"Producer", b"Creator", b"atplotlib v", str(tmp_path).encode()):
        assert word not in saved.pdf.read_bytes()
    assert sorted(file.name for file in saved.png.parent.iterdir()) == ["figure.csv", "figure.pdf", "figure.png"]


def test_the_table_beside_the_figure_gives_its_numbers_back_exactly(tmp_path, tables):
    whole = tables(seeds=2)
    saved = save(Figure(), tmp_path / "figure", whole.norms)
    pd.testing.assert_frame_equal(
        pd.read_csv(saved.table, keep_default_na=False), whole.norms, check_exact=True, check_dtype=False
    )


def test_a_dot_in_the_name_is_part_of_the_name(tmp_path):
    assert save(Figure(), tmp_path / "rho=0.1", pd.DataFrame({"a": [1]})).png.name == "rho=0.1.png"


def test_a_path_with_a_suffix_is_refused_with_the_right_one(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.png.*Pass '.*accuracy' instead"):
        save(Figure(), tmp_path / "accuracy.png", pd.DataFrame())


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot be written.*Choose another folder"):
        save(Figure(), tmp_path / "file" / "figure", pd.DataFrame({"a": [1]}))


def test_a_failed_write_leaves_the_old_files_and_nothing_half_written(tmp_path):
    class FullDisk(pd.DataFrame):
        def to_csv(self, path, **options):
            path.write_text("half")
            raise OSError(28, "No space left on device")

    save(Figure(), tmp_path / "figure", pd.DataFrame({"a": [1]}))
    before = (tmp_path / "figure.csv").read_bytes()
    with pytest.raises(RunError, match="No space left on device"):
        save(Figure(), tmp_path / "figure", FullDisk({"a": [2]}))
    assert (tmp_path / "figure.csv").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_notebook_shows_the_figure_without_pyplot():
    figure = plot_transition_matrix(np.eye(2), ["a", "b"]).figure
    assert figure._repr_png_().startswith(b"\x89PNG")
