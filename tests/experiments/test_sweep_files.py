"""Sweep files: what they mean, and what is refused with its key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisesam.errors import ConfigurationError
from noisesam.experiments import Calibration, Choice, Sweep, Try, read_sweep
from noisesam.experiments.sweeps import with_values
from noisesam.training import load_config

HEAD = """
title = "Tiny"
expectation = "1-SAM is above SGD."
decision = "Supported if the interval is above zero."
seeds = [0, 1]
"""
RUN = """
[run.noise]
kind = "symmetric"
rate = 0.4
[run.training]
epochs = 2
"""
GRID = """
[grid]
methods = ["sgd", "1-sam"]
"noise.rate" = [0.0, 0.4]
"optimizer.lr" = [0.2]
"""
CALIBRATION = """
[calibration]
tuning_seeds = [9]
[calibration.methods.1-sam]
grid = [{ rho = 0.05 }, { rho = 0.1 }]
chunk_size = 4
[calibration.methods.sgd]
"""


def read(folder: Path, text: str) -> Sweep:
    (folder / "tiny.toml").write_text(text)
    return read_sweep(folder / "tiny.toml")


def test_a_grid_is_every_combination_and_its_labels_say_what_differs(tmp_path):
    sweep = read(tmp_path, HEAD + RUN + GRID)
    assert (sweep.name, sweep.title, sweep.seeds) == ("tiny", "Tiny", (0, 1))
    assert [point.label for point in sweep.points] == ["sgd-rate0", "sgd-rate0.4", "1-sam-rate0", "1-sam-rate0.4"]
    jobs = sweep.jobs(tmp_path)
    assert [one.folder.name for one in jobs[:2]] == ["sgd-rate0-seed0", "sgd-rate0.4-seed0"]
    assert [one.config.seed for one in jobs] == [0] * 4 + [1] * 4
    expected = {
        "noise": {"kind": "symmetric", "rate": 0.0},
        "training": {"epochs": 2},
        "optimizer": {"lr": 0.2},
        "method": {"name": "sgd"},
        "seed": 0,
    }
    assert jobs[0].config == load_config(expected)


def test_keys_mean_the_same_with_and_without_quotes(tmp_path):
    quoted = read(tmp_path, HEAD + RUN + GRID)
    bare = read(tmp_path, HEAD + RUN + GRID.replace('"noise.rate"', "noise.rate").replace('"optimizer.lr"', "optimizer.lr"))
    assert bare == quoted


def test_points_stand_alone_or_times_the_grid(tmp_path):
    points = """
[[points]]
label = "narrow"
"model.options" = { hidden = [8] }
[[points]]
label = "wide"
model.options = { hidden = [64] }
optimizer.lr = 0.1
"""
    alone = read(tmp_path, HEAD + RUN + points.replace("label", '"method.name" = "sgd"\nlabel'))
    assert [point.label for point in alone.points] == ["narrow", "wide"]
    both = read(tmp_path, HEAD + RUN + '[grid]\nmethods = ["sgd", "sam"]\n' + points)
    assert [point.label for point in both.points] == ["narrow-sgd", "narrow-sam", "wide-sgd", "wide-sam"]
    config = both.config(both.points[-1], 3)
    assert (config.model.options, config.optimizer.lr, config.method.name, config.seed) == ({"hidden": [64]}, 0.1, "sam", 3)


def test_values_of_every_kind_have_a_label(tmp_path):
    grid = """
