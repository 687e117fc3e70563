from __future__ import annotations

import errno
import json
import math
import shutil

import numpy as np
import pytest
import torch

from noisesam import fit, methods, models, open_run
from noisesam.errors import ConfigurationError, InputError, RunError
from noisesam.runs import files, verify
from noisesam.runs.checkpoints import read_payload
from noisesam.training import load_config, prepare, seed_for
from noisesam.training.checkpoint import restore_model

STEPS = 12


def value(run, metric, *, step, split="train", group="all"):
    rows = run.metrics.query("metric == @metric and step == @step and split == @split and group == @group")
    assert len(rows) == 1
    return rows["value"].iloc[0]


@pytest.mark.parametrize("name", methods.names())
def test_equal_configurations_give_equal_runs_for_every_method(name, tmp_path, small_config, assert_same_run):
    config = small_config(method={"name": name}, training={"epochs": 2})
    config["method"].pop("rho")
    fit(config, tmp_path / "a")
    torch.rand(3)  # the state of torch's global generator plays no part
    fit(config, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")


def bare_loop(config):
    """Train as a user would: no measurement, no run on disk, nothing but the steps."""
    prepared = prepare(load_config(config))
    train, method, optimizer = prepared.splits.train, prepared.method, prepared.optimizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config["seed"], "dropout"))
        for step in range(prepared.total_steps):
            if step % prepared.order.steps_per_epoch == 0:
                method.start_epoch(step // prepared.order.steps_per_epoch)
            rows = prepared.order.batch(step)
            for group in optimizer.param_groups:
                group["lr"] = config["optimizer"]["lr"] * (1 + math.cos(math.pi * step / prepared.total_steps)) / 2
            optimizer.zero_grad()
            method.backward(train.inputs[rows], train.labels[rows], index=train.index[rows])
            optimizer.step()
    return prepared


@pytest.mark.parametrize("name", methods.names())
def test_tracking_does_not_change_the_run(name, tmp_path, small_config):
    config = small_config(method={"name": name})
    config["method"].pop("rho")
    silent = {**config, "tracking": {"probe_size": 0, "evaluate_every": 4}, "checkpoint": {"every": 4}}
    fit(config, tmp_path / "tracked")
    fit(silent, tmp_path / "silent")
    tracked, other = (read_payload(tmp_path / run, STEPS)[0] for run in ("tracked", "silent"))
    assert tracked == other  # weights, momentum, method and generators, byte by byte
    # Even the silent run is evaluated; a loop that measures nothing at all has the same weights and momentum.
    bare, saved = bare_loop(config), open_run(tmp_path / "tracked").checkpoint().tensors
    for place, (key, weight) in enumerate(bare.model.state_dict().items()):
        assert torch.equal(saved[f"model.{key}"], weight)
        momentum = bare.optimizer.state_dict()["state"][place]["momentum_buffer"]
        assert torch.equal(saved[f"optimizer.state.{place}.momentum_buffer"], momentum)


@pytest.mark.parametrize("optimizer", [{}, {"name": "adamw", "lr": 0.01, "momentum": 0.0}], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", ["sam", "1-sam"])
def test_a_run_resumed_at_any_step_equals_the_uninterrupted_one(name, optimizer, tmp_path, small_config, assert_same_run):
    config = small_config(
        method={"name": name}, optimizer=optimizer, training={"epochs": 2}, checkpoint={"every_steps": 1, "keep": 0}
    )
    whole = fit(config, tmp_path / "whole")
    assert whole.checkpoint_steps == list(range(7))
    for step in range(7):
        copy = tmp_path / f"from-{step}"
        shutil.copytree(whole.path, copy)
        for path in (copy / "checkpoints").iterdir():
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        # Parts that lie after the checkpoint may be there or not; half of them are.
        for path in (copy / "metrics").iterdir():
            if int(path.stem.removeprefix("part-")) > step and step % 2:
                path.unlink()
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["status"] = "running"
        (copy / "manifest.json").write_text(json.dumps(manifest))
        steps_taken = []
        fit(config, copy, progress=lambda done, total, text, taken=steps_taken: taken.append(done))
        assert steps_taken == list(range(step, 7))
        assert_same_run(copy, whole.path)


def test_global_generators_and_threads_are_left_as_they_were(tmp_path, small_config):
    threads, state, modern = torch.get_num_threads(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    fit(small_config(training={"epochs": 1, "threads": threads + 1}), tmp_path / "run")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], modern)  # noqa: NPY002


def test_seeds_change_the_run_and_method_changes_leave_data_weights_and_batches(small_config):
    first, second = (prepare(load_config(small_config(seed=seed))) for seed in (1, 2))
    assert not torch.equal(first.model.last_layer.weight, second.model.last_layer.weight)
    assert not torch.equal(first.splits.train.index, second.splits.train.index)
    other = prepare(load_config(small_config(method={"name": "sgd"}, optimizer={"lr": 0.3}), ["method={name = 'sgd'}"]))
    assert torch.equal(first.model.last_layer.weight, other.model.last_layer.weight)
    for split in ("train", "validation", "test", "probe"):
        assert torch.equal(getattr(first.splits, split).labels, getattr(other.splits, split).labels)
        assert torch.equal(getattr(first.splits, split).index, getattr(other.splits, split).index)
    np.testing.assert_array_equal(first.order.batch(5), other.order.batch(5))


def test_hyperparameters_and_optimizer_settings_reach_their_places(small_config):
    prepared = prepare(load_config(small_config(method={"name": "sam", "rho": 0.03})))
    assert prepared.method.rho == 0.03
    group = prepared.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.1, 0.9, 1e-3, False)
    adam = prepare(load_config(small_config(optimizer={"name": "adamw", "momentum": 0.0}))).optimizer
    assert isinstance(adam, torch.optim.AdamW)


