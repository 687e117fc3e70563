"""From TOML, a dictionary or a `Config` to a checked `Config`, and back. No torch import."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from noisesam.errors import ConfigurationError, nearest_name
from noisesam.toml_text import parse_toml
from noisesam.training.config import Config
from noisesam.training.values import LARGEST_INTEGER, WITHOUT_RATE, check_values

_SECTIONS: dict[str, Any] = {
    name: kind for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)
}
LONGEST_WORD = 1000
"""A longer value of an override that is no TOML is no bare word either, but a number of too many digits, say."""
_OPEN = {"method": "hyperparameters"}
"""Sections whose unknown keys are gathered in one field: in TOML the hyper-parameters stand flat beside the method's name."""

_LATER = {("training", "augmentation"), ("training", "precision")}
"""Fields that came after runs had been made: left out where they hold their default, so that those runs keep their hash."""

_SYNONYMS = {
    "learning_rate": "lr",
    "learningrate": "lr",
    "val_size": "validation_size",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "wd": "weight_decay",
    "num_epochs": "epochs",
    "noise_rate": "rate",
    "normalise": "standardise",
    "standardize": "standardise",
    "normalize": "standardise",
}


def load_config(source: str | Path | Mapping[str, Any] | Config, overrides: Iterable[str] = ()) -> Config:
    """Read a configuration, refuse what is not understood, and return it as frozen dataclasses.

    A key that is left out takes its default. Hyper-parameters of the method stand flat in `[method]` beside `name` and
    `loss`; whether the method knows them is checked by `noisesam.training.validate`, which `fit` calls before its first step.

    Args:
        source: path of a TOML file, a nested mapping of the same shape, or a `Config`.
        overrides: changes on top, each "section.key=value" with the value in TOML syntax. Strings need no quotes, and `none`
            gives an optional number its default None.

    Returns:
        The configuration; equal configurations are the same run.

    Raises:
        ConfigurationError: an unknown key, a wrong type, or a value out of its range, named with its full key.

    Example:
        >>> config = load_config({"method": {"name": "1-sam", "rho": 0.1}}, overrides=["training.epochs=3", "data.name=digits"])
        >>> config.method.hyperparameters, config.training.epochs
        ({'rho': 0.1}, 3)
        >>> load_config({"optimizer": {"momentun": 0.9}})
        Traceback (most recent call last):
        noisesam.errors.ConfigurationError: Unknown key 'optimizer.momentun'. Expected one of: optimizer.name, optimizer.lr,
        optimizer.momentum, optimizer.weight_decay, optimizer.nesterov, optimizer.schedule. Did you mean 'optimizer.momentum'?
    """
    raw = _as_mapping(source)
    for override in overrides:
        _apply_override(raw, override)
    config = _build(raw)
    check_values(config)
    _require_rate(raw)
    return config


def _require_rate(raw: Mapping[str, Any]) -> None:
    """Refuse noise whose rate is left out: its default of 0 would be no noise under another name."""
    noise = raw.get("noise", {})
    if noise.get("kind", "none") not in WITHOUT_RATE and "rate" not in noise:
        raise ConfigurationError(
            f'noise.kind = "{noise["kind"]}" without noise.rate',
            expected="a fraction between 0 and 1",
            remedy="Write noise.rate = 0.4, for instance; noise.rate = 0 is a run without wrong labels.",
        )


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain nested dictionaries, in the shape that `load_config` reads.

    Args:
        config: the configuration.

    Returns:
        A dictionary of sections; `load_config(config_to_dict(config)) == config`. `training.augmentation` and
        `training.precision` are part of it where they are not their defaults: a configuration without them keeps its hash.

    Example:
        >>> config_to_dict(load_config({"method": {"name": "sam", "rho": 0.05}}))["method"]
        {'name': 'sam', 'loss': 'cross_entropy', 'rho': 0.05}
    """
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        result[field.name] = _section_to_dict(field.name, value) if dataclasses.is_dataclass(value) else value
    return result


def _section_to_dict(section: str, value: Any) -> dict[str, Any]:
    """Return one section, its open field laid flat."""
    result = {
        field.name: _copied(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if (section, field.name) not in _LATER or getattr(value, field.name) != field.default
    }
    if section in _OPEN:
        extra = result.pop(_OPEN[section])
        for key in extra:
            if key in result:
                raise ConfigurationError(
                    f"Hyper-parameter {key!r} in {section}.{_OPEN[section]} has the name of a field of the section",
                    expected=f"the value in {section}.{key} itself",
                )
        result.update(extra)
    return result


def _copied(value: Any) -> Any:
    """Return lists and mappings copied, so that nobody holds a handle into the frozen configuration."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(inner) for inner in value]
    return value


