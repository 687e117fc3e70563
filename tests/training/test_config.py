from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisesam.errors import ConfigurationError
from noisesam.training import (
    CheckpointConfig,
    Config,
    DataConfig,
    MethodConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainingConfig,
    config_to_dict,
    load_config,
)

names = st.text("abcdefgh-0123456789", min_size=1, max_size=8)
scalars = st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
free = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=5
)
positive = st.integers(1, 10_000)
rates = st.floats(0, 1)
sizes = st.floats(0, 1e6)


@st.composite
def configs(draw):
    train_size = draw(st.none() | st.integers(2, 5000))
    kind = draw(st.sampled_from(["none", "symmetric", "human"]))
    optimizer = draw(st.sampled_from(["sgd", "adam", "adamw"]))
    momentum = draw(st.floats(0.1, 0.9)) if optimizer == "sgd" else 0.0
    hyperparameters = draw(st.dictionaries(names.filter(lambda key: key not in ("name", "loss")), free, max_size=3))
    return Config(
        data=DataConfig(
            name=draw(names),
            train_size=train_size,
            test_size=draw(st.none() | positive),
            validation_size=draw(st.integers(0, train_size - 1 if train_size else 100)),
            standardise=draw(st.booleans()),
        ),
        noise=NoiseConfig(
            kind=kind,
            rate=draw(rates) if kind == "symmetric" else 0.0,
            source=draw(st.sampled_from(["worst", "random1"])) if kind == "human" else None,
        ),
        model=ModelConfig(name=draw(names), options=draw(st.dictionaries(names, free, max_size=3))),
        method=MethodConfig(name=draw(names), loss=draw(names), hyperparameters=hyperparameters),
        optimizer=OptimizerConfig(
            name=optimizer,
            lr=draw(sizes),
            momentum=momentum,
            weight_decay=draw(sizes),
            nesterov=draw(st.booleans()) and momentum > 0,
            schedule=draw(st.sampled_from(["constant", "cosine"])),
        ),
        training=TrainingConfig(
            epochs=draw(positive),
            batch_size=draw(positive),
            threads=draw(st.none() | positive),
            augmentation=draw(st.sampled_from(["none", "crop-flip"])),
            precision=draw(st.sampled_from(["float32", "bfloat16"])),
        ),
        tracking=TrackingConfig(probe_size=draw(positive), rho=draw(st.none() | st.floats(1e-6, 10))),
        checkpoint=CheckpointConfig(every=draw(positive), every_steps=draw(st.none() | positive)),
        seed=draw(st.integers(0, 2**53 - 1)),
    )


@settings(deadline=None, max_examples=60)
@given(configs())
def test_config_to_dict_round_trips_through_load_config_and_json(config):
    plain = config_to_dict(config)
    assert load_config(plain) == config
    assert load_config(json.loads(json.dumps(plain))) == config
    assert load_config(config) == config


def test_toml_file_gives_the_same_configuration_as_the_dictionary(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'seed = 3\n[method]\nname = "1-sam"\nrho = 0.1\n'
        '[optimizer]\nlr = 1\n[model]\nname = "mlp"\n[model.options]\nwidth = 16\n'
    )
    config = load_config(path)
    assert config == load_config(str(path))
    assert config == Config(
        seed=3,
        method=MethodConfig(name="1-sam", hyperparameters={"rho": 0.1}),
        optimizer=OptimizerConfig(lr=1.0),
        model=ModelConfig(name="mlp", options={"width": 16}),
    )
    assert isinstance(config.optimizer.lr, float)


