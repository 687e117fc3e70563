"""The arithmetic of the steps: set for their length, refused where it is missing, and of the steps alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reference.loop import relative_error

from noisesam import fit, methods
from noisesam.errors import ConfigurationError, RunError
from noisesam.experiments import read_calibration, read_sweep
from noisesam.runs import configuration_hash, setting_hash
from noisesam.training import Config, TrainingConfig, config_to_dict, evaluate, load_config, prepare
from noisesam.training.checkpoint import restore_model
from noisesam.training.precision import (
    deterministic_cudnn,
    lacks_bfloat16,
    lacks_tf32,
    refuse_missing_precision,
    step_arithmetic,
    tf32_allowed,
)

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def settings_of_torch():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    older = (matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision())
    newer = (matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, torch.backends.fp32_precision)
    rest = (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)
    return older, newer, rest, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


# ------------------------------------------------------------------ configurations keep their hash


def committed_manifests():
    for path in sorted((ROOT / "figures").glob("*manifests.json")):
        for manifest in json.loads(path.read_text(encoding="utf-8"))[:6]:
            if "configuration_hash" in manifest and manifest["data_file"] is None:
                yield path.name, manifest


def test_runs_made_before_there_were_these_keys_keep_their_hashes():
    checked = set()
    for name, manifest in committed_manifests():
        stored = manifest["configuration"]
        assert config_to_dict(load_config(stored)) == stored
        assert configuration_hash(config_to_dict(load_config(stored))) == manifest["configuration_hash"]
        assert setting_hash(config_to_dict(load_config(stored))) == manifest["setting_hash"]
        checked.add(name)
    assert "demo-manifests.json" in checked


def test_the_hash_of_the_empty_configuration_is_what_it_was():
    # Computed before the keys were there.
    assert configuration_hash(config_to_dict(load_config({}))) == (
        "9916725ea895480d4bd9472f59724002d2fa05c9c78102d199663ff4bb4d38df"
    )


def test_a_default_that_is_written_out_is_the_same_run_and_another_value_is_another():
    plain = config_to_dict(Config())
    assert set(plain["training"]) == {"epochs", "batch_size", "device", "dtype", "threads"}
    assert config_to_dict(load_config({"training": {"augmentation": "none", "precision": "float32"}})) == plain
    others = [
        config_to_dict(load_config({"training": training}))
        for training in (
            {"augmentation": "crop-flip"},
            {"precision": "bfloat16"},
            {"precision": "tf32", "device": "cuda"},
            {"device": "cuda"},
        )
    ]
    assert len({configuration_hash(one) for one in [plain, *others]}) == 5
    for one in others:
        assert config_to_dict(load_config(one)) == one
    assert others[1]["training"]["precision"] == "bfloat16"


def test_choices_of_the_calibration_table_are_still_those_of_their_sweeps():
    table = read_calibration(ROOT / "experiments" / "calibration.toml")
    found = 0
    for path in sorted((ROOT / "experiments").glob("baek2024-cpu-*.toml")):
        sweep = read_sweep(path)
        for method in sweep.calibration.grids:
            sweep.options(method, table)  # refuses a choice whose digest is another
            found += 1
        for point in sweep.points:
            options = sweep.options(point.method, table)
            said = config_to_dict(sweep.config(point, 0, options=options))["training"]
            assert not {"augmentation", "precision"} & set(said)
    assert found > 0


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"precision": "float16"}, "training.precision = 'float16'. Expected one of: float32, tf32, bfloat16"),
        ({"precision": "bf16"}, "training.precision = 'bf16'. Expected one of"),
        ({"augmentation": "crop"}, "Expected one of: none, crop-flip. Did you mean 'crop-flip'?"),
        ({"augmentation": True}, r"training.augmentation = True \(bool\). Expected a string"),
        (
            {"precision": "tf32"},
            'training.precision = "tf32" with training.device = "cpu". Expected an NVIDIA device.*'
            'Use training.precision = "float32"',
        ),
        ({"precision": "tf32", "device": "mps"}, 'with training.device = "mps"'),
        (
            {"precision": "bfloat16", "dtype": "float64"},
            'training.precision = "bfloat16" with training.dtype = "float64".*Leave one of the two out',
        ),
        ({"precision": "tf32", "dtype": "float64", "device": "cuda"}, 'Expected training.dtype = "float32"'),
    ],
)
def test_a_precision_that_is_not_computed_in_is_refused_and_nothing_else_takes_its_place(training, message):
    with pytest.raises(ConfigurationError, match="(?s)" + message):
        load_config({"training": training})


def test_tf32_on_the_cpu_is_refused_by_the_block_too():
    before = settings_of_torch()
    with pytest.raises(ConfigurationError, match=r'"tf32" with .*"cpu".*Use training'), step_arithmetic("tf32", CPU):
        pytest.fail("it was entered")
    with pytest.raises(ConfigurationError, match=r'"tf32" with training\.device = "cpu"'):
        refuse_missing_precision("tf32", CPU)
    assert settings_of_torch() == before


def test_devices_that_ignore_tf32_are_known():
    assert [lacks_tf32(capability) for capability in ((7, 0), (7, 5), (8, 0), (9, 0), (12, 0))] == [True] * 2 + [False] * 3
    assert lacks_tf32((9, 4), hip="6.2")
    assert not lacks_bfloat16(CPU)
    assert lacks_bfloat16(torch.device("meta"))
    with pytest.raises(ConfigurationError, match=r'"bfloat16" with training\.device = "meta"'):
        refuse_missing_precision("bfloat16", torch.device("meta"))
    refuse_missing_precision("float32", torch.device("meta"))
    refuse_missing_precision("bfloat16", CPU)


# ------------------------------------------------------------------ settings hold for a block and are put back


def look_and_fail(precision):
    """Look at the settings in a block, and leave it by an exception."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # The flags can be set without a device; torch.autocast would warn of its absence.
    with step_arithmetic(precision, CPU if precision == "bfloat16" else CUDA):
        if precision == "bfloat16":
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        else:
            allowed = precision == "tf32"
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
            assert (cudnn.conv.fp32_precision == "tf32", matmul.fp32_precision == "tf32") == (allowed, allowed)
            with tf32_allowed(not allowed):
                assert matmul.allow_tf32 is (not allowed)
            assert matmul.allow_tf32 is allowed
        raise ZeroDivisionError


