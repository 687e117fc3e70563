"""What a manifest must be before anything in it is used: it may come from a stranger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisesam.errors import RunError
from noisesam.runs.schema import SCHEMA_VERSION

DEPTH_LIMIT = 32
"""Tables within tables; an honest configuration has three."""
LARGEST_NUMBER = 2**63 - 1

STATUSES = ("running", "finished", "failed")

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "schema_version": int,
    "id": str,
    "status": str,
    "message": str,
    "configuration": dict,
    "configuration_hash": str,
    "setting_hash": str,
    "seeds": dict,
    "noise": (dict, type(None)),
    "data": dict,
    "versions": dict,
    "hardware": dict,
    "git": (dict, type(None)),
    "times": dict,
}


def validate_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Check the version, the keys and their types of a manifest that was read from `path`.

    Raises:
        RunError: A newer schema version, a missing key or a value of a wrong type.

    Example:
        >>> validate_manifest({"schema_version": 999}, Path("manifest.json"))
        Traceback (most recent call last):
            ...
        noisesam.errors.RunError: manifest.json has schema version 999. Expected at most 1. Upgrade noisesam to read this run.
    """
    version = manifest.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise RunError(
            f"{path} has schema version {version!r}",
            expected="a positive whole number",
            remedy="Restore it from a copy of the run",
        )
    if version > SCHEMA_VERSION:
        raise RunError(
            f"{path} has schema version {version}",
            expected=f"at most {SCHEMA_VERSION}",
            remedy="Upgrade noisesam to read this run",
        )
    for key, kind in _REQUIRED.items():
        if key not in manifest:
            raise RunError(
                f"{path} has no key {key!r}", expected="a manifest of noisesam", remedy="Restore it from a copy of the run"
            )
        if not isinstance(manifest[key], kind):
            found = type(manifest[key]).__name__
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise RunError(f"{path} has {found} at {key!r}", expected=wanted, remedy="Restore it from a copy of the run")
    unfit = _unfit(manifest)
    if unfit:
        raise RunError(
            f"{path} has {unfit[1]} at {unfit[0][:80]!r}",
            expected="values as noisesam writes them",
            remedy="Restore it from a copy",
        )
    _check_whole(manifest["configuration"].get("seed"), f"{path} has configuration.seed")
    _check_whole(manifest["data"].get("classes"), f"{path} has data.classes", least=1)
    if manifest["status"] not in STATUSES:
        raise RunError(f"{path} has status {manifest['status']!r}", expected="one of: " + ", ".join(STATUSES))


def _check_whole(value: Any, given: str, *, least: int | None = None) -> None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)):
        return
    raise RunError(
        f"{given} = {str(value)[:80]}",
        expected="a whole number" if least is None else f"a whole number from {least}",
        remedy="Restore it from a copy of the run",
    )


def _unfit(manifest: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return place and kind of the first value that no honest manifest holds and no reader could hold, or None."""
    waiting: list[tuple[str, int, Any]] = [("", 0, manifest)]
    while waiting:
        place, depth, value = waiting.pop()
        if depth > DEPTH_LIMIT:
            return place, f"tables more than {DEPTH_LIMIT} deep"
        if isinstance(value, Mapping):
            waiting += [(f"{place}.{key}".lstrip("."), depth + 1, item) for key, item in value.items()]
            texts = [*value]
        elif isinstance(value, list):
            waiting += [(place, depth + 1, item) for item in value]
            continue
        else:
            texts = [value] if isinstance(value, str) else []
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            return place, "a number of more than 64 bits"
        if isinstance(value, float) and not math.isfinite(value):
            return place, "a number that is not finite"
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            return place, "text that is no Unicode"
    return None