def test_every_field_has_a_default_and_the_empty_mapping_gives_it():
    assert load_config({}) == Config()


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("method.name=1-sam", ("method", "name"), "1-sam"),
        ("method.name = '1-sam'", ("method", "name"), "1-sam"),
        ("method.rho=0.1", ("method", "hyperparameters"), {"rho": 0.1}),
        ("optimizer.lr=1", ("optimizer", "lr"), 1.0),
        ("optimizer.lr=1e-3", ("optimizer", "lr"), 1e-3),
        ("data.standardise=true", ("data", "standardise"), True),
        ("seed=7", ("seed",), 7),
        ("noise.kind=none", ("noise", "kind"), "none"),
        ("training.threads=none", ("training", "threads"), None),
        ("model.options.widths=[16, 16]", ("model", "options"), {"widths": [16, 16]}),
        ("model.options={width = 4}", ("model", "options"), {"width": 4}),
        ("data.name=/data/x=y.npz", ("data", "name"), "/data/x=y.npz"),
        ("data.name=2020-01-01", ("data", "name"), "2020-01-01"),
    ],
)
def test_override_reads_toml_values_and_bare_words(override, path, value):
    result = load_config({"training": {"threads": 2}}, overrides=[override])
    for name in path:
        result = getattr(result, name)
    assert result == value
    assert type(result) is type(value)


def test_later_overrides_win_and_the_source_is_left_alone():
    source = {"method": {"name": "sam", "rho": 0.1}}
    config = load_config(source, overrides=["method.rho=0.2", "method.rho=0.3"])
    assert config.method.hyperparameters == {"rho": 0.3}
    assert source == {"method": {"name": "sam", "rho": 0.1}}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"optimiser": {}}, "Unknown key 'optimiser'.*Did you mean 'optimizer'?"),
        ({"optimizer": {"learning_rate": 0.1}}, "Unknown key 'optimizer.learning_rate'.*Did you mean 'optimizer.lr'?"),
        ({"lr": 0.1}, "Unknown key 'lr'.*Did you mean 'optimizer.lr'?"),
        ({"training": {"momentum": 0.1}}, "Unknown key 'training.momentum'.*Did you mean 'optimizer.momentum'?"),
        ({"method": {"hyperparameters": {"rho": 1.0}}}, "Unknown key 'method.hyperparameters'.*method.rho = 0.1"),
        ({"optimizer": {"lr": True}}, r"optimizer.lr = True \(bool\). Expected a number"),
        (
            {"optimizer": {"lr": "0.1"}},
            r"optimizer.lr = '0.1' \(str\). Expected a number. Write optimizer.lr = 0.1 without quotes",
        ),
        ({"optimizer": {"nesterov": 1}}, r"optimizer.nesterov = 1 \(int\). Expected true or false"),
        ({"training": {"epochs": 2.0}}, r"training.epochs = 2.0 \(float\). Expected an integer"),
        ({"training": {"epochs": True}}, r"training.epochs = True \(bool\). Expected an integer"),
        (
            {"training": {"threads": "two"}},
            r"training.threads = 'two' \(str\). Expected an integer. Leave training.threads out",
        ),
        ({"data": {"name": 3}}, r"data.name = 3 \(int\). Expected a string"),
        ({"data": "digits"}, r"data = 'digits'. Expected a section \[data\]"),
        ({"model": {"options": 3}}, "model.options = 3"),
        ({"method": {"rho": object()}}, "method.rho = <object"),
        ({"optimizer": {"lr": -0.1}}, "optimizer.lr = -0.1. Expected 0 or more"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr = nan"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr = inf"),
        ({"optimizer": {"name": "Adam"}}, "optimizer.name = 'Adam'. Expected one of: sgd, adam, adamw. Did you mean 'adam'?"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "momentum and nesterov with sgd only"),
        ({"optimizer": {"nesterov": True}}, "Expected a momentum above 0"),
        ({"optimizer": {"schedule": "cosin"}}, "Did you mean 'cosine'?"),
        ({"training": {"epochs": 0}}, "training.epochs = 0. Expected at least 1"),
        ({"training": {"batch_size": 0}}, "training.batch_size = 0"),
        ({"training": {"dtype": "float16"}}, "training.dtype = 'float16'. Expected one of: float32, float64"),
        ({"training": {"device": "gpu"}}, "training.device = 'gpu'. Expected cpu, cuda or cuda:0"),
        ({"data": {"train_size": 100, "validation_size": 100}}, "data.validation_size = 100 with data.train_size = 100"),
        ({"noise": {"rate": 0.4}}, 'noise.rate = 0.4 with noise.kind = "none".*noise.kind = "symmetric"'),
        ({"noise": {"kind": "symmetric", "rate": 40.0}}, "noise.rate = 40.0. Expected a fraction"),
        ({"noise": {"kind": "human", "rate": 0.4}}, "human labels bring their own"),
        ({"tracking": {"rho": 0.0}}, "tracking.rho = 0.0. Expected more than 0"),
        ({"checkpoint": {"every": 0}}, "checkpoint.every = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_full_key(source, message):
    with pytest.raises(ConfigurationError, match="(?s)" + message):
        load_config(source)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.rho", "Expected section.key=value"),
        ("=3", "Expected section.key=value"),
        ("method.rho=", "has no value"),
        ("method.rho=[1", "is not valid TOML"),
        ("method.rho=" + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("seed=" + "9" * 5000, "is not valid TOML"),
        ("seed.x=1", "seed is a value"),
        ("optimizer.lrr=1", "Did you mean 'optimizer.lr'?"),
    ],
)
def test_bad_override_is_refused(override, message):
    with pytest.raises(ConfigurationError, match=message):
        load_config({"seed": 0}, overrides=[override])


