"""The control experiments: every file states what it is for before it is run, and every run in it can be made."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from noisesam.experiments import read_sweep

FOLDER = Path(__file__).parents[2] / "experiments"
FILES = {path.stem.removeprefix("control-"): path for path in sorted(FOLDER.glob("control-*.toml"))}
VARIED = {
    "learning-rate": {"optimizer.lr"},
    "matched": set(),
    "noise-rate": {"noise.rate"},
    "regulariser": {"method.activation", "method.weight"},
    "robust-losses": {"method.loss"},
    "step-length": set(),
    "train-size": {"data.train_size", "training.epochs", "tracking.evaluate_every"},
    "width": {"model.options.hidden"},
}
METHOD = {"method.name", "method.rho"}


def test_there_is_a_control_for_everything_that_was_asked_for():
    assert set(FILES) == set(VARIED)


@pytest.fixture(params=FILES)
def name(request):
    return request.param


def test_every_run_is_one_that_the_registries_know(name):
    read_sweep(FILES[name]).check()


def test_expectation_rule_and_time_are_stated_and_the_runs_are_as_many_as_the_file_says(name):
    sweep, text = read_sweep(FILES[name]), FILES[name].read_text(encoding="utf-8")
    assert sweep.title.startswith("Control: ")
    assert len(sweep.expectation) > 100
    assert "interval" in sweep.decision
    assert "undecided" in sweep.decision
    assert "\n" not in sweep.expectation + sweep.decision
    assert "Stated before it was run." in text
    stated = re.search(r"# (\d+) runs of (\d+) to (\d+) seconds: about (\d+) minutes on two cores\.", text)
    assert stated is not None
    runs, shortest, longest, minutes = map(int, stated.groups())
    assert runs == len(sweep.points) * len(sweep.seeds)
    assert runs * shortest / 2 <= 60 * minutes <= runs * longest / 2 + 60
    assert minutes <= 20
    assert len(sweep.seeds) >= 3


def test_only_what_the_file_is_about_varies(name):
    keys = {key for point in read_sweep(FILES[name]).points for key in point.values}
    assert keys - METHOD == VARIED[name]


def test_every_place_of_the_grid_has_its_own_sgd_to_be_compared_with(name):
    methods = defaultdict(set)
    for point in read_sweep(FILES[name]).points:
        place = {key: str(value) for key, value in point.values.items() if not key.startswith("method.")}
        if name == "robust-losses":
            place["method.loss"] = point.values["method.loss"]
        methods[tuple(sorted(place.items()))].add(point.method)
    assert all("sgd" in present for present in methods.values())


def test_all_controls_share_one_setting_and_validation_labels_to_choose_by():
    sweeps = [read_sweep(path) for path in FILES.values()]
    assert all(sweep.run == sweeps[0].run for sweep in sweeps)
    assert sweeps[0].run["data"]["validation_size"] > 0
    assert sweeps[0].run["noise"] == {"kind": "symmetric", "rate": 0.4}


def test_training_set_sizes_are_compared_at_an_equal_number_of_steps_and_evaluations():
    sweep = read_sweep(FILES["train-size"])
    configs = [sweep.config(point, 0) for point in sweep.points]
    steps, evaluations, images = set(), set(), set()
    for config in configs:
        held_in = config.data.train_size - config.data.validation_size
        steps.add(-(-held_in // config.training.batch_size) * config.training.epochs)
        evaluations.add(config.training.epochs // config.tracking.evaluate_every)
        images.add(held_in)
    assert steps == {2400}
    assert evaluations == {150}
    assert images == {100, 250, 500, 1000}


def test_the_narrowest_network_has_fewer_weights_than_images():
    from noisesam.training.preparation import make_model

    sweep = read_sweep(FILES["width"])
    config = sweep.config(next(point for point in sweep.points if point.values["model.options.hidden"] == [8, 8]), 0)
    model = make_model(config, (1, 8, 8), 10)
    assert sum(p.numel() for p in model.parameters()) == 682


def test_every_robust_loss_is_among_the_controls():
    from noisesam.gradients.robust_losses import ROBUST

    losses = {point.values["method.loss"].split("(")[0] for point in read_sweep(FILES["robust-losses"]).points}
    assert losses == {"cross_entropy", *(loss.name for loss in ROBUST)}


def test_the_step_length_control_has_an_l_sam_of_the_same_radius():
    points = read_sweep(FILES["step-length"]).points
    radii = {
        method: {p.values["method.rho"] for p in points if p.method == method} for method in ("l-sam", "length-matched-sgd")
    }
    assert radii["l-sam"] == radii["length-matched-sgd"] != set()
