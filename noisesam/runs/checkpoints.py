"""Checkpoints of a run: a .safetensors file with the tensors and a .json file that commits it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from noisesam.errors import RunError
from noisesam.runs.files import STATE_LIMIT, digest, read_bytes, read_json
from noisesam.runs.schema import SCHEMA_VERSION

_NAME = re.compile(r"step-(\d{1,18})\.(?:safetensors|json)")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` optimizer steps."""

    step: int
    tensors: dict[str, Any]
    """Name -> torch tensor, on the CPU."""
    state: dict[str, Any]
    """What is no tensor: JSON values."""


def checkpoint_paths(root: Path, step: int) -> tuple[Path, Path]:
    """Return the places of payload and commit marker of the checkpoint at `step`."""
    stem = root / "checkpoints" / f"step-{step:09d}"
    return stem.with_suffix(".safetensors"), stem.with_suffix(".json")


def checkpoint_files(root: Path) -> list[Path]:
    """Return every file of the folder that is named like a part of a checkpoint."""
    folder = root / "checkpoints"
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def committed_steps(root: Path) -> list[int]:
    """Return the steps of the checkpoints that were written in full, in order."""
    markers = [path for path in checkpoint_files(root) if path.suffix == ".json" and path.with_suffix(".safetensors").exists()]
    return sorted(int(path.stem.removeprefix("step-")) for path in markers)


def read_payload(root: Path, step: int) -> tuple[bytes, dict[str, Any]]:
    """Return the payload and the state of one checkpoint, the payload checked against its SHA-256.

    Raises:
        RunError: A file is missing, damaged, changed, or of a newer schema version.
    """
    tensors, marker = checkpoint_paths(root, step)
    commit = read_json(root, marker, limit=STATE_LIMIT)
    others = [other for other in committed_steps(root) if other != step]
    remedy = f"Delete {tensors.name} and {marker.name}"
    remedy += f"; the run then resumes from step {others[-1]}" if others else " and train the run again"
    version = commit.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RunError(
            f"{marker} has schema version {version}", expected=f"at most {SCHEMA_VERSION}", remedy="Upgrade noisesam to read it"
        )
    state, expected = commit.get("state"), commit.get("sha256")
    if not isinstance(state, dict) or not isinstance(expected, str) or commit.get("step") != step:
        raise RunError(f"{marker} is not the .json of the checkpoint at step {step}", remedy=remedy)
    payload = read_bytes(root, tensors)
    if digest(payload) != expected:
        raise RunError(f"{tensors} does not match its checksum in {marker.name}", remedy=remedy)
    return payload, state


def read_checkpoint(root: Path, step: int | None = None) -> Checkpoint:
    """Read a checkpoint, the newest by default. The only function of this room that loads torch.

    Raises:
        RunError: There is none (at this step), or it is damaged.
    """
    steps = committed_steps(root)
    if not steps:
        raise RunError(f"{root} has no checkpoint", remedy="Train the run again, with checkpoints kept")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise RunError(f"{root} has no checkpoint at step {chosen}", expected="one of: " + ", ".join(map(str, steps)))
    payload, state = read_payload(root, chosen)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(payload)
    except SafetensorError as error:
        raise RunError(f"{checkpoint_paths(root, chosen)[0]} is not a safetensors file ({error})") from error
    return Checkpoint(chosen, tensors, state)
