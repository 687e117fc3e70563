"""What a reproduction is made of: settings from files, the order of runs, checks of manifests, counts, sections."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from noisesam.errors import ConfigurationError, InputError, RunError
from noisesam.reproduce.estimates import Costs, assumed, cost_key, counts, seconds
from noisesam.reproduce.evidence import COLUMNS, DEEP, Evidence
from noisesam.reproduce.making import make_in_turn
from noisesam.reproduce.manifest_checks import CIFAR10N_WORST, check_manifests, contradictions
from noisesam.reproduce.outputs import manifests_text, with_section
from noisesam.reproduce.published import BEST_TEST_ACCURACY, beside_published
from noisesam.reproduce.settings import SCALES, in_order, read_settings, sweep_files, variant_of
from noisesam.runs import Run, open_run
from noisesam.training import fit, load_config

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
METHODS = ("sgd", "sam", "1-sam", "l-sam", "j-sam", "reg-sgd")


@pytest.fixture(scope="module")
def cpu():
    return {setting.name: setting for setting in read_settings(SCALES["cpu"], EXPERIMENTS, Path("out"), provisional=True)}


@pytest.fixture(scope="module")
def gpu():
    (setting,) = read_settings(SCALES["gpu"], EXPERIMENTS, Path("out"), provisional=True)
    return setting


def test_the_cpu_scale_is_four_settings_with_six_methods_and_at_least_three_seeds(cpu):
    assert set(cpu) == {"digits", "fashion", "cifar10", "cifar10n"}
    for name, setting in cpu.items():
        assert setting.sweep.methods == METHODS
        assert len(setting.sweep.seeds) >= 3
        assert set(setting.sweep.calibration.grids) == set(METHODS) - {"sgd"}
        for method, grid in setting.sweep.calibration.grids.items():
            radii = [one["rho"] for one in grid] if method != "reg-sgd" else [one["weight"] for one in grid]
            assert radii == sorted(radii), (name, method)
            assert len(radii) >= 3, (name, method)
            assert radii[-1] >= 10 * radii[0], (name, method)
        tuning = setting.sweep.calibration.tuning_seeds
        # Several tuning seeds, or one where a run takes minutes; never one that is reported.
        assert len(tuning) >= (1 if name == "cifar10" else 2)
        assert not {*tuning} & {*setting.sweep.seeds}
        main = setting.variants["main"]
        assert len(main) == 6 * len(setting.sweep.seeds)
        assert all(job.config.training.threads == 1 and job.config.data.validation_size for job in main)
    # The two that take longest are run with wrong labels only.
    for name in ("digits", "fashion"):
        clean = cpu[name].variants["no-noise"]
        assert len(clean) == 6 * len(cpu[name].sweep.seeds)
        assert all(job.config.noise.rate == 0.0 for job in clean)


def test_digits_at_the_cpu_scale_is_the_demo_s_setting(cpu):
    from noisesam.cli.demo import preset

    own, demo = cpu["digits"].variants["main"][0].config, preset().config("sgd", 0)
    assert len(cpu["digits"].sweep.seeds) == 5
    for name in ("data", "noise", "model", "method", "optimizer", "training", "seed"):
        assert getattr(own, name) == getattr(demo, name), name


def test_the_human_setting_is_cifar10n_worst_and_the_others_are_symmetric(cpu):
    noise = {name: setting.reference.noise for name, setting in cpu.items()}
    assert (noise["cifar10n"].kind, noise["cifar10n"].source) == ("human", "worst")
    assert {name: (one.kind, one.rate) for name, one in noise.items() if name != "cifar10n"} == {
        "digits": ("symmetric", 0.4),
        "fashion": ("symmetric", 0.3),
        "cifar10": ("symmetric", 0.3),
    }


def test_variants_of_digits_change_one_thing_and_take_as_many_steps(cpu):
    digits = cpu["digits"]
    assert set(digits.variants) == {"main", "no-noise", "size-50", "size-10", "narrow"}
    steps = {name: counts(jobs[0].config).steps for name, jobs in digits.variants.items()}
    assert steps["main"] == steps["size-50"] == steps["size-10"] == steps["narrow"] == 2400
    assert {variant_of(job.config, digits.reference) for job in digits.variants["narrow"]} == {"narrow"}


def test_the_gpu_scale_is_the_published_setting_and_ordered_by_method_with_noise_first(gpu):
    config = gpu.reference
    assert (config.data.name, config.model.name, config.model.options) == (
        "cifar10",
        "resnet18",
        {"normalisation": "layernorm"},
    )
    assert (config.noise.kind, config.noise.rate, config.training.batch_size) == ("symmetric", 0.3, 128)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.training.device) == (0.01, 5e-4, "cuda")
    jobs = in_order([gpu], SCALES["gpu"])
    assert [job.config.method.name for job in jobs[:6]] == ["sgd", "1-sam", "j-sam", "l-sam", "reg-sgd", "sam"]
    assert [job.config.noise.rate for job in jobs] == [0.3] * 18 + [0.0] * 6
    sizes = [job.config.data.train_size - job.config.data.validation_size for job in jobs]
    assert sizes == [45_000] * 6 + [22_500] * 6 + [4_500] * 6 + [45_000] * 6
    assert config.checkpoint.every_steps is not None  # so that a piece of minutes loses little


def test_the_cpu_scale_goes_seed_by_seed_the_settings_themselves_first(cpu):
    jobs = in_order(cpu.values(), SCALES["cpu"])
    places = [(not job.name.startswith("main"), job.config.seed) for job in jobs]
    assert places == sorted(places)
    assert len({job.folder for job in jobs}) == len(jobs) == sum(len(setting.jobs) for setting in cpu.values())


def test_without_a_calibration_a_scale_is_refused_and_a_provisional_one_takes_the_first_try(tmp_path):
    text = (EXPERIMENTS / "baek2024-cpu-digits.toml").read_text()
    (tmp_path / "baek2024-cpu-digits.toml").write_text(text)
    with pytest.raises(ConfigurationError, match="--calibrate"):
        read_settings(SCALES["cpu"], tmp_path, tmp_path)
    (setting,) = read_settings(SCALES["cpu"], tmp_path, tmp_path, provisional=True)
    rho = {job.config.method.name: job.config.method.hyperparameters.get("rho") for job in setting.variants["main"]}
    assert rho == {"sgd": None, "sam": 0.05, "1-sam": 0.01, "l-sam": 0.02, "j-sam": 0.01, "reg-sgd": None}
    with pytest.raises(ConfigurationError, match=r"No baek2024-gpu\*.toml"):
        sweep_files(SCALES["gpu"], tmp_path)


# Manifests


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods, one seed, tiny."""
    folder = tmp_path_factory.mktemp("runs")
    config = {
        "data": {"train_size": 120, "validation_size": 40, "test_size": 60},
        "noise": {"kind": "symmetric", "rate": 0.4},
        "model": {"name": "linear"},
        "training": {"epochs": 1, "threads": 1},
        "tracking": {"probe_size": 0},
    }
    methods = ({"name": "sgd"}, {"name": "sam", "rho": 0.05})
    return [fit({**config, "method": method}, folder / method["name"]) for method in methods]


