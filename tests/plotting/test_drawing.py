"""Laws of drawing saved runs: every figure with data, its numbers beside it, and a reason for every other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from noisesam.errors import InputError
from noisesam.plotting import draw_all
from noisesam.runs import EXAMPLES_COLUMNS, RunCollection, RunWriter, open_run, open_runs
from noisesam.training.config import Config, MethodConfig

NAMES = ["accuracy", "test-accuracy", "gradient-weight", "weights-against-loss", "memorisation", "norms"]
PROBED = ("gradient_norm", "step_gradient_norm", "one_sam_gradient_norm", "l_sam_gradient_norm", "j_sam_gradient_norm")


def write_run(path, method, seed, *, noisy=True, probe=True):
    """Write a saved run of invented numbers through the package's own writer."""
    rng = np.random.default_rng([seed, len(method)])
    writer = RunWriter.create(path, config=Config(method=MethodConfig(name=method), seed=seed), seeds={"root": seed})
    for epoch in range(6):
        at = {"step": 16 * epoch, "epoch": float(epoch)}
        values = [("train", "all", "accuracy"), ("test", "all", "accuracy"), ("val", "all", "accuracy")]
        if noisy:
            values += [("train", "clean", "accuracy"), ("train", "noisy", "accuracy")]
            values += [("train", "noisy", name) for name in ("predicts_true", "predicts_observed", "predicts_other")]
        if probe:
            values += [("probe", group, name) for name in PROBED for group in ("all", *(("clean", "noisy") if noisy else ()))]
            values += [("probe", "all", "hidden_activation_norm"), ("probe", "all", "last_layer_norm")]
        writer.add_metrics([at | {"split": s, "group": g, "metric": m, "value": rng.uniform(0.2, 0.9)} for s, g, m in values])
        if probe:
            examples = {column.name: rng.uniform(0.5, 2.0, 40) for column in EXAMPLES_COLUMNS}
            label = np.arange(40) % 10
            wrong = np.where(np.arange(40) < 16, (label + 1) % 10, label) if noisy else label
            whole = {"example": np.arange(40), "label": wrong, "clean_label": label, "predicted": label}
            times = {"step": np.full(40, 16 * epoch), "epoch": np.full(40, float(epoch))}
            writer.add_examples(examples | whole | times)
    writer.flush(80)
    writer.finish()


def test_every_figure_of_complete_runs_is_drawn_with_its_numbers(tmp_path):
    for method in ("sgd", "1-sam"):
        for seed in range(2):
            write_run(tmp_path / "runs" / f"{method}-{seed}", method, seed)
    runs = open_runs(tmp_path / "runs")
    drawn = draw_all(runs, tmp_path / "figures")
    assert drawn.skipped == {}
    assert [name for name, _, _ in drawn] == NAMES
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}{suffix}" for name in NAMES for suffix in (".png", ".pdf", ".csv")
    }
    tables = {name: pd.read_csv(csv, keep_default_na=False) for name, _, csv in drawn}
    assert set(tables["gradient-weight"]["panel"]) == {"own path", "equal weights"}
    accuracy = tables["accuracy"]
    assert len(accuracy) == 2 * 2 * 6
    best = accuracy.loc[accuracy.groupby("run")["test_all"].idxmax()]
    assert all("oracle" in names.split() for names in best["selected_by"])
    assert all("last" in names.split() for names in accuracy.loc[accuracy["epoch"] == 5, "selected_by"])


@pytest.mark.parametrize(
    ("options", "skipped"),
    [
        ({"noisy": False}, {"gradient-weight": "label noise", "memorisation": "label noise"}),
        ({"probe": False}, dict.fromkeys(("gradient-weight", "weights-against-loss", "norms"), "probe")),
    ],
)
def test_what_the_runs_did_not_measure_is_skipped_with_the_reason(tmp_path, options, skipped):
    write_run(tmp_path / "run", "sgd", 0, **options)
    drawn = draw_all(open_run(tmp_path / "run"), tmp_path / "figures")
    assert [figure.name for figure in drawn] == [name for name in NAMES if name not in skipped]
    assert drawn.skipped.keys() == skipped.keys()
    assert all(word in drawn.skipped[name] for name, word in skipped.items())


def test_without_a_run_of_sgd_the_gradient_weight_is_drawn_on_the_own_paths(tmp_path):
    write_run(tmp_path / "run", "1-sam", 0)
    drawn = draw_all(open_run(tmp_path / "run"), tmp_path / "figures")
    table = pd.read_csv(next(csv for name, _, csv in drawn if name == "gradient-weight"))
    assert set(table["panel"]) == {"own path"}


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match="No run"):
        draw_all(RunCollection([]), tmp_path / "figures")