def _as_mapping(source: str | Path | Mapping[str, Any] | Config) -> dict[str, Any]:
    """Return the nested dictionary behind a path, a mapping or a configuration."""
    if isinstance(source, Config):
        return config_to_dict(source)
    if isinstance(source, Mapping):
        return _copied(source)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark in front
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigurationError(
            f"Cannot read the configuration {str(path)!r}: {reason}", expected="the path of a TOML file"
        ) from error
    return parse_toml(text, given=repr(str(path)), expected='lines such as name = "digits" under sections such as [data]')


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Write one "section.key=value" into the nested dictionary."""
    key, equals, text = override.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise ConfigurationError(f"Override {override!r}", expected="section.key=value, for instance method.rho=0.1")
    place = raw
    for depth, name in enumerate(names[:-1]):
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise ConfigurationError(
                f"Override {override!r}: {'.'.join(names[: depth + 1])} is a value", expected="a section with keys in it"
            )
    value = _override_value(override, text.strip())
    # `none` means "no value" only where the field can be without one; noise.kind=none stays a word.
    optional = len(names) == 2 and names[0] in _SECTIONS and _allows_none(_hints(_SECTIONS[names[0]]).get(names[1]))
    if optional and isinstance(value, str) and value.lower() == "none":
        value = None
    place[names[-1]] = value


def _override_value(override: str, text: str) -> Any:
    """Read the value of an override: TOML syntax, or a bare word."""
    if not text:
        raise ConfigurationError(f"Override {override!r} has no value", expected='a TOML value; the empty string is ""')
    try:
        parsed = parse_toml(f"value = {text}", given=f"Override {override!r}", expected="closed quotes and brackets")
    except ConfigurationError:
        if text[0] in "\"'[{" or len(text) > LONGEST_WORD:
            raise
        return text
    value = parsed.get("value")
    if len(parsed) > 1 or not _is_plain(value):
        return text
    return value


def _build(raw: Mapping[str, Any]) -> Config:
    """Build the configuration from the nested dictionary, key by key."""
    hints = typing.get_type_hints(Config)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in hints:
            raise _unknown_key(str(key), tuple(hints), "")
        if key in _SECTIONS:
            if not isinstance(value, Mapping):
                raise ConfigurationError(f"{key} = {value!r}", expected=f"a section [{key}] with keys in it")
            values[key] = _build_section(key, value)
        else:
            values[key] = _checked(key, value, hints[key])
    return Config(**values)


def _build_section(section: str, raw: Mapping[str, Any]) -> Any:
    """Build one section."""
    kind = _SECTIONS[section]
    hints = dict(_hints(kind))
    gathered = _OPEN.get(section)
    if gathered is not None:
        hints.pop(gathered)
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, value in raw.items():
        full = f"{section}.{key}"
        if key in hints:
            values[key] = _checked(full, value, hints[key])
        elif gathered is not None and key != gathered:
            extra[str(key)] = _plain(full, value)
        elif gathered is not None:
            raise ConfigurationError(
                f"Unknown key {full!r}",
                expected=f"the {key} flat in [{section}], beside the name",
                remedy=f"Write {section}.rho = 0.1, not {full}.rho = 0.1.",
            )
        else:
            raise _unknown_key(str(key), tuple(hints), f"{section}.")
    if gathered is not None:
        values[gathered] = extra
    return kind(**values)


def _hints(kind: type) -> dict[str, Any]:
    """Return the fields of a section with their types."""
    return typing.get_type_hints(kind)


def _allows_none(hint: Any) -> bool:
    """Say whether None is a value of the field."""
    return isinstance(hint, types.UnionType) and types.NoneType in typing.get_args(hint)


def _checked(key: str, value: Any, hint: Any) -> Any:
    """Return the value in the type of its field, or refuse it."""
    if _allows_none(hint):
        if value is None:
            return None
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
        optional = True
    else:
        optional = False
    if typing.get_origin(hint) is dict:
        if isinstance(value, Mapping):
            return {str(name): _plain(f"{key}.{name}", inner) for name, inner in value.items()}
        raise _wrong_type(key, value, "a table of options", optional)
    _refuse_unwritable(key, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise _wrong_type(
        key, value, {str: "a string", int: "an integer", float: "a number", bool: "true or false"}[hint], optional
    )


def _wrong_type(key: str, value: Any, expected: str, optional: bool) -> ConfigurationError:
    """Build the error for a value of another type, with the spelling that was probably meant."""
    remedy = f"Leave {key} out for its default, which is none." if optional else ""
    if isinstance(value, str) and re.fullmatch(r"[-+\d.eE]+|true|false", value.strip(), flags=re.IGNORECASE):
        remedy = f"Write {key} = {value.strip().lower()} without quotes."
    return ConfigurationError(f"{key} = {value!r} ({type(value).__name__})", expected=expected, remedy=remedy)


def _is_plain(value: Any) -> bool:
    """Say whether the value can stand in TOML and in JSON alike."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(inner) for inner in value)
    return value is None or isinstance(value, bool | int | float | str)


def _plain(key: str, value: Any) -> Any:
    """Return a free value if it can be written to the manifest and read back."""
    if not _is_plain(value):
        raise ConfigurationError(
            f"{key} = {value!r} ({type(value).__name__})", expected="numbers, strings, true or false, lists and tables of them"
        )
    _refuse_unwritable(key, value)
    return _copied(value)


def _refuse_unwritable(key: str, value: Any) -> None:
    """Refuse numbers that a manifest cannot hold: NaN, infinities, integers of more than 64 bits."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_unwritable(f"{key}.{name}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_unwritable(key, inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(f"{key} = {value}", expected="a finite number", remedy=f"Write {key} = 0.1, for instance.")
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ConfigurationError(
            f"{key} = {value}", expected="an integer of at most 63 bits", remedy=f"Write {key} = 100, for instance."
        )


def _unknown_key(key: str, names: tuple[str, ...], prefix: str) -> ConfigurationError:
    """Build the error for an unknown key: the nearest name in its section, else the same name in another one."""
    everywhere = {name: f"{section}.{name}" for section, kind in _SECTIONS.items() for name in _hints(kind) if name != "name"}
    meant = _SYNONYMS.get(key.lower(), key)
    close = nearest_name(meant, names)
    if meant not in names and meant in everywhere:
        suggestion = everywhere[meant]
    elif close is not None:
        suggestion = prefix + close
    else:
        near = nearest_name(meant, everywhere)
        suggestion = everywhere[near] if near is not None else None
    return ConfigurationError(
        f"Unknown key {prefix + key!r}",
        expected="one of: " + ", ".join(prefix + name for name in names),
        remedy=f"Did you mean {suggestion!r}?" if suggestion else "",
    )