def changed(run: Run, **values) -> Run:
    """The run with another manifest."""
    return Run(run.path, {**copy.deepcopy(run.manifest), **values})


def test_manifests_as_asked_for_are_accepted(runs):
    assert [one["id"] for one in check_manifests(runs)] == [run.id for run in runs]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: {"status": "running"}, "status running"),
        (lambda m: {"data": {**m["data"], "train": 79}}, "79 train examples, configured 80"),
        (lambda m: {"data": {**m["data"], "validation": 0}}, "0 validation examples, configured 40"),
        (lambda m: {"data": {**m["data"], "test": 59}}, "59 test examples, configured 60"),
        (lambda m: {"noise": None}, "no record of label noise, configured symmetric"),
        (lambda m: {"noise": {**m["noise"], "kind": "human"}}, "label noise of kind human, configured symmetric"),
        (lambda m: {"noise": {**m["noise"], "realised_rate": 0.9}}, "realised noise rate 0.9000, requested 0.4000"),
        (lambda m: {"noise": {**m["noise"], "realised_rate": None}}, "no realised noise rate"),
        (lambda m: {"noise": {**m["noise"], "seed": 1}}, "another noise than"),
        (lambda m: {"data": {**m["data"], "classes": 9}}, "another data than"),
        (lambda m: {"seeds": {**m["seeds"], "init": 1}}, "other generators than"),
    ],
)
def test_a_manifest_that_is_wrong_is_an_error_that_names_the_run(runs, change, said):
    first, second = runs
    with pytest.raises(RunError, match="contradict") as caught:
        check_manifests([first, changed(second, **change(second.manifest))])
    assert f"{second.id}: " in str(caught.value)
    assert said in str(caught.value)


