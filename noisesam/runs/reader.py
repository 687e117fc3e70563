"""Reading one run. A run is data, possibly a stranger's: nothing in it is executed, unpickled or followed elsewhere."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pandas as pd

from noisesam.errors import RunError
from noisesam.runs import tables
from noisesam.runs.checkpoints import Checkpoint, committed_steps, read_checkpoint
from noisesam.runs.checks import validate_manifest
from noisesam.runs.files import MANIFEST_LIMIT, cannot_read, digest_file, inside, read_json
from noisesam.runs.manifest import configuration_hash, setting_hash

PART_REMEDY = "Restore the part from a copy of the run, or delete the run and train it again."


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a saved run: the file, what is wrong with it, and what to do."""

    file: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


def problem_of(path: Path, error: RunError) -> Problem:
    """Turn the error that a file raised into a problem."""
    message = error.given.rstrip(".") + "."
    if error.expected:
        message += f" Expected {error.expected.rstrip('.')}."
    return Problem(str(path), message, error.remedy.rstrip(".") + "." if error.remedy else "")


class Run:
    """One saved run, read lazily. Open it with `noisesam.open_run`.

    A part that cannot be read is left out and listed in `problems`; with `strict` it raises instead.

    Attributes:
        path: Its directory.
        manifest: The content of manifest.json.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], *, strict: bool = False) -> None:
        self.path = path
        self.manifest = manifest
        self._strict = strict

    def __repr__(self) -> str:
        return f"Run({self.id!r}, {self.status}, {str(self.path)!r})"

    @property
    def id(self) -> str:
        """Method, seed and the beginning of the configuration's hash; equal for equal configurations."""
        return self.manifest["id"]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, a copy of the manifest's."""
        return copy.deepcopy(self.manifest["configuration"])

    @property
    def status(self) -> str:
        """One of running, finished, failed; a killed run stays `running`."""
        return self.manifest["status"]

    @property
    def seed(self) -> int:
        """The root seed of the configuration."""
        return self.manifest["configuration"].get("seed", 0)

    @property
    def method(self) -> str:
        """The name of the method, as in `noisesam.methods.names`."""
        method = self.manifest["configuration"].get("method", {})
        return str(method.get("name", "")) if isinstance(method, dict) else str(method)

    @property
    def setting_hash(self) -> str:
        """The hash of the configuration without its seed."""
        return self.manifest["setting_hash"]

    @property
    def metrics(self) -> pd.DataFrame:
        """The tidy table: step, epoch, split, group, metric, value; sorted by step. A copy: change it as you like."""
        return self._metrics[0].copy()

    @property
    def examples(self) -> pd.DataFrame:
        """One row per tracked example and step, the columns of `schema.EXAMPLES_COLUMNS` first. A copy."""
        return self._examples[0].copy()

    @property
    def problems(self) -> list[Problem]:
        """What could not be read of the two tables; `verify` looks deeper."""
        return [*self._metrics[1], *self._examples[1]]

    @property
    def checkpoint_steps(self) -> list[int]:
        """The steps of the checkpoints that were written in full, in order."""
        return committed_steps(self.path)

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """Read a checkpoint, the newest by default, checked against its SHA-256. Loads torch.

        Raises:
            RunError: There is none (at this step), or it is damaged.
        """
        return read_checkpoint(self.path, step)

    @functools.cached_property
    def _metrics(self) -> tuple[pd.DataFrame, list[Problem]]:
        return self._read("metrics")

    @functools.cached_property
    def _examples(self) -> tuple[pd.DataFrame, list[Problem]]:
        return self._read("examples")

    def _read(self, table: str) -> tuple[pd.DataFrame, list[Problem]]:
        contents, problems = [], self._missing(table)
        if self._strict and problems:
            raise RunError(problems[0].message, remedy=problems[0].remedy)
        for _, path in tables.parts(self.path / table):
            try:
                content = tables.read_part(self.path, path, table)
                self._check_seal(f"{table}/{path.name}", path)
                contents.append(content)
            except RunError as error:
                if self._strict:
                    raise
                problems.append(problem_of(path, error))
        return tables.join_parts(table, contents), problems

    def _check_seal(self, name: str, path: Path) -> None:
        """Refuse a part that is not the one a finished run was sealed with: a changed bit may be another accuracy."""
        sealed = self.manifest.get("parts")
        if isinstance(sealed, dict) and name in sealed and digest_file(inside(self.path, path)) != sealed[name]:
            raise RunError(f"{path} does not match its checksum in the manifest", remedy=PART_REMEDY)

    def _missing(self, table: str) -> list[Problem]:
        """Name the parts that a finished run was sealed with and that are no longer there."""
        sealed = self.manifest.get("parts")
        present = {f"{table}/{path.name}" for _, path in tables.parts(self.path / table)}
        listed = sorted(sealed) if isinstance(sealed, dict) else []
        file = self.path / "manifest.json"
        return [
            Problem(
                str(file),
                f"{file} lists the part {name!r}, which is missing.",
                PART_REMEDY,
            )
            for name in listed
            if name.startswith("examples/") == (table == "examples") and name not in present
        ]


def open_run(path: str | Path, *, strict: bool = False) -> Run:
    """Open one saved run. Needs no torch.

    Args:
        path: The directory that holds manifest.json.
        strict: Raise at the first part that cannot be read, instead of listing it in `problems`.

    Returns:
        The run; its tables are read when they are asked for.

    Raises:
        RunError: No run there, or a manifest that is damaged or of a newer noisesam.

    Example:
        >>> open_run("no/such/place")
        Traceback (most recent call last):
            ...
        noisesam.errors.RunError: no/such/place does not exist. Expected the directory of a run. Check the path.
    """
    root = Path(path)
    try:
        return _opened(root, strict=strict)
    except PermissionError as error:
        raise cannot_read(root, error) from error


def _opened(root: Path, *, strict: bool) -> Run:
    if not root.exists():
        raise RunError(f"{root} does not exist", expected="the directory of a run", remedy="Check the path")
    if not root.is_dir():
        raise RunError(
            f"{root} is a file", expected="the directory of a run", remedy="Name the directory that holds manifest.json"
        )
    file = root / "manifest.json"
    if not file.exists() and not file.is_symlink():
        below = next(root.glob("*/manifest.json"), None)
        remedy = (
            "For a folder of runs: noisesam runs list, in Python open_runs"
            if below
            else "Name the directory that holds manifest.json"
        )
        raise RunError(f"{root} is not a run: it has no manifest.json", expected="the directory of a run", remedy=remedy)
    manifest = read_json(root, file, limit=MANIFEST_LIMIT)
    validate_manifest(manifest, file)
    _check_hashes(manifest, file)
    return Run(root, manifest, strict=strict)


def _check_hashes(manifest: dict[str, Any], file: Path) -> None:
    """Refuse a configuration that is not the one the run was made with: it would be another's seed, setting or rate."""
    identity = manifest.get("data_file")
    identity = identity if isinstance(identity, dict) else None
    for key, compute in (("configuration_hash", configuration_hash), ("setting_hash", setting_hash)):
        try:
            matches = compute(manifest["configuration"], identity) == manifest[key]
        except (TypeError, ValueError):
            matches = False
        if not matches:
            raise RunError(
                f"{file}: {key} does not match the configuration; one of them was changed",
                remedy="Restore the manifest from a copy of the run",
            )
