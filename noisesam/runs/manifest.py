"""The manifest of a run: what was run, with which seeds, on what, and how far it came. Never where or by whom."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import noisesam
from noisesam.errors import RunError
from noisesam.runs.files import digest_data
from noisesam.runs.schema import SCHEMA_VERSION

_PACKAGES = ("torch", "numpy", "scipy", "pandas", "pyarrow", "safetensors", "scikit-learn")
_ABSOLUTE = re.compile(r"^(?:/|~|[A-Za-z]:[\\/]|\\\\|file:)")
_PATH_IN_TEXT = re.compile(
    r"(?:file:/+|~[\w.-]*/|(?<![\w./-])/|(?<!\w)[A-Za-z]:[\\/]|\\\\)(?:[^\s'\"<>|:;,()\\/]+[\\/])*([^\s'\"<>|:;,()\\/]+)"
)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no white space, no NaN.

    Example:
        >>> canonical_json({"b": 0.1, "a": [1, None]})
        '{"a":[1,null],"b":0.1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def configuration_hash(configuration: Mapping[str, Any], data_file: Mapping[str, str] | None = None) -> str:
    """Return the SHA-256 of a configuration; the content of a data file of the user's counts, its place does not.

    Example:
        >>> configuration_hash({"seed": 0}) == configuration_hash({"seed": 0})
        True
        >>> configuration_hash({"seed": 0}) == configuration_hash({"seed": 1})
        False
    """
    content: dict[str, Any] = {"configuration": dict(configuration)}
    if data_file:
        content["data_file"] = dict(data_file)
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def setting_hash(configuration: Mapping[str, Any], data_file: Mapping[str, str] | None = None) -> str:
    """Return the hash of the configuration without its seed: runs of one setting differ in their seeds alone."""
    return configuration_hash({key: value for key, value in configuration.items() if key != "seed"}, data_file)


def portable_configuration(config: Any, *, data_file: Path | None = None) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return the configuration without places of this machine, and the identity of the user's own data file.

    If `data.name` is a path, only the file's name is kept; the SHA-256 of its content tells which file it was.

    Args:
        config: Nested mapping of sections (or a dataclass of them), JSON values only.
        data_file: Where that file or folder lies, if `data.name` is relative to something else than the working directory.

    Returns:
        The configuration, and {"name", "sha256"} of the data file or None.

    Raises:
        RunError: Another value of the configuration is an absolute path, or no JSON value; or the file is missing.

    Example:
        >>> portable_configuration({"data": {"name": "digits"}, "seed": 1})
        ({'data': {'name': 'digits'}, 'seed': 1}, None)
    """
    raw = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else config
    try:
        configuration = json.loads(canonical_json(raw))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"The configuration cannot be written as JSON ({error})",
            expected="strings, finite numbers, booleans, lists, tables",
        ) from error
    identity = None
    name = configuration.get("data", {}).get("name") if isinstance(configuration.get("data"), dict) else None
    if isinstance(name, str) and (data_file is not None or "/" in name or "\\" in name or name.endswith(".npz")):
        place = Path(data_file) if data_file is not None else Path(name).expanduser()
        known = place.name or place.resolve().name  # A folder may be given as "." or "..".
        configuration["data"]["name"] = known
        identity = {"name": known, "sha256": digest_data(place)}
    for key, value in flatten(configuration):
        if isinstance(value, str) and _ABSOLUTE.match(value):
            raise RunError(
                f"The configuration holds an absolute path at {key}",
                expected="a configuration that means the same on every machine",
                remedy="Use a path relative to the working directory",
            )
    return configuration, identity


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf of nested mappings; lists are leaves unless they hold tables.

    Example:
        >>> dict(flatten({"a": {"b": 1}, "c": [2]}))
        {'a.b': 1, 'c': [2]}
    """
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(item, (Mapping, str)) for item in value):
        for position, item in enumerate(value):
            yield from flatten(item, f"{prefix}.{position}" if prefix else str(position))
    else:
        yield prefix, value


def differing_keys(first: Mapping[str, Any], second: Mapping[str, Any], *, limit: int = 3) -> str:
    """Describe the first keys in which two configurations differ, as `key: first / second`.

    Example:
        >>> differing_keys({"method": {"rho": 0.1}}, {"method": {"rho": 0.2}})
        'method.rho: 0.1 / 0.2'
    """
    left, right = dict(flatten(first)), dict(flatten(second))
    absent = "absent"
    keys = [key for key in sorted({*left, *right}) if left.get(key, absent) != right.get(key, absent)]
    shown = "; ".join(f"{key}: {left.get(key, absent)} / {right.get(key, absent)}" for key in keys[:limit])
    return shown + (f"; and {len(keys) - limit} more" if len(keys) > limit else "")


def without_places(text: str) -> str:
    """Replace every absolute path in a message by its last part: a manifest is meant to be shared.

    Example:
        >>> without_places("cannot open /home/someone/data/train.npz: missing")
        'cannot open train.npz: missing'
    """
    return _PATH_IN_TEXT.sub(r"\1", text)


def now() -> str:
    """Return the present time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()


