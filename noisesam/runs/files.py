"""Writing so that nothing is ever half there, and reading so that nothing outside the run is ever touched."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from noisesam.errors import RunError

TEMPORARY_PREFIX = ".tmp-"
"""Files of this prefix are unfinished writes: readers do not see them, resuming removes them."""

LOCK_NAME = ".lock"
MANIFEST_LIMIT = 16 * 2**20
"""Bytes; a manifest of an honest run takes a few kilobytes."""
STATE_LIMIT = 64 * 2**20
"""Bytes of the .json beside a checkpoint; arrays belong into the .safetensors file."""

_REMEDIES = {
    errno.ENOSPC: "Free some space and resume the run; everything written before is intact",
    errno.EDQUOT: "Free some of your quota and resume the run; everything written before is intact",
    errno.EACCES: "Choose a directory that you may write to, or change its permissions",
    errno.EPERM: "Choose a directory that you may write to, or change its permissions",
    errno.EROFS: "Choose a directory on a file system that is not read-only",
    errno.ENOTDIR: "Choose a path of which no part is a file",
    errno.EEXIST: "Choose a path of which no part is a file",
}


def cannot_write(path: Path, error: OSError) -> RunError:
    """Turn an operating-system error into one message that names the file and the way out."""
    reason = error.strerror or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "Repair the cause and resume the run; everything written before is intact")
    return RunError(f"{path} cannot be written: {reason}", remedy=remedy)


def cannot_read(path: Path, error: OSError) -> RunError:
    """Build the error of something that is there and that this user may not read."""
    reason = error.strerror or type(error).__name__
    return RunError(f"{path} cannot be read: {reason}", remedy="Change its permissions, or those of the folder it lies in")


def _write(handle: BinaryIO, data: bytes) -> None:
    handle.write(data)
    handle.flush()
    os.fsync(handle.fileno())


def _sync_directory(directory: Path) -> None:
    # The rename itself is durable only once the directory is; not every file system lets one open a directory.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: whoever reads it sees the old bytes or the new ones, never a mixture.

    The bytes go to a temporary file in the same folder, are forced to the disk, and are renamed.

    Raises:
        RunError: The bytes could not be written; the old file is as it was and no temporary file is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.json", b"{}")
        ...     (Path(folder) / "a.json").read_bytes()
        b'{}'
    """
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            _write(handle, data)
        os.replace(temporary, path)  # noqa: PTH105 - one name for the one call that commits
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Delete a file if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def remove_temporaries(root: Path) -> None:
    """Delete what a killed writer left unfinished, in the run's own folders only."""
    for folder in (root, root / "metrics", root / "examples", root / "checkpoints"):
        if folder.is_dir() and not folder.is_symlink():
            for leftover in folder.glob(TEMPORARY_PREFIX + "*"):
                remove(leftover)


def digest(data: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", remedy="Check that the file is there") from error


def digest_data(path: Path) -> str:
    """Return the SHA-256 of a data file, or of the names and contents of the tables and arrays in a folder."""
    if not path.is_dir():
        return digest_file(path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".npy", ".csv"))
    return digest("".join(f"{digest_file(file)}  {file.name}\n" for file in files).encode())


def inside(root: Path, path: Path) -> Path:
    """Return `path` if it is a regular file inside `root` once every link is followed.

    A run may come from a stranger; a link in it must not make us read another file of this machine.
    """
    try:
        real, base = path.resolve(strict=True), root.resolve(strict=True)
    except PermissionError as error:
        raise cannot_read(path, error) from error
    except (OSError, RuntimeError) as error:
        raise RunError(f"{path} is missing", remedy="Copy the run again in full, or delete the part's name") from error
    if not real.is_relative_to(base):
        raise RunError(
            f"{path} is a link to a file outside the run",
            expected="every file of a run to lie inside its folder",
            remedy="Replace the link by a copy of the file, if you trust where it points",
        )
    if not real.is_file():
        raise RunError(f"{path} is not a regular file", remedy="Delete it, or copy the run again")
    return real


def read_bytes(root: Path, path: Path, *, limit: int | None = None) -> bytes:
    """Read a file of the run `root`, refusing links that leave it and files above `limit` bytes."""
    real = inside(root, path)
    try:
        size = real.stat().st_size
        if limit is not None and size > limit:
            raise RunError(f"{path} has {size} bytes", expected=f"at most {limit}", remedy="Copy the run again")
        return real.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", remedy="Check the permissions") from error


def read_json(root: Path, path: Path, *, limit: int) -> dict[str, Any]:
    """Read a JSON object of the run `root`; anything else is a `RunError` that names the file."""
    data = read_bytes(root, path, limit=limit)
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is not valid JSON ({type(error).__name__})",
            remedy=f"Restore {path.name} from a copy of the run, or delete the run and train it again",
        ) from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds {type(content).__name__}", expected="a JSON object", remedy="Restore it from a copy")
    return content


class Lock:
    """One writer per run: a record lock that the operating system drops when the process ends, killed or not."""

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            import fcntl

            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # No record locks on this platform.
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                raise RunError(
                    f"Another process is writing the run {path.parent}",
                    expected="one writer per run",
                    remedy="Wait for it, or choose another directory",
                ) from error
            # A file system without locks: the run is written all the same.
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the run free for another process."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
