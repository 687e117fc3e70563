"""What is chosen and what is flagged follows from the noisy validation labels alone; a stale choice is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisesam.errors import ConfigurationError, InputError, RunError
from noisesam.experiments import (
    Calibration,
    CalibrationPlan,
    Choice,
    Point,
    Sweep,
    Try,
    at_chance,
    chosen_by_validation,
    read_calibration,
    write_calibration,
)
from noisesam.runs import RunWriter, open_run

CLASSES = 10
GRID = ({"rho": 0.1}, {"rho": 0.2}, {"rho": 0.4})


def write_run(folder: Path, validation: list[float], *, test: float = 0.1, count: int = 100, status: str = "finished") -> Path:
    """A run of stated accuracies, through the writer that training uses."""
    config = {"method": {"name": "sgd"}, "seed": 0, "run": folder.name}
    writer = RunWriter.create(folder, config=config, seeds={}, data={"classes": CLASSES, "train": 500, "validation": count})
    rows = []
    for epoch, accuracy in enumerate(validation):
        front = {"step": epoch, "epoch": float(epoch), "group": "all"}
        rows += [
            front | {"split": "val", "metric": "accuracy", "value": accuracy},
            front | {"split": "val", "metric": "count", "value": float(count)},
            front | {"split": "test", "metric": "accuracy", "value": test},
            front | {"split": "train", "metric": "accuracy", "value": 1.0 - accuracy},
        ]
    writer.add_metrics(rows)
    writer.flush(len(validation))
    writer.finish() if status == "finished" else writer.fail("diverged")
    return folder


# Chance among ten classes is 0.1; with 100 validation examples two standard errors are 0.06. The first value is that at step 0.
@pytest.mark.parametrize(
    ("validation", "flagged"),
    [
        ([0.1, 0.1, 0.1], True),
        ([0.0, 0.15, 0.159, 0.159], True),  # never above 0.16
        ([0.1, 0.3, 0.1, 0.1], True),  # lucky once
        ([0.1, 0.3, 0.1, 0.3], True),  # lucky twice, but not in succession
        ([0.3, 0.3, 0.1, 0.1], True),  # one of the two is that of the untrained network
        ([0.1, 0.17, 0.17, 0.1], False),  # later collapse is another thing
        ([0.1, 0.1, 0.17, 0.17], False),
        ([0.1, 0.17, math.nan, 0.17], False),  # what was not measured comes between nothing
        ([0.1, 0.17], False),  # training was evaluated only once
        ([0.17, 0.1], True),
        ([0.161], False),
        ([0.159], True),
        ([math.nan, 0.12], True),
    ],
)
def test_a_run_is_at_chance_unless_two_successive_evaluations_exceed_it_by_two_standard_errors(tmp_path, validation, flagged):
    assert at_chance(open_run(write_run(tmp_path / "run", validation, test=0.9))) is flagged


def test_of_runs_that_know_nothing_nearly_all_are_at_chance_however_often_they_are_evaluated(tmp_path):
    rng = np.random.default_rng(0)
    flags = []
    for number in range(40):
        lucky = rng.binomial(100, 0.1, size=60) / 100  # 60 evaluations of guessing on 100 examples
        flags.append(at_chance(open_run(write_run(tmp_path / str(number), [float(value) for value in lucky]))))
    # P(Binomial(100, 0.1) > 16) = 0.0206; of 59 pairs of successive evaluations 0.025 are expected to lie above: a run in 40.
    assert sum(flags) >= 36


def test_what_is_chance_depends_on_the_number_of_validation_examples(tmp_path):
    few, many = (write_run(tmp_path / str(count), [0.14, 0.14, 0.14], count=count) for count in (100, 1000))
    assert at_chance(open_run(few))
    assert not at_chance(open_run(many))


def test_a_run_without_validation_examples_cannot_be_judged(tmp_path):
    with pytest.raises(InputError, match=r"no validation accuracy.*Set data.validation_size"):
        at_chance(open_run(write_run(tmp_path / "run", [])))


def test_the_best_epoch_of_the_noisy_validation_split_decides_and_no_test_label(tmp_path):
    runs = {
        ("sam", 0): [write_run(tmp_path / "a", [0.2, 0.5, 0.3], test=0.9)],
        ("sam", 1): [write_run(tmp_path / "b", [0.2, 0.4, 0.6], test=0.1)],
        ("sam", 2): [write_run(tmp_path / "c", [0.6, 0.4, 0.4], test=1.0)],  # equal to the one before: the first is taken
    }
    table = chosen_by_validation(runs, {"sam": [{"rho": 0.1}, {"rho": 0.2}, {"rho": 0.3}], "sgd": [{}]})
    sam, sgd = table[table["method"] == "sam"], table[table["method"] == "sgd"]
    assert sam["validation_accuracy"].tolist() == [0.5, 0.6, 0.6]
    assert sam["best_epoch"].tolist() == [1.0, 2.0, 0.0]
    assert sam["chosen"].tolist() == [1, 1, 1]
    assert sam["tried"].tolist() == ['{"rho": 0.1}', '{"rho": 0.2}', '{"rho": 0.3}']
    assert sgd["chosen"].tolist() == [0]
    assert sgd["validation_accuracy"].isna().all()


def test_seeds_are_averaged_and_a_try_that_failed_once_is_not_taken(tmp_path):
    runs = {
        ("sam", 0): [write_run(tmp_path / "a0", [0.5]), write_run(tmp_path / "a1", [0.25])],
        ("sam", 1): [write_run(tmp_path / "b0", [0.9]), write_run(tmp_path / "b1", [0.9], status="failed")],
        ("sam", 2): [write_run(tmp_path / "c0", [0.9]), tmp_path / "never made"],
        ("sam", 3): [write_run(tmp_path / "d0", [0.1]), write_run(tmp_path / "d1", [0.15])],
    }
    table = chosen_by_validation(runs, {"sam": [{"rho": rho} for rho in (0.1, 0.2, 0.3, 0.4)]})
    assert table["validation_accuracy"].fillna(-1.0).tolist() == [0.375, -1.0, -1.0, 0.125]
    assert table["chosen"].tolist() == [0] * 4
    assert table["at_chance"].tolist() == [False, False, False, True]


def test_nothing_is_chosen_where_no_try_finished(tmp_path):
    runs = {("sam", number): [write_run(tmp_path / str(number), [0.9], status="failed")] for number in (0, 1)}
    with pytest.raises(RunError, match="No try of sam has finished"):
        chosen_by_validation(runs, {"sam": [{"rho": 0.1}, {"rho": 0.2}]})


def sweep(**changes) -> Sweep:
    stated = {
        "run": {"data": {"validation_size": 100}, "training": {"epochs": 3}},
        "plan": CalibrationPlan((100,), {"sam": GRID, "sgd": ({},)}),
    } | changes
    points = (Point("sgd", {"method.name": "sgd"}), Point("sam", {"method.name": "sam"}))
    return Sweep("tiny", "Tiny", "?", "!", stated["run"], points, (0,), stated["plan"])


def test_a_sweep_chooses_from_the_runs_that_its_calibration_names(tmp_path):
    own = sweep()
    for (_, number), (job,) in own.calibration_jobs(tmp_path).items():
        write_run(job.folder, [0.1, (0.3, 0.7, 0.1)[number]])
    (choice,) = own.choices(tmp_path)
    assert (choice.method, choice.options, choice.taken, choice.tuning_seeds) == ("sam", {"rho": 0.2}, 1, (100,))
    assert choice.tries == (
        Try({"rho": 0.1}, 0.3, 1.0, False),
        Try({"rho": 0.2}, 0.7, 1.0, False),
        Try({"rho": 0.4}, 0.1, 0.0, True),
    )
    assert not choice.at_chance
    assert not choice.at_the_edge
    table = Calibration().with_choices([choice])
    assert [job.config.method.hyperparameters for job in own.jobs(tmp_path, table)] == [{}, {"rho": 0.2}]


def test_a_choice_at_chance_or_at_the_edge_of_its_grid_says_so(tmp_path):
    own = sweep()
    for place, (job,) in own.calibration_jobs(tmp_path).items():
        write_run(job.folder, [0.12 if place == ("sam", 2) else 0.1])
    (choice,) = own.choices(tmp_path)
    assert (choice.at_chance, choice.at_the_edge) == (True, True)


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ({}, False),
        ({"run": {"training": {"epochs": 3}, "data": {"validation_size": 100}}}, False),  # another order
        ({"run": {"data": {"validation_size": 100}, "training": {"epochs": 3}, "checkpoint": {"keep": 1}}}, False),
        ({"run": {"data": {"validation_size": 100}, "training": {"epochs": 3}, "tracking": {"probe_size": 8}}}, False),
        ({"run": {"data": {"validation_size": 100}, "training": {"epochs": 3}, "tracking": {"evaluate_every": 2}}}, True),
        ({"run": {"data": {"validation_size": 100}, "training": {"epochs": 4}}}, True),
        ({"run": {"data": {"validation_size": 100}, "training": {"epochs": 3}, "noise": {"rate": 0.2}}}, True),
        ({"plan": CalibrationPlan((100,), {"sam": ({"rho": 0.1}, {"rho": 0.2})})}, True),
        ({"plan": CalibrationPlan((101,), {"sam": GRID})}, True),
        (
            {"plan": CalibrationPlan((100,), {"sam": ({"rho": 0.1}, {"rho": 0.2}, {"rho": 0.4})}, {"sam": {"chunk_size": 2}})},
            True,
        ),
        ({"plan": CalibrationPlan((100,), {"sam": ({"rho": 0.1}, {"rho": 0.2}, {"rho": 0.4}), "sgd": ({"seed": 1},)})}, False),
    ],
)
def test_a_choice_is_stale_exactly_when_what_it_depends_on_has_changed(tmp_path, changed, stale):
    first = sweep()
    assert first.calibration is not None
    tries = tuple(Try(options, 0.5, 1.0, False) for options in first.calibration.grids["sam"])
    made_for = first.calibration.digest(first.run, "sam")
    write_calibration(
        tmp_path / "calibration.toml",
        Calibration().with_choices([Choice("tiny", "sam", {"rho": 0.1}, (100,), made_for, tries, 0)]),
    )
    table = read_calibration(tmp_path / "calibration.toml")
    now = sweep(**changed)
    if stale:
        with pytest.raises(ConfigurationError) as caught:
            now.options("sam", table)
        assert caught.value.given.startswith("calibration.toml holds a choice for 'sam' in 'tiny' that was made for another")
        assert caught.value.remedy == f"Run: noisesam sweep {tmp_path / 'tiny.toml'} --calibrate"
    else:
        assert now.options("sam", table) == {"rho": 0.1}


@pytest.mark.parametrize(
    ("table", "typed"),
    [
        (None, "tiny.toml"),
        ("calibration.toml", "tiny.toml"),
        ("experiments/calibration.toml", "experiments/tiny.toml"),
        ("{here}/experiments/calibration.toml", "experiments/tiny.toml"),  # as code that knows the whole path hands it in
        ("../beside/calibration.toml", "../beside/tiny.toml"),
        ("{here}/../beside/calibration.toml", "../beside/tiny.toml"),
        ("my experiments/calibration.toml", "'my experiments/tiny.toml'"),
    ],
)
def test_a_missing_choice_names_the_file_as_it_is_typed_here(tmp_path, monkeypatch, table, typed):
    here = tmp_path / "checkout"
    for folder in (here / "experiments", here / "my experiments", tmp_path / "beside"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    path = None if table is None else Path(table.format(here=here))
    with pytest.raises(ConfigurationError) as caught:
        (Calibration() if path is None else read_calibration(path)).options("tiny", "sam", "-")
    assert caught.value.remedy == f"Run: noisesam sweep {typed} --calibrate"


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
numbers = st.floats(allow_nan=False)
options = st.dictionaries(words, st.one_of(st.booleans(), st.integers(-(2**62), 2**62), numbers, words, st.lists(numbers)))
# Tuples, made into choices in the test: beartype draws at random which items it looks at, which a strategy must not.
tries = st.tuples(options, st.floats(0, 1), st.floats(0, 100), st.booleans())
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
choices = st.tuples(words, words, options, st.tuples(st.integers(0, 9)), digests, st.tuples(tries, tries), st.integers(0, 1))


@settings(max_examples=40)
@given(made=st.lists(choices, max_size=3))
def test_a_table_is_read_as_it_was_written_and_written_as_it_was_read(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("table") / "calibration.toml"
    table = Calibration().with_choices([Choice(*front, tuple(Try(*one) for one in own), taken) for *front, own, taken in made])
    write_calibration(path, table)
    assert read_calibration(path).choices == table.choices
    before = path.read_bytes()
    write_calibration(path, read_calibration(path))
    assert path.read_bytes() == before


def test_a_try_without_a_value_is_kept_in_the_table(tmp_path):
    tried = (Try({"rho": 0.1}, math.nan, math.nan, False), Try({"rho": 0.2}, 0.5, 1.0, False))
    write_calibration(
        tmp_path / "table.toml", Calibration().with_choices([Choice("a", "sam", {"rho": 0.2}, (1,), "-", tried, 1)])
    )
    again = read_calibration(tmp_path / "table.toml").choices["a", "sam"]
    assert math.isnan(again.tries[0].validation_accuracy)
    assert again.tries[1] == tried[1]


@pytest.mark.parametrize("text", ["[", "a = 1", "[a.sam]\nrho = 0.1", "\xff"])
def test_what_is_no_table_is_said(tmp_path, text):
    (tmp_path / "table.toml").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=r"table.toml is no calibration table .* calibrate again"):
        read_calibration(tmp_path / "table.toml")


def test_a_table_that_is_not_there_yet_is_empty(tmp_path):
    assert read_calibration(tmp_path / "table.toml").choices == {}