def look_at_cudnn_and_fail():
    with deterministic_cudnn():
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (False, True)
        raise ZeroDivisionError


def test_blocks_set_what_they_say_and_put_it_back_after_an_exception():
    before = settings_of_torch()
    for precision in ("float32", "tf32", "bfloat16"):
        with pytest.raises(ZeroDivisionError):
            look_and_fail(precision)
        assert settings_of_torch() == before
    with pytest.raises(ZeroDivisionError):
        look_at_cudnn_and_fail()
    assert settings_of_torch() == before


def test_settings_that_the_older_switches_cannot_express_are_put_back_too():
    """Where a caller uses torch's newer settings, torch refuses to read the older switches at all."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    begin = matmul.fp32_precision, cudnn.conv.fp32_precision
    try:
        matmul.fp32_precision, cudnn.conv.fp32_precision = "tf32", "ieee"
        with tf32_allowed(False):
            assert (matmul.fp32_precision == "tf32", cudnn.conv.fp32_precision == "tf32") == (False, False)
        assert (matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("tf32", "ieee", "tf32")
        with tf32_allowed(True):
            assert (matmul.fp32_precision, cudnn.conv.fp32_precision) == ("tf32", "tf32")
        assert (matmul.fp32_precision, cudnn.conv.fp32_precision) == ("tf32", "ieee")
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = False, True
        matmul.fp32_precision, cudnn.conv.fp32_precision = begin


# ------------------------------------------------------------------ bfloat16


STEPS = 12
PER_STEP = 0.15
"""What rounding makes of a gradient, at most. bfloat16 keeps 8 bits, 0.2% a rounding; five in a row put an activation off by up
to 1% of its size. Then 0.8% (twice 0.4, the density of a normal at zero, times 1%) of the ReLU gates and maxima of each of
three layers turn over, and with them the gradients of these units: the root of 3 times 0.8% is 15%. Single steps are off at
random, so that twelve are off by the root of twelve times as much."""


def config_of(**training):
    """12 steps of a small convolutional network on noisy digits."""
    return {
        "data": {"train_size": 110, "test_size": 40, "validation_size": 14, "standardise": True},
        "noise": {"kind": "symmetric", "rate": 0.3},
        "model": {"name": "small-cnn"},
        "method": {"name": "1-sam", "rho": 0.02},
        "optimizer": {"lr": 0.05, "momentum": 0.9},
        "training": {"epochs": 4, "batch_size": 32, "threads": 1, **training},
        "tracking": {"probe_size": 8, "probe_dense": 0, "probe_every": 4},
        "checkpoint": {"every": 1, "keep": 0},
        "seed": 3,
    }


def weights(run, step):
    return {name: value for name, value in run.checkpoint(step).tensors.items() if name.startswith("model.")}


def parted(run, other, step):
    """How far two runs from the same weights are apart, as a share of the way that the other one has gone."""
    begin = weights(other, 0)
    ways = [{key: value - begin[key] for key, value in weights(one, step).items()} for one in (run, other)]
    return relative_error(*ways)


def loss_of(run, step):
    rows = run.metrics.query("metric == 'loss' and split == 'train' and group == 'all' and step == @step")
    return float(rows["value"].iloc[0])


@pytest.mark.parametrize("name", ["sgd", "1-sam"])
def test_bfloat16_trains_a_small_cnn_by_nearly_the_steps_of_float32(name, tmp_path):
    runs = {}
    for precision in ("float32", "bfloat16"):
        config = config_of(precision=precision)
        config |= {"method": {"name": name}, "checkpoint": {"every_steps": 1, "keep": 0}, "tracking": {"probe_size": 0}}
        runs[precision] = fit(config, tmp_path / precision)
    assert runs["bfloat16"].config["training"]["precision"] == "bfloat16"
    begin = weights(runs["float32"], 0)
    assert all(torch.equal(value, begin[key]) for key, value in weights(runs["bfloat16"], 0).items())
    assert all(value.dtype == torch.float32 for value in weights(runs["bfloat16"], STEPS).values())
    assert 1e-5 < parted(runs["bfloat16"], runs["float32"], 1) <= PER_STEP
    assert parted(runs["bfloat16"], runs["float32"], STEPS) <= STEPS**0.5 * PER_STEP
    for run in runs.values():
        assert loss_of(run, STEPS) < loss_of(run, 0) - 0.05


@pytest.mark.parametrize("name", [name for name in methods.names() if name not in ("sgd", "1-sam")])
def test_bfloat16_steps_of_every_method_are_finite_and_leave_float32(name):
    prepared = prepare(load_config(config_of(precision="bfloat16"), [f"method={{name = '{name}'}}"]))
    for step in range(2):
        prepared.method.start_epoch(step)
        batch = prepared.batch(step)
        prepared.optimizer.zero_grad()
        with prepared.arithmetic():
            result = prepared.method.backward(batch.inputs, batch.labels, index=batch.index)
        assert not torch.is_autocast_enabled("cpu")
        prepared.optimizer.step()
        assert result.logits.dtype == torch.bfloat16
        for parameter in prepared.model.parameters():
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            assert bool(parameter.isfinite().all())


def test_a_bfloat16_run_resumed_equals_the_uninterrupted_one(tmp_path, assert_same_run):
    def interrupt(done, total, text):
        if done == 5:
            raise KeyboardInterrupt

    config = config_of(precision="bfloat16", augmentation="crop-flip", epochs=3)
    config["checkpoint"] = {"every_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "run", progress=interrupt)
    assert not torch.is_autocast_enabled("cpu")
    fit(config, tmp_path / "run")
    fit(config, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_what_is_measured_in_a_bfloat16_run_is_computed_in_float32(tmp_path):
    config = config_of(precision="bfloat16", epochs=2)
    run = fit(config, tmp_path / "run")
    model, splits = restore_model(run), prepare(load_config(config)).splits
    last = run.metrics[run.metrics["step"] == run.checkpoint_steps[-1]]
    for split, dataset in splits.evaluated().items():
        for row in evaluate(model, dataset, split=split):
            found = last.query("split == @row['split'] and group == @row['group'] and metric == @row['metric']")["value"]
            assert float(found.iloc[0]) == row["value"] or (row["value"] != row["value"] and found.isna().all())
    with torch.no_grad():
        logits = model.eval()(splits.probe.inputs)
    losses = torch.nn.functional.cross_entropy(logits, splits.probe.labels, reduction="none").double()
    tracked = torch.tensor(run.examples[run.examples["step"] == run.checkpoint_steps[-1]]["loss"].to_list()).double()
    # Float32 in another order; bfloat16 logits differ by parts in a thousand.
    assert float((tracked - losses).norm() / losses.norm()) <= 1e-5


def test_a_run_that_fails_leaves_torchs_settings(tmp_path):
    before = settings_of_torch()
    config = config_of(precision="bfloat16")
    config["optimizer"] = {"lr": 1e30}
    with pytest.raises(RunError, match="diverged"):
        fit(config, tmp_path / "run")
    assert settings_of_torch() == before


def test_the_weights_of_a_tf32_run_are_read_without_its_device(tmp_path, monkeypatch):
    run = fit(config_of(epochs=1), tmp_path / "run")
    there = {**run.config, "training": {**run.config["training"], "precision": "tf32", "device": "cuda"}}
    monkeypatch.setattr(type(run), "config", property(lambda _: there))
    assert load_config(run.config).training == TrainingConfig(
        epochs=1, batch_size=32, threads=1, precision="tf32", device="cuda"
    )
    restored = restore_model(run)
    saved = weights(run, run.checkpoint_steps[-1])
    assert all(torch.equal(saved[f"model.{key}"], value) for key, value in restored.state_dict().items())


# ------------------------------------------------------------------ with a device


@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_on_cuda_a_product_has_the_precision_of_its_block(precision):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    with step_arithmetic(precision, CUDA):
        found = (left.cuda() @ right.cuda()).double().cpu()
    error = float((found - exact).norm() / exact.norm())
    # Half of the last bit of the factors: 24, 11 and 8 bits.
    low, high = {"float32": (0, 1e-5), "tf32": (1e-4, 2e-3), "bfloat16": (1e-3, 1e-2)}[precision]
    assert low <= error <= high


@needs_cuda
@pytest.mark.parametrize("name", ["sgd", "sam", "1-sam", "l-sam", "j-sam", "reg-sgd"])
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_on_cuda_every_precision_trains_by_nearly_the_steps_of_float32(precision, name, tmp_path):
    before = settings_of_torch()
    runs = {}
    for one in ("float32", precision):
        config = config_of(precision=one, augmentation="crop-flip", device="cuda")
        config |= {"method": {"name": name}, "checkpoint": {"every_steps": 1, "keep": 0}, "tracking": {"probe_size": 0}}
        runs[one] = fit(config, tmp_path / one)
    assert settings_of_torch() == before
    assert 0 < parted(runs[precision], runs["float32"], 1) <= PER_STEP
    assert parted(runs[precision], runs["float32"], STEPS) <= STEPS**0.5 * PER_STEP
