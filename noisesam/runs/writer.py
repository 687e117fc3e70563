"""Writing a run so that a process killed at any moment leaves a readable one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from noisesam.errors import RunError
from noisesam.runs import tables
from noisesam.runs.checkpoints import checkpoint_files, checkpoint_paths, committed_steps
from noisesam.runs.checks import validate_manifest
from noisesam.runs.files import (
    LOCK_NAME,
    MANIFEST_LIMIT,
    TEMPORARY_PREFIX,
    Lock,
    cannot_write,
    digest,
    digest_file,
    read_json,
    remove,
    remove_temporaries,
    write_atomically,
)
from noisesam.runs.manifest import (
    build_manifest,
    configuration_hash,
    differing_keys,
    now,
    portable_configuration,
    without_places,
)
from noisesam.runs.schema import SCHEMA_VERSION


class RunWriter:
    """Write one run: rows are gathered by `add_metrics` and `add_examples`, and reach the disk at `flush`.

    Every file is written beside its place, forced to the disk and renamed. A part is named after the step of its flush, so a
    resumed run that flushes at the same steps replaces its parts and doubles nothing. Create it by `create` or `resume`.

    Example:
        >>> import tempfile
        >>> from noisesam.runs import open_run
        >>> row = {"step": 0, "epoch": 0.0, "split": "test", "group": "all", "metric": "accuracy", "value": 0.1}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = RunWriter.create(Path(folder) / "a", config={"method": {"name": "sgd"}, "seed": 0}, seeds={"init": 1})
        ...     writer.add_metrics([row])
        ...     writer.flush(0)
        ...     writer.finish()
        ...     open_run(Path(folder) / "a").status
        'finished'
    """

    def __init__(self, path: Path, manifest: dict[str, Any], lock: Lock) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._waiting: dict[str, list[pd.DataFrame]] = {"metrics": [], "examples": []}

    @property
    def status(self) -> str:
        """One of running, finished, failed."""
        return self.manifest["status"]

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        config: Any,
        seeds: Mapping[str, int],
        noise: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        data_file: Path | None = None,
        gpu: str | None = None,
        gpu_count: int = 0,
    ) -> RunWriter:
        """Begin a run in a new or empty directory.

        Args:
            path: Directory of the run; its parents are made.
            config: See `build_manifest`, as for the arguments that follow.
            seeds: Purpose -> seed.
            noise: What the noise model states; None without noise.
            data: Sizes: train, validation, test, probe (examples), classes, input_shape.
            data_file: Place of the user's own data file, if `data.name` alone does not tell it.
            gpu: Model of the accelerator.
            gpu_count: How many of them.

        Returns:
            The writer; the manifest is on disk with the status running.

        Raises:
            RunError: The directory holds a run (of this or another configuration) or other files, or cannot be written.
        """
        root = Path(path)
        manifest = build_manifest(
            config, seeds=seeds, noise=noise, data=data, data_file=data_file, gpu=gpu, gpu_count=gpu_count
        )
        if (root / "manifest.json").exists():
            _refuse_other(root, _read(root), config, data_file)
            raise RunError(
                f"{root} already holds this run",
                remedy="Resume it, or choose another directory, or delete this one; if another process writes it, wait",
            )
        _refuse_foreign(root)
        lock = _lock(root)
        remove_temporaries(root)
        writer = cls(root, manifest, lock)
        writer._write_manifest()
        return writer

    @classmethod
    def resume(cls, path: str | Path, *, config: Any, data_file: Path | None = None) -> RunWriter:
        """Go on with the run of this very configuration that the directory holds.

        What a killed writer left unfinished is removed; parts and checkpoints stay as they are.

        Raises:
            RunError: No run, or one of another configuration, or one written by a newer noisesam; or it cannot be written.
        """
        root = Path(path)
        stored = _read(root)
        _refuse_other(root, stored, config, data_file)
        lock = _lock(root)
        remove_temporaries(root)
        for orphan in checkpoint_files(root):
            if orphan.suffix == ".safetensors" and not orphan.with_suffix(".json").exists():
                remove(orphan)  # Its commit marker was never written.
        writer = cls(root, stored, lock)
        if writer.status != "finished":
            writer._set_status("running", "")
        return writer

    def add_metrics(self, rows: Iterable[Mapping[str, Any]] | Mapping[str, Any] | pd.DataFrame) -> None:
        """Gather rows of the metrics table: an iterable of rows, a mapping of columns, or a frame.

        Raises:
            InputError: A documented column is missing or of a wrong type.
        """
        self._waiting["metrics"].append(tables.as_frame("metrics", rows))

    def add_examples(self, columns: Iterable[Mapping[str, Any]] | Mapping[str, Any] | pd.DataFrame) -> None:
        """Gather rows of the examples table: a mapping of columns, an iterable of rows, or a frame.

        Raises:
            InputError: A documented column is missing or of a wrong type.
        """
        self._waiting["examples"].append(tables.as_frame("examples", columns))

    def flush(self, step: int) -> None:
        """Write the gathered rows as the parts of this step; a table without rows gets no part.

        Where the part is there already (a resumed run, or a second flush at the same step) its other rows stay: a row is
        replaced only by one about the same thing.

        Raises:
            RunError: The part could not be written; the rows are kept, so that the flush can be repeated.
        """
        for table, waiting in self._waiting.items():
            frames = [frame for frame in waiting if len(frame)]
            if frames:
                path = self.path / table / tables.part_name(step)
                with contextlib.suppress(RunError):  # None there, or damaged: then the rows stand alone.
                    frames.insert(0, tables.read_part(self.path, path, table).to_pandas(ignore_metadata=True))
                joined = pd.concat(frames, ignore_index=True).drop_duplicates(tables.KEYS[table], keep="last")
                write_atomically(path, tables.to_parquet(table, joined))
            waiting.clear()

    def write_checkpoint(self, step: int, payload: bytes, state: Mapping[str, Any]) -> None:
        """Write a checkpoint: tensors as safetensors bytes first, then the .json that commits them.

        Args:
            step: Optimizer steps taken.
            payload: The bytes of a .safetensors file.
            state: Everything else that resuming needs, JSON values only.

        Raises:
            RunError: It could not be written, or `state` is no JSON; earlier checkpoints are intact.
        """
        try:
            commit = {
                "schema_version": SCHEMA_VERSION,
                "step": step,
                "sha256": digest(payload),
                "bytes": len(payload),
                "state": dict(state),
            }
            marker = json.dumps(commit, sort_keys=True).encode()
        except (TypeError, ValueError) as error:
            raise RunError(
                f"The state of the checkpoint at step {step} cannot be written as JSON ({error})",
                expected="strings, numbers, lists and tables",
                remedy="Put arrays into the payload",
            ) from error
        tensors, state_path = checkpoint_paths(self.path, step)
        if state_path.exists() and (not tensors.is_file() or digest_file(tensors) != commit["sha256"]):
            remove(state_path)  # Never a moment in which an old marker vouches for a new payload.
        write_atomically(tensors, payload)
        write_atomically(state_path, marker)

    def prune(self, keep: int) -> None:
        """Delete all but the `keep` newest checkpoints; 0 keeps all."""
        if keep <= 0:
            return
        for step in committed_steps(self.path)[:-keep]:
            tensors, state_path = checkpoint_paths(self.path, step)
            remove(state_path)  # The marker first: a payload alone is no checkpoint.
            remove(tensors)

    def finish(self) -> None:
        """Mark the run as finished and seal it: the manifest then holds the SHA-256 of every part.

        Raises:
            RunError: Rows are waiting for a flush, or the manifest could not be written.
        """
        if any(len(frame) for frames in self._waiting.values() for frame in frames):
            raise RunError("The run has rows that were not flushed", remedy="Call flush(step) before finish()")
        parts = [path for table in tables.COLUMNS for _, path in tables.parts(self.path / table)]
        self.manifest["parts"] = {path.relative_to(self.path).as_posix(): digest_file(path) for path in parts}
        self._set_status("finished", "")
        self._lock.release()

    def fail(self, message: str) -> None:
        """Mark the run as failed, with the reason; paths in the message are cut to their last part.

        Raises:
            RunError: The manifest could not be written.
        """
        try:
            self._set_status("failed", without_places(message))
        finally:
            self._lock.release()

    def close(self) -> None:
        """Let go of the run without a verdict; it stays `running` and can be resumed."""
        self._lock.release()

    def _set_status(self, status: str, message: str) -> None:
        self.manifest["status"], self.manifest["message"] = status, message
        self.manifest["times"] = {**self.manifest["times"], "finished": None if status == "running" else now()}
        if status != "finished":
            self.manifest.pop("parts", None)
        self._write_manifest()

    def _write_manifest(self) -> None:
        text = json.dumps(self.manifest, indent=2, allow_nan=False) + "\n"
        write_atomically(self.path / "manifest.json", text.encode())


def _read(root: Path) -> dict[str, Any]:
    path = root / "manifest.json"
    if not path.exists():
        raise RunError(f"{root} is not a run", expected="a directory with a manifest.json", remedy="Start the run anew")
    manifest = read_json(root, path, limit=MANIFEST_LIMIT)
    validate_manifest(manifest, path)
    return manifest


def _refuse_other(root: Path, stored: Mapping[str, Any], config: Any, data_file: Path | None) -> None:
    configuration, identity = portable_configuration(config, data_file=data_file)
    theirs, ours = stored["configuration_hash"], configuration_hash(configuration, identity)
    if theirs == ours:
        return
    keys = differing_keys(
        {**stored["configuration"], "data file": stored.get("data_file")}, {**configuration, "data file": identity}
    )
    raise RunError(
        f"{root / 'manifest.json'} holds another configuration "
        f"({theirs[:12]}, here {ours[:12]}; {keys or 'the stored hash was changed'})",
        expected="one directory per configuration",
        remedy="Choose another directory, or delete this one",
    )


def _refuse_foreign(root: Path) -> None:
    try:
        names = [path.name for path in root.iterdir()] if root.exists() else []
    except OSError as error:
        raise cannot_write(root, error) from error
    foreign = sorted(name for name in names if name != LOCK_NAME and not name.startswith(TEMPORARY_PREFIX))
    if foreign:
        raise RunError(
            f"{root} is not empty and not a run (it holds {foreign[0]!r})",
            expected="a new or empty directory",
            remedy="Choose another directory",
        )


def _lock(root: Path) -> Lock:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(root, error) from error
    return Lock(root / LOCK_NAME)