def test_the_seed_of_the_method_and_the_probe_are_no_contradiction(runs):
    first, second = runs
    values = {"seeds": {**second.manifest["seeds"], "method": 1}, "data": {**second.manifest["data"], "probe": 7}}
    check_manifests([first, changed(second, **values)])


def human(rate: float, train: int, diagonal: float = 0.6) -> dict:
    matrix = [[diagonal if row == column else (1 - diagonal) / 9 for column in range(10)] for row in range(10)]
    return {
        "status": "finished",
        "configuration": {
            "data": {"name": "cifar10", "train_size": train, "validation_size": 0},
            "noise": {"kind": "human", "source": "worst"},
        },
        "data": {"train": train, "validation": 0, "classes": 10},
        "noise": {"kind": "human", "source": "worst", "realised_rate": rate, "transition_matrix": matrix},
    }


def test_cifar10n_worst_has_its_published_rate_exactly_on_all_images_and_nearly_on_a_part():
    assert CIFAR10N_WORST == 0.40208
    assert contradictions(human(0.40208, 50_000)) == []
    assert contradictions(human(0.4021, 50_000)) != []
    assert contradictions(human(0.45, 1_000)) == []  # within five standard errors of 0.0155
    assert contradictions(human(0.30, 1_000)) == ["realised noise rate 0.30000, CIFAR-10N worst has 0.40208"]


def test_human_labels_in_another_order_than_the_images_are_found():
    assert contradictions(human(0.40208, 50_000, diagonal=0.05)) == [
        "class 0 is most often labelled as another: labels in another order than the images"
    ]


# Time


def test_runs_made_in_pieces_are_the_runs_made_at_once(tmp_path):
    from noisesam.experiments import Job

    config = load_config(
        {
            "data": {"train_size": 200},
            "model": {"name": "linear"},
            "training": {"epochs": 3, "batch_size": 20, "threads": 1},
            "tracking": {"probe_size": 0},
            "checkpoint": {"every_steps": 4},
        }
    )
    jobs = [Job(dataclasses.replace(config, seed=seed), tmp_path / "pieces" / f"seed{seed}") for seed in (0, 1)]
    pieces, complete = 0, False
    while not complete:
        outcome, complete = make_in_turn(jobs, minutes=0)
        pieces += 1
    assert pieces == 2 * 8  # 30 steps with a checkpoint every four
    assert outcome.made + outcome.skipped == 2
    whole = [fit(job.config, tmp_path / "whole" / job.name) for job in jobs]
    for job, run in zip(jobs, whole, strict=True):
        own = open_run(job.folder)
        assert own.status == "finished"
        drop = own.metrics["metric"] != "step_seconds"
        assert own.metrics[drop].equals(run.metrics[run.metrics["metric"] != "step_seconds"])


