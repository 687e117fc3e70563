"""Many runs read as one table, each setting with a short label of what sets it apart."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from noisesam.errors import RunError
from noisesam.runs import tables
from noisesam.runs.files import cannot_read
from noisesam.runs.manifest import configuration_hash, flatten
from noisesam.runs.reader import Problem, Run, open_run, problem_of

RUN_COLUMNS = ["run", "method", "setting", "seed"]
_SHARED_SECTIONS = ("data", "noise", "model", "optimizer", "training")
_ABSENT = "absent"


class RunCollection:
    """Saved runs, in the order of their paths. Open them with `noisesam.open_runs`.

    Attributes:
        runs: The runs that could be opened.
    """

    def __init__(self, runs: Iterable[Run], problems: Iterable[Problem] = ()) -> None:
        self.runs = list(runs)
        self._problems = list(problems)
        self._settings = _labels(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __getitem__(self, position: int) -> Run:
        return self.runs[position]

    def __repr__(self) -> str:
        return f"RunCollection({len(self.runs)} runs, methods: {', '.join(self.methods) or 'none'})"

    @property
    def methods(self) -> list[str]:
        """The names of the methods, in order of appearance."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @property
    def problems(self) -> list[Problem]:
        """What could not be opened or read: whole runs first, then parts of runs."""
        return [*self._problems, *(problem for run in self.runs for problem in run.problems)]

    def setting(self, run: Run) -> str:
        """Return what sets the run's setting apart in this collection, such as "rho=0.1"; empty if nothing does."""
        return self._settings[run.setting_hash]

    @property
    def metrics(self) -> pd.DataFrame:
        """The tidy metrics of all runs: run, method, setting, seed, then the columns of `schema.METRICS_COLUMNS`."""
        return self._join("metrics")

    @property
    def examples(self) -> pd.DataFrame:
        """The tracked examples of all runs: run, method, setting, seed, then the columns of `schema.EXAMPLES_COLUMNS`."""
        return self._join("examples")

    def filter(
        self,
        where: Callable[[Run], bool] | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        **attributes: Any,
    ) -> RunCollection:
        """Return the runs that meet every condition; problems of runs that could not be opened go along.

        Args:
            where: A function of the run.
            config: Dotted key of the configuration -> value.
            **attributes: method, setting, seed, status, id: a value, or a list of which any will do.

        Raises:
            RunError: An attribute of another name.

        Example:
            >>> len(RunCollection([]).filter(method=["sgd", "1-sam"], seed=0))
            0
        """
        readers: dict[str, Callable[[Run], Any]] = {
            "method": lambda run: run.method,
            "setting": self.setting,
            "seed": lambda run: run.seed,
            "status": lambda run: run.status,
            "id": lambda run: run.id,
        }
        for name in attributes:
            if name not in readers:
                raise RunError(f"Runs cannot be filtered by {name!r}", expected=", ".join(readers), remedy="Use config={...}")

        def meets(run: Run) -> bool:
            if where is not None and not where(run):
                return False
            leaves = dict(flatten(run.manifest["configuration"])) if config else {}
            if any(leaves.get(key, _ABSENT) != value for key, value in (config or {}).items()):
                return False
            return all(_is_one_of(readers[name](run), wanted) for name, wanted in attributes.items())

        return RunCollection([run for run in self.runs if meets(run)], self._problems)

    def _join(self, table: str) -> pd.DataFrame:
        frames = []
        for run in self.runs:
            content = (run._metrics if table == "metrics" else run._examples)[0]
            front = {"run": run.id, "method": run.method, "setting": self.setting(run), "seed": run.seed}
            columns = [name for name in content.columns if name not in front]
            frames.append(content.assign(**front)[[*RUN_COLUMNS, *columns]])
        filled = [frame for frame in frames if len(frame)]
        if filled:
            return pd.concat(filled, ignore_index=True)
        if frames:
            return frames[0]
        blank = tables.empty(table)
        front = pd.DataFrame({name: pd.Series(dtype="int64" if name == "seed" else "str") for name in RUN_COLUMNS})
        return pd.concat([front, blank], axis=1)


def _is_one_of(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Collection) and not isinstance(wanted, str):
        return value in wanted
    return value == wanted


def _labels(runs: list[Run]) -> dict[str, str]:
    """Label every setting by the keys in which the settings of its method differ, or the experiments of the collection."""
    leaves = {run.setting_hash: _leaves(run) for run in runs}
    methods = {run.setting_hash: run.method for run in runs}
    shared = {key for key in _differing(list(leaves.values())) if key.split(".")[0] in _SHARED_SECTIONS}
    labels = {}
    for key, own in leaves.items():
        rivals = [leaves[other] for other in leaves if methods[other] == methods[key]]
        different = sorted(_differing(rivals) | shared)
        short = [name.rsplit(".", 1)[-1] for name in different]
        parts = []
        for name in different:
            if own.get(name) is None and name.split(".")[0] in _SHARED_SECTIONS:
                continue  # The others say what this one is without.
            brief = name.rsplit(".", 1)[-1]
            shown = brief if short.count(brief) == 1 and brief != "name" else name
            parts.append(f"{shown}={_show(own.get(name, _ABSENT))}")
        labels[key] = ", ".join(parts)
    return labels