def test_missing_and_broken_files_name_the_file(tmp_path):
    with pytest.raises(ConfigurationError, match=r"missing.toml.*No such file"):
        load_config(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[data\n")
    with pytest.raises(ConfigurationError, match=r"broken.toml.*not valid TOML.*line 1"):
        load_config(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"broken.toml.*not UTF-8"):
        load_config(broken)


def test_hyperparameter_with_the_name_of_a_field_is_refused():
    config = dataclasses.replace(Config(), method=MethodConfig(hyperparameters={"name": "sam"}))
    with pytest.raises(ConfigurationError, match="has the name of a field"):
        config_to_dict(config)


def test_loading_a_configuration_does_not_import_torch():
    code = "import sys, noisesam; noisesam.load_config({'seed': 1}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["noise.kind=symmetric"], r'noise\.kind = "symmetric" without noise\.rate.*Write noise\.rate = 0\.4'),
        (["noise.kind=symmetric", "noise.rate=0.4", "noise.source=worst"], r"noise\.source.*Leave noise\.source out"),
        (["method.rho=nan"], r"method\.rho = nan. Expected a finite number"),
        (["method.rho=inf"], r"method\.rho = inf"),
        (["model.options={ init_std = nan }"], r"model\.options\.init_std = nan"),
        (["training.batch_size=999999999999999999999999"], r"at most 63 bits"),
        (["optimizer.lr=1e300"], r"optimizer\.lr = 1e\+300. Expected 0 or more, within float32. Leave optimizer\.lr out"),
        (["optimizer.weight_decay=1e300"], r"optimizer\.weight_decay = 1e\+300"),
        (["training.epochs=0"], r"training\.epochs = 0. Expected at least 1. Leave training\.epochs out for its default"),
    ],
)
def test_what_would_be_ignored_or_could_not_be_saved_is_refused(overrides, message):
    with pytest.raises(ConfigurationError, match=message):
        load_config({}, overrides)


@pytest.mark.parametrize("overrides", [["noise.kind=human", "noise.source=worst"], ["noise.kind=symmetric", "noise.rate=0"]])
def test_noise_that_brings_its_rate_or_states_none_is_understood(overrides):
    assert load_config({}, overrides).noise.rate == 0


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "config.toml").write_text("[training]\nepochs = 3\n", encoding="utf-8-sig")
    assert load_config(tmp_path / "config.toml").training.epochs == 3


def test_kinds_of_noise_without_a_rate_are_those_of_the_data():
    from noisesam.data import noise
    from noisesam.training import values

    assert values.WITHOUT_RATE == noise._WITHOUT_RATE


def test_a_noise_rate_in_percent_is_told_how_it_is_written():
    with pytest.raises(ConfigurationError, match=r"noise\.rate = 40.*Write 40% as 0\.4"):
        load_config({"noise": {"kind": "symmetric", "rate": 40}})