def test_a_run_that_diverges_is_named_and_the_others_are_made(tmp_path):
    from noisesam.experiments import Job

    config = load_config(
        {"data": {"train_size": 64}, "model": {"name": "mlp"}, "training": {"epochs": 2}, "tracking": {"probe_size": 0}}
    )
    broken = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr=1e30))
    jobs = [Job(broken, tmp_path / "broken"), Job(config, tmp_path / "sound")]
    outcome, complete = make_in_turn(jobs)
    assert (outcome.made, complete, [failure.name for failure in outcome.failed]) == (1, True, ["broken"])
    assert "finite" in str(outcome.failed[0])
    assert open_run(tmp_path / "sound").status == "finished"


def test_a_run_is_as_long_as_its_parts():
    config = load_config(
        {"data": {"train_size": 120, "validation_size": 20, "test_size": 80}},
        ["training.epochs=10", "training.batch_size=50", "tracking.evaluate_every=5", "tracking.probe_every=10"],
    )
    number = counts(config)
    assert (number.steps, number.evaluated, number.probes) == (20, 3 * 200, 7)
    costs = Costs(1.0, 0.01, 2.0, 5.0, 0, 0, "")
    assert seconds(config, costs) == 5.0 + 20 * 1.0 + 600 * 0.01 + 7 * 2.0
    assert cost_key(config) != cost_key(load_config(config, ["method.name=sam"]))


def test_an_assumed_step_of_sam_costs_two_of_sgd_and_the_examples_lie_on_the_device(gpu):
    by_method = {job.config.method.name: job.config for job in gpu.variants["main"]}
    small = {name: load_config(by_method[name], ["model.options={width = 4}"]) for name in ("sgd", "sam")}
    costs = {name: assumed([config])[cost_key(config)] for name, config in small.items()}
    assert costs["sam"].step == 2 * costs["sgd"].step > 0
    assert costs["sgd"].device_memory > 60_000 * 3 * 32 * 32 * 4
    with pytest.raises(InputError, match="Nothing can be assumed about digits"):
        assumed([load_config({})])


# What is written


def test_a_manifest_with_a_path_of_this_machine_is_not_written(runs):
    text = manifests_text([run.manifest for run in runs])
    assert [one["id"] for one in json.loads(text)] == sorted(run.id for run in runs)
    with pytest.raises(InputError, match="a path of this machine"):
        manifests_text([{**runs[0].manifest, "message": "see /home/someone/x"}])


def test_a_section_is_replaced_where_it_stands_and_added_where_it_is_new():
    text = "# A\n\n<!-- a -->\nold\n<!-- /a -->\n\n<!-- b -->\nkept\n<!-- /b -->\n"
    assert with_section(text, "a", r"new \1") == text.replace("old", r"new \1")
    assert with_section("# A\n", "c", "x") == "# A\n\n<!-- c -->\nx\n<!-- /c -->\n"


def test_published_numbers_stand_beside_ours_with_their_source_and_say_when_the_setting_is_another():
    rows = [{"variant": "main", "method": name, "seed": seed} for name in ("sgd", "1-sam", "sam") for seed in (0, 1)]
    frame = pd.DataFrame(rows).reindex(columns=[*COLUMNS])
    frame = frame.assign(run=frame["method"], options="", excluded="", oracle_test_accuracy=[0.5, 0.6, 0.7, 0.8, 0.6, 0.6])
    table = beside_published(Evidence("small", DEEP, frame), same_setting=False).set_index("method")
    assert table.loc["1-sam", ["published", "ours"]].tolist() == [0.6947, 0.75]
    assert table.loc["1-sam", "ours_gap"] == pytest.approx(0.2, abs=1e-12)
    assert pd.isna(table.loc["sam", "published"])
    assert pd.isna(table.loc["j-sam", "ours"])
    assert set(table["comparison"]) == {"another setting"}
    assert all("arXiv 2405.03676" in source for source in table.loc[[*BEST_TEST_ACCURACY], "source"])