def software_versions() -> dict[str, str | None]:
    """Return the versions of Python, noisesam and what it stands on, without importing any of them."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "noisesam": noisesam.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def hardware(gpu: str | None = None, gpu_count: int = 0) -> dict[str, Any]:
    """Return the models and counts of the processors: no host, no user."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "gpu": gpu,
        "gpu_count": gpu_count,
    }


@functools.cache
def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_state(directory: Path | None = None) -> dict[str, Any] | None:
    """Return {"commit", "dirty"} of the checkout that holds `directory` (default: the working directory), or None."""
    try:
        commit = _git("rev-parse", "HEAD", directory=directory)
        changes = _git("status", "--porcelain", "--untracked-files=no", directory=directory)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def _git(*arguments: str, directory: Path | None) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout


def build_manifest(
    config: Any,
    *,
    seeds: Mapping[str, int],
    noise: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    data_file: Path | None = None,
    gpu: str | None = None,
    gpu_count: int = 0,
) -> dict[str, Any]:
    """Return the manifest of a run that begins now.

    Args:
        config: The whole configuration, nested mapping or dataclass; a top-level `seed` is the root of every generator.
        seeds: Purpose -> seed of every generator of the run.
        noise: Kind, requested and realised rate and what else the noise model states; None without noise.
        data: Sizes: train, validation, test, probe (examples), classes, input_shape.
        data_file: See `portable_configuration`.
        gpu: Model of the accelerator, None without one.
        gpu_count: How many of them the run used.

    Returns:
        A JSON object; see `validate_manifest` for its keys.

    Raises:
        RunError: The configuration holds an absolute path or a value that JSON has not.

    Example:
        >>> manifest = build_manifest({"method": {"name": "sgd"}, "seed": 3}, seeds={"init": 11})
        >>> manifest["status"], manifest["id"].rpartition("-")[0]
        ('running', 'sgd-seed3')
    """
    configuration, identity = portable_configuration(config, data_file=data_file)
    key = configuration_hash(configuration, identity)
    method = configuration.get("method", {})
    name = method.get("name", "run") if isinstance(method, dict) else str(method)
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "id": f"{name}-seed{configuration.get('seed', 0)}-{key[:10]}",
        "status": "running",
        "message": "",
        "configuration": configuration,
        "configuration_hash": key,
        "setting_hash": setting_hash(configuration, identity),
        "data_file": identity,
        "seeds": {str(purpose): int(seed) for purpose, seed in seeds.items()},
        "noise": None if noise is None else dict(noise),
        "data": dict(data or {}),
        "versions": software_versions(),
        "hardware": hardware(gpu, gpu_count),
        "git": git_state(),
        "times": {"created": now(), "finished": None},
    }
    try:
        manifest = json.loads(canonical_json(manifest))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"The manifest cannot be written as JSON ({error})", expected="noise and data of strings, finite numbers and lists"
        ) from error
    for place, value in flatten({"noise": manifest["noise"], "data": manifest["data"]}):
        if isinstance(value, str) and _ABSOLUTE.match(value):
            raise RunError(f"The manifest would hold an absolute path at {place}", remedy="Pass the file's name alone")
    return manifest