def _leaves(run: Run) -> dict[str, Any]:
    configuration = {key: value for key, value in run.manifest["configuration"].items() if key != "seed"}
    leaves = dict(flatten(configuration))
    file = run.manifest.get("data_file")
    if isinstance(file, dict):
        leaves["data.sha256"] = str(file.get("sha256"))[:12]
    return leaves


def _differing(leaves: list[dict[str, Any]]) -> set[str]:
    keys = {key for own in leaves for key in own}
    return {key for key in keys if len({json.dumps(_whole(own.get(key, _ABSENT)), sort_keys=True) for own in leaves}) > 1}


def _show(value: Any) -> str:
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def open_runs(path: str | Path | Iterable[str | Path], *, strict: bool = False) -> RunCollection:
    """Open every run at or below one path or several. Needs no torch.

    A run that cannot be opened is listed in the collection's `problems`; the others load.

    Args:
        path: A run, a folder of runs at any depth, or several of either.
        strict: Raise at the first run or part that cannot be read.

    Returns:
        The runs in the order of their paths; of two runs with one configuration the finished or else the first.

    Raises:
        RunError: A path does not exist, or nothing below the paths is a run.

    Example:
        >>> open_runs("no/such/place")
        Traceback (most recent call last):
            ...
        noisesam.errors.RunError: no/such/place does not exist. Expected a run or a folder of runs. Check the path.
    """
    given = [Path(path)] if isinstance(path, (str, Path)) else [Path(item) for item in path]
    directories: dict[Path, Path] = {}
    closed: list[OSError] = []
    linked: list[Path] = []
    for root in given:
        if not root.exists():
            raise RunError(f"{root} does not exist", expected="a run or a folder of runs", remedy="Check the path")
        for directory in run_folders(root, closed.append, linked.append):
            directories.setdefault(directory.resolve(), directory)
    runs, problems = [], [_not_followed(folder) for folder in linked]
    for error in closed:  # what may lie in there is not known to be no run
        folder = Path(error.filename or given[0])
        if strict:
            raise cannot_read(folder, error) from error
        problems.append(problem_of(folder, cannot_read(folder, error)))
    for directory in directories.values():
        try:
            runs.append(open_run(directory, strict=strict))
        except RunError as error:
            if strict:
                raise
            problems.append(problem_of(directory / "manifest.json", error))
    if not runs and not problems:
        raise RunError(
            f"No run below {', '.join(map(str, given)) or 'no path'}",
            expected="a directory that holds manifest.json",
            remedy="Check the path",
        )
    kept, doubles = _without_doubles(runs)
    return RunCollection(kept, [*problems, *doubles])


def _not_followed(folder: Path) -> Problem:
    return Problem(
        str(folder), f"{folder} is a link to a run, and links below a folder are not followed.", "Name the run itself beside."
    )


def run_folders(
    root: Path, closed: Callable[[OSError], None], linked: Callable[[Path], None] = lambda _: None
) -> Iterator[Path]:
    """Yield the run itself, or the runs below a folder.

    Args:
        root: A run or a folder.
        closed: Told of every folder that may not be looked into.
        linked: Told of every link to a run, which is not followed.
    """
    if root.is_file():
        yield root.parent if root.name == "manifest.json" else root
        return
    for folder, below, files in os.walk(root, onerror=closed):
        here = Path(folder)
        headless = any(tables.parts(here / table) for table in tables.COLUMNS if table in below)
        if "manifest.json" in files or headless:
            below.clear()
            yield here
        below.sort()
        for link in (here / name for name in below):
            if link.is_symlink() and (link / "manifest.json").is_file():
                linked(link)


def _without_doubles(runs: list[Run]) -> tuple[list[Run], list[Problem]]:
    """Keep one run per configuration: a copy counted as another seed would make every interval too narrow."""
    chosen: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.status != "finished"):
        rival = next((chosen[name] for name in _names(run) if name in chosen), run)
        for name in _names(run):
            chosen.setdefault(name, rival)
    kept = [run for run in runs if chosen[run.id] is run]
    problems = [
        Problem(
            str(run.path / "manifest.json"),
            f"{run.path} holds the same run as {chosen[run.id].path} and is left out.",
            "Name only one of them.",
        )
        for run in runs
        if chosen[run.id] is not run
    ]
    return kept, problems


def _names(run: Run) -> tuple[str, str, str]:
    """By what a run is known: tables are joined by the id, which a stranger's manifest may share with another hash.

    A radius of 1 and one of 1.0 have two hashes, and are one run.
    """
    identity = run.manifest.get("data_file") if isinstance(run.manifest.get("data_file"), dict) else None
    return run.id, run.manifest["configuration_hash"], configuration_hash(_whole(run.manifest["configuration"]), identity)


def _whole(value: Any) -> Any:
    """Return the same with whole numbers written as such."""
    if isinstance(value, Mapping):
        return {key: _whole(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