def test_noise_comes_before_the_hold_out_and_never_reaches_the_test_labels(small_config):
    config = load_config(small_config(data={"train_size": 500, "validation_size": 200, "test_size": 597}))
    splits = prepare(config).splits
    noisy, held_out = splits.train.is_noisy, splits.validation.is_noisy
    assert int(noisy.sum() + held_out.sum()) == 200  # floor(0.4 * 500)
    assert 50 <= int(held_out.sum()) <= 110  # 80 +- 4.6 standard deviations of the hypergeometric law
    assert int(splits.test.is_noisy.sum()) == 0
    assert not set(splits.train.index.tolist()) & set(splits.validation.index.tolist())
    assert set(splits.probe.index.tolist()) <= set(splits.train.index.tolist())


def test_a_smaller_training_set_is_part_of_a_larger_one(small_config):
    small, large = (
        prepare(load_config(small_config(data={"train_size": size, "validation_size": 0}))).splits.train for size in (30, 60)
    )
    assert set(small.index.tolist()) < set(large.index.tolist())


def test_standardised_training_images_have_mean_zero_and_unit_deviation(small_config):
    splits = prepare(load_config(small_config(data={"standardise": True, "train_size": 300}))).splits
    # float32 over 290 * 64 pixels
    assert float(splits.train.inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(splits.train.inputs.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert float(splits.test.inputs.mean()) != pytest.approx(0, abs=1e-5)


def test_the_manifest_tells_seeds_noise_and_sizes(tmp_path, small_config):
    run = fit(small_config(training={"epochs": 1}), tmp_path / "run")
    assert run.manifest["seeds"]["noise"] == seed_for(1, "noise")
    assert run.manifest["noise"]["kind"] == "symmetric"
    assert run.manifest["noise"]["requested_rate"] == 0.4
    sizes = {"train": 40, "validation": 10, "test": 20, "probe": 8, "classes": 10, "input_shape": [1, 8, 8]}
    assert run.manifest["data"] == sizes
    assert load_config(run.config) == load_config(small_config(training={"epochs": 1}))
    assert verify(run.path) == []


def test_measured_rows_follow_the_schedules(tmp_path, small_config):
    run = fit(small_config(tracking={"evaluate_every": 2, "probe_dense": 1, "probe_every": 3}), tmp_path / "run")
    evaluated = run.metrics.query("metric == 'accuracy'")
    assert set(evaluated["step"]) == {0, 6, 12}
    assert set(evaluated["split"]) == {"train", "val", "test"}
    assert set(run.metrics.query("split == 'probe'")["step"]) == {0, 3, 9, 12}
    assert set(run.examples["step"]) == {0, 3, 9, 12}
    assert set(run.metrics.query("metric == 'forward_passes'")["step"]) == {6, 12}
    assert value(run, "forward_passes", step=12) == 2  # 1-SAM: twice the batch
    assert value(run, "backward_passes", step=12) == 2
    assert value(run, "step_seconds", step=12) > 0
    assert run.checkpoint_steps == [10, 12]


def test_saved_weights_give_the_saved_accuracy(tmp_path, small_config):
    config = small_config()
    run = fit(config, tmp_path / "run")
    model, splits = restore_model(run), prepare(load_config(config)).splits
    model.eval()
    correct = (model(splits.test.inputs).argmax(1) == splits.test.labels).double().mean()
    assert value(run, "accuracy", step=STEPS, split="test") == float(correct)


def test_a_finished_run_is_returned_as_it_is(tmp_path, small_config):
    config = small_config(training={"epochs": 1})
    run = fit(config, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != ".lock"}
    again = fit(config, tmp_path / "run", progress=lambda *_: pytest.fail("a step was taken"))
    assert again.status == "finished"
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.name != ".lock"} == before


def test_a_directory_is_never_reused(tmp_path, small_config):
    config = small_config(training={"epochs": 1})
    fit(config, tmp_path / "run")
    with pytest.raises(RunError, match="already holds a run"):
        fit(config, tmp_path / "run", resume=False)
    with pytest.raises(RunError, match=r"another configuration.*method\.rho"):
        fit(small_config(training={"epochs": 1}, method={"rho": 0.06}), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(RunError, match="not empty and not a run"):
        fit(config, tmp_path / "full")
    assert open_run(tmp_path / "run").status == "finished"


def test_without_a_directory_the_run_is_named_after_method_setting_and_seed(tmp_path, small_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (fit(small_config(training={"epochs": 1}, seed=seed)) for seed in (1, 2))
    assert first.path.parent.name == "runs"
    assert first.path.name == f"1-sam-{first.setting_hash[:8]}-seed1"
    assert second.path.name == f"1-sam-{first.setting_hash[:8]}-seed2"


def test_an_interrupted_run_stays_running_and_goes_on(tmp_path, small_config, assert_same_run):
    def interrupt(done, total, text):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small_config(), tmp_path / "run", progress=interrupt)
    assert open_run(tmp_path / "run").status == "running"
    assert open_run(tmp_path / "run").checkpoint_steps == [4, 6]
    fit(small_config(), tmp_path / "run")
    fit(small_config(), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", ["sgd", "sam", "1-sam"])
def test_a_diverged_run_is_marked_failed_and_what_was_measured_is_kept(name, tmp_path, small_config):
    config = small_config(method={"name": name}, optimizer={"lr": 1e30}, checkpoint={"every": 4, "every_steps": None})
    config["method"].pop("rho")
    for _ in range(2):  # the second time from the checkpoint of the failed run
        with pytest.raises(RunError, match=r"Training diverged after \d+ steps?.*Lower optimizer.lr"):
            fit(config, tmp_path / "run")
        run = open_run(tmp_path / "run")
        assert run.status == "failed"
        assert "Training diverged" in run.manifest["message"]
        assert value(run, "accuracy", step=0) < 0.5
        assert run.problems == []


def test_a_run_at_chance_is_told_so_once(tmp_path, small_config):
    config = small_config(optimizer={"lr": 0.0}, method={"name": "sgd"}, training={"epochs": 60, "batch_size": 20})
    config["method"].pop("rho")
    config["tracking"], config["checkpoint"] = {"probe_size": 0, "evaluate_every": 15}, {}
    with pytest.warns(UserWarning, match=r"after 60 of 60 epochs, which is chance.*Lower optimizer.lr") as caught:
        run = fit(config, tmp_path / "run")
    assert len(caught) == 1
    assert run.manifest["notes"] == [str(caught[0].message)]


def test_a_full_disk_is_one_error_and_costs_nothing_that_was_written(tmp_path, small_config, monkeypatch, assert_same_run):
    real, written = files._write, []

    def full(handle, data):
        if len(written) >= 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(len(data))
        real(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write", full)
        with pytest.raises(RunError, match=r"cannot be written: No space left on device. Free some space and resume"):
            fit(small_config(), tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.problems == []
    assert set(run.metrics["step"]) >= {0, 3}
    fit(small_config(), tmp_path / "run")
    fit(small_config(), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_unwritable_directory_is_one_error(tmp_path, small_config):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot be written: (Not a directory|File exists)"):
        fit(small_config(), tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": {"name": "1sam"}}, "method.name = '1sam'.*Did you mean '1-sam'"),
        ({"method": {"roh": 0.1}}, "Unknown key 'method.roh' for the method '1-sam'.*Did you mean 'method.rho'"),
        ({"method": {"loss": "crossentropy"}}, "method.loss = 'crossentropy'.*Did you mean 'cross_entropy'"),
        ({"model": {"name": "mpl"}}, "model.name = 'mpl'.*Did you mean 'mlp'"),
        ({"model": {"options": {"hiden": [3]}}}, "Unknown key 'model.options.hiden'.*Did you mean 'model.options.hidden'"),
        ({"noise": {"kind": "symetric"}}, "noise.kind = 'symetric'.*Did you mean 'symmetric'"),
        ({"data": {"train_size": 5000}}, "data.train_size = 5000 with 1200 examples in 'digits'. Expected at most 1200"),
        ({"data": {"train_size": None, "validation_size": 1200}}, "data.validation_size = 1200 with 1200 training examples"),
        ({"method": {"loss": "logistic"}}, 'method.loss = "logistic" with 10 classes'),
        ({"training": {"device": "cuda:7"}}, "training.device = 'cuda:7'.*finds no such device"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_directory(sections, message, tmp_path, small_config):
    with pytest.raises(ConfigurationError, match="(?s)" + message):
        fit(small_config(**sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def write_npz(path, *, inputs, labels, **more):
    np.savez(path, train_inputs=inputs, train_labels=labels, test_inputs=inputs, test_labels=labels, **more)


def test_a_users_own_data_without_true_labels_is_trained_in_one_group(tmp_path, small_config):
    generator = np.random.default_rng(0)
    write_npz(tmp_path / "own.npz", inputs=generator.normal(size=(60, 5)).astype("float32"), labels=np.arange(60) % 2)
    config = small_config(
        data={"name": str(tmp_path / "own.npz"), "test_size": None},
        noise={"kind": "none", "rate": 0.0},
        method={"loss": "logistic"},
        training={"epochs": 1},
    )
    run = fit(config, tmp_path / "run")
    assert set(run.metrics["group"]) == {"all"}
    assert set(run.examples["clean_label"]) == {-1}
    assert str(tmp_path) not in (run.path / "manifest.json").read_text()
    # The same file at the same place is the same run; another content is not.
    assert fit(config, tmp_path / "run").status == "finished"
    write_npz(tmp_path / "own.npz", inputs=generator.normal(size=(60, 5)).astype("float32"), labels=np.arange(60) % 2)
    with pytest.raises(RunError, match="another configuration"):
        fit(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.full((60, 5), np.nan, dtype="float32"), np.arange(60) % 2, "(?i)nan|finite"),
        (np.ones((60, 5), dtype="int64"), np.arange(60) % 2, "int64|floating|uint8"),
        (np.ones((60, 5), dtype="float32"), np.arange(60) - 1, "labels"),
        (np.ones((60, 5), dtype="float32"), np.arange(59) % 2, "59"),
    ],
    ids=["NaN inputs", "integer inputs", "negative labels", "too few labels"],
)
def test_bad_data_is_one_error_before_there_is_a_directory(inputs, labels, message, tmp_path, small_config):
    write_npz(tmp_path / "own.npz", inputs=inputs, labels=labels)
    config = small_config(data={"name": str(tmp_path / "own.npz"), "test_size": None}, noise={"kind": "none", "rate": 0.0})
    with pytest.raises(InputError, match=message):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_normalisation_in_a_per_example_method_is_one_error_before_the_first_step(tmp_path, small_config):
    @models.register("normalised", title="A network with BatchNorm.")
    def normalised(input_shape, classes, generator):
        body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(math.prod(input_shape)))
        return models.Classifier(body, features=math.prod(input_shape), classes=classes, input_shape=input_shape)

    try:
        config = small_config(training={"epochs": 1})
        config["model"] = {"name": "normalised"}
        with pytest.raises(InputError, match=r"(?s)BatchNorm.*(LayerNorm|GroupNorm|eval)"):
            fit(config, tmp_path / "run")
        run = open_run(tmp_path / "run")
        assert (run.status, run.problems) == ("failed", [])
        assert "BatchNorm" in run.manifest["message"]
        # A method of the whole batch trains it, and measuring does not move the running statistics.
        config["method"] = {"name": "sgd"}
        trained, bare = fit(config, tmp_path / "sgd"), bare_loop(config)
        for key, value in bare.model.state_dict().items():
            assert torch.equal(trained.checkpoint().tensors[f"model.{key}"], value)
    finally:
        models.unregister("normalised")


def test_a_failure_keeps_what_was_measured_since_the_last_checkpoint(tmp_path, small_config, assert_same_run):
    def fail(done, total, text):
        if done == 7:
            raise RuntimeError("no reason")

    config = small_config(checkpoint={"every": 4, "every_steps": None})
    with pytest.raises(RuntimeError, match="no reason"):
        fit(config, tmp_path / "run", progress=fail)
    run = open_run(tmp_path / "run")
    assert (run.status, run.manifest["message"], run.checkpoint_steps) == ("failed", "no reason", [0])
    assert set(run.metrics.query("metric == 'accuracy'")["step"]) == {0, 3, 6}
    assert set(run.examples["step"]) == {0, 3, 6}
    fit(config, tmp_path / "run")
    fit(config, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