[grid]
methods = ["sgd"]
"method.loss" = ["cross_entropy", "mae"]
"optimizer.nesterov" = [false, true]
"optimizer.momentum" = [0.9]
"model.options" = [{ hidden = [8] }, { hidden = [8, 8] }]
"""
    labels = [point.label for point in read(tmp_path, HEAD + grid).points]
    assert labels[0] == "sgd-cross_entropy-no-nesterov-options0"
    assert labels[-1] == "sgd-mae-nesterov-options1"
    assert len(set(labels)) == 8


def test_what_a_point_says_stands_above_the_calibration_and_that_above_the_run(tmp_path):
    text = HEAD + RUN + '[grid]\nmethods = ["sgd", "1-sam"]\n[[points]]\nlabel = "chosen"\n[[points]]\nlabel = "tracked"\n'
    sweep = read(tmp_path, text + '"tracking.rho" = 0.3\n' + CALIBRATION)
    plan = sweep.calibration
    assert plan is not None
    tries = tuple(Try(dict(options), 0.5, 1.0, False) for options in plan.grids["1-sam"])
    choice = Choice("tiny", "1-sam", plan.tried("1-sam", 1), (9,), plan.digest(sweep.run, "1-sam"), tries, 1)
    jobs = {job.name: job.config for job in sweep.jobs(tmp_path, Calibration().with_choices([choice]))}
    assert jobs["chosen-1-sam-seed0"].method.hyperparameters == {"rho": 0.1, "chunk_size": 4}
    assert jobs["chosen-sgd-seed0"].method.hyperparameters == {}
    point = sweep.points[0]
    assert sweep.config(point, 0, options={"rho": 0.2}).method.hyperparameters == {"rho": 0.2}
    stated = type(point)("own", {**sweep.points[1].values, "method.rho": 0.7})
    assert sweep.config(stated, 0, options={"rho": 0.2}).method.hyperparameters == {"rho": 0.7}


def test_a_method_with_one_try_needs_no_choice(tmp_path):
    one = CALIBRATION.replace("grid = [{ rho = 0.05 }, { rho = 0.1 }]", "grid = [{ rho = 0.05 }]")
    sweep = read(tmp_path, HEAD + RUN + GRID + one)
    assert sweep.calibration_jobs(tmp_path) == {}
    assert sweep.jobs(tmp_path)[2].config.method.hyperparameters == {"chunk_size": 4, "rho": 0.05}


def test_calibration_tries_every_value_on_the_tuning_seeds_and_tracks_nothing(tmp_path):
    sweep = read(tmp_path, HEAD + RUN + GRID + CALIBRATION)
    jobs = sweep.calibration_jobs(tmp_path)
    assert list(jobs) == [("1-sam", 0), ("1-sam", 1)]
    ((one,),) = [jobs["1-sam", 1]]
    assert one.name == "1-sam-1-seed9"
    assert (one.config.seed, one.config.tracking.probe_size) == (9, 0)
    assert one.config.method.hyperparameters == {"rho": 0.1, "chunk_size": 4}
    assert one.config.noise.rate == 0.4  # the setting as [run] states it


def test_jobs_of_a_sweep_without_its_calibration_are_refused(tmp_path):
    sweep = read(tmp_path, HEAD + RUN + GRID + CALIBRATION)
    with pytest.raises(
        ConfigurationError, match=r"holds no choice for '1-sam' in 'tiny'.*noisesam sweep tiny.toml --calibrate"
    ):
        sweep.jobs(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('title = "Tiny"', ""), "without title"),
        (('expectation = "1-SAM is above SGD."', ""), "without expectation"),
        (('decision = "Supported if the interval is above zero."', 'decision = " "'), "stated before it is run"),
        (("seeds = [0, 1]", ""), "without seeds"),
        (("seeds = [0, 1]", "seeds = [0, 0]"), "different whole numbers"),
        (("seeds = [0, 1]", "seeds = [9]"), "seeds that chose nothing"),
        (("seeds = [0, 1]", "seed = [0, 1]"), "Did you mean 'seeds'"),
        (("seeds = [0, 1]", "seeds = ["), "not valid TOML"),
        (("seeds = [0, 1]", "seeds = " + "[" * 3000 + "]" * 3000), "nested too deeply"),
        (("[run.noise]", "[run.method]\nname = 'sgd'\n[run.noise]"), "a setting without method and seed"),
        (("rate = 0.4", "rat = 0.4"), "Did you mean 'noise.rate'"),
        (('methods = ["sgd", "1-sam"]', ""), "has no method"),
        (('methods = ["sgd", "1-sam"]', 'methods = "sgd"'), "a list of values"),
        (('methods = ["sgd", "1-sam"]', 'methods = ["sgd", "sgd"]'), "Two points of tiny.toml have the label"),
        (('"noise.rate" = [0.0, 0.4]', '"noise.rate" = [0.0, -1.0]'), "noise.rate = -1.0"),
        (('"noise.rate" = [0.0, 0.4]', '"noise.raet" = [0.0, 0.4]'), "Did you mean 'noise.rate'"),
        (('"noise.rate" = [0.0, 0.4]', "seed = [3]"), "seeds = [...] at the top"),
        (("[grid]", '[[points]]\nlabel = "a b"\n[grid]'), "letters, digits"),
        (("[grid]", '[[points]]\nlabel = "a"\n"noise.rate" = 0.1\n[grid]'), "stands in [grid] and in [[points]]"),
        (("tuning_seeds = [9]", ""), "without calibration.tuning_seeds"),
        (("tuning_seeds = [9]", "tuning_seeds = [9]\nrho = 1"), "Unknown key 'rho' in [calibration]"),
        (("grid = [{ rho = 0.05 }, { rho = 0.1 }]", "grid = [0.05, 0.1]"), "calibration.methods.1-sam.grid"),
        (("[calibration.methods.sgd]", "[calibration.methods.sam]"), "no point has that method"),
        ((CALIBRATION, '[calibration]\ntuning_seeds = [9]\nmethods = ["1-sam"]\n'), "calibration.methods = ['1-sam']"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said(tmp_path, change, said):
    text = HEAD + RUN + GRID + CALIBRATION
    assert change[0] in text
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text.replace(*change, 1))
    assert said in str(caught.value)
    assert caught.value.expected


def test_points_that_are_the_same_runs_are_refused(tmp_path):
    points = (
        '[[points]]\nlabel = "a"\n"method.name" = "sgd"\n[[points]]\nlabel = "b"\n"method.name" = "sgd"\n"noise.rate" = 0.4\n'
    )
    with pytest.raises(ConfigurationError, match=r"The points 'a' and 'b' of tiny.toml are the same runs"):
        read(tmp_path, HEAD + RUN + points)


def test_a_file_that_is_not_there_and_a_sweep_without_points_are_said(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        read_sweep(tmp_path / "nothing.toml")
    with pytest.raises(ConfigurationError, match=r"tiny.toml without points"):
        read(tmp_path, HEAD + RUN)


def test_check_refuses_what_only_the_registries_know(tmp_path):
    read(tmp_path, HEAD + RUN + GRID + CALIBRATION).check()
    with pytest.raises(ConfigurationError, match=r"Did you mean 'method.rho'"):
        read(tmp_path, HEAD + RUN + GRID + CALIBRATION.replace("{ rho = 0.1 }", "{ roh = 0.1 }")).check()


def test_reading_a_sweep_loads_no_torch(tmp_path):
    (tmp_path / "tiny.toml").write_text(HEAD + RUN + GRID)
    code = (
        "import sys; from noisesam.experiments import read_sweep; "
        "read_sweep(sys.argv[1]).jobs('runs'); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "tiny.toml")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


names = st.text("abcd", min_size=1, max_size=3)
nested = st.dictionaries(names, st.dictionaries(names, st.integers()))


@settings(max_examples=50)
@given(
    st.dictionaries(st.tuples(names, names), st.integers(), max_size=5),
    st.dictionaries(names, st.dictionaries(names, st.integers())),
)
def test_values_set_by_dotted_keys_are_found_there_and_the_rest_is_as_it_was(values, setting):
    result = with_values(setting, {".".join(key): value for key, value in values.items()})
    assert all(result[section][key] == value for (section, key), value in values.items())
    rest = {(section, key): value for section, inner in setting.items() for key, value in inner.items()}
    assert all(result[section][key] == value for (section, key), value in rest.items() if (section, key) not in values)
    assert {(section, key) for section, inner in result.items() for key in inner} == {*rest, *values}
