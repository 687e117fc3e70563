"""Looking at every byte of a saved run."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd

from noisesam.errors import RunError
from noisesam.runs import tables
from noisesam.runs.checkpoints import checkpoint_files, checkpoint_paths, read_payload
from noisesam.runs.reader import Problem, Run, open_run, problem_of
from noisesam.runs.schema import GROUPS, SPLITS

_MISSING_REMEDY = "Restore the missing part from a copy of the run, or delete the run and train it again."


def verify(path: str | Path) -> list[Problem]:
    """Check a saved run in full: manifest and hashes, every part, every checkpoint, and that no stretch is missing.

    Args:
        path: The directory of the run.

    Returns:
        What is wrong, with its file and remedy; empty if nothing is.

    Example:
        >>> [problem.message for problem in verify("no/such/place")]
        ['no/such/place does not exist. Expected the directory of a run.']
    """
    root = Path(path)
    try:
        run = open_run(root)
    except RunError as error:
        return [problem_of(root / "manifest.json", error)]
    return [*_parts(run), *_rows(run), *_gaps(run), *_checkpoints(run)]


def _parts(run: Run) -> list[Problem]:
    problems = run.problems
    broken = {problem.file for problem in problems}
    sealed = run.manifest.get("parts", {})
    sealed = sealed if isinstance(sealed, dict) else {}
    present = {f"{table}/{path.name}": path for table in tables.COLUMNS for _, path in tables.parts(run.path / table)}
    for name, path in present.items():
        if str(path) in broken:
            continue
        if run.status == "finished" and name not in sealed:
            problems.append(Problem(str(path), f"{path} was added after the run had finished.", "Delete it."))
    return problems


def _rows(run: Run) -> list[Problem]:
    """Check that each part holds only rows of its own stretch, and only splits and groups of the schema."""
    problems = []
    for table in tables.COLUMNS:
        before = -1
        for step, path in tables.parts(run.path / table):
            try:
                steps = tables.read_part(run.path, path, table).column("step").to_pandas()
            except RunError:
                before = step
                continue
            if len(steps) and (steps.max() > step or steps.min() < before):
                span = f"steps {steps.min()} to {steps.max()}"
                message = f"{path} holds {span}, outside its stretch from {max(before, 0)} to {step}."
                problems.append(Problem(str(path), message, "Restore the part from a copy of the run."))
            before = step
    for column, known in (("split", SPLITS), ("group", GROUPS)):
        unknown = sorted(set(run.metrics[column].unique()) - set(known))
        if unknown:
            message = f"{run.path / 'metrics'} holds the {column} {unknown[0]!r}. Expected one of: {', '.join(known)}."
            problems.append(Problem(str(run.path / "metrics"), message, "Write the run again with this version of noisesam."))
    return problems


def missing_before(run: Run, step: int, epoch: float) -> list[Problem]:
    """Say what of a run's tables, up to a checkpoint, cannot be read or is not there: going on would leave a hole.

    Args:
        run: An unfinished run.
        step: Steps taken at the checkpoint.
        epoch: The same in passes over the training set.
    """
    problems = []
    for table in tables.COLUMNS:
        for flushed, path in tables.parts(run.path / table):
            if flushed <= step:
                try:
                    tables.read_part(run.path, path, table)
                except RunError as error:
                    problems.append(problem_of(path, error))
    return problems or _without_evaluation(run, epoch)


def _without_evaluation(run: Run, until: float) -> list[Problem]:
    """Check that every evaluation that was due up to an epoch is there."""
    every, times, folder = _evaluations(run)
    due = [] if every is None else [every * k for k in range(int(until / every + 1e-6) + 1)]
    missing = [epoch for epoch in due if not any(abs(epoch - time) < 1e-6 for time in times)]
    if not missing:
        return []
    message = f"{folder} has no evaluation at epoch {missing[0]:g}; one is due every {every:g}."
    return [Problem(str(folder), message, _MISSING_REMEDY)]


def _evaluations(run: Run) -> tuple[float | None, list[float], Path]:
    """Return the epochs between evaluations as configured, the epochs at which there was one, and where they lie."""
    metrics = run.metrics
    chosen = (metrics["metric"] == "accuracy") & (metrics["group"] == "all")
    times = pd.Series(metrics.loc[chosen, "epoch"].unique()).sort_values().tolist()
    return _number(run.manifest["configuration"], "tracking", "evaluate_every"), times, run.path / "metrics"


def _gaps(run: Run) -> list[Problem]:
    """Check that evaluations follow each other as the configuration says, to the end of a finished run."""
    every, times, folder = _evaluations(run)
    epochs = _number(run.manifest["configuration"], "training", "epochs")
    if every is None or not times:
        return []
    ends = [*times, epochs] if run.status == "finished" and epochs is not None else times
    return [
        Problem(
            str(folder),
            f"{folder} has no evaluation between the epochs {first:g} and {second:g}; one is due every {every:g}.",
            _MISSING_REMEDY,
        )
        for first, second in itertools.pairwise(ends)
        if second - first > every + 1e-6
    ]


def _number(config: dict, section: str, key: str) -> float | None:
    part = config.get(section)
    value = part.get(key) if isinstance(part, dict) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _checkpoints(run: Run) -> list[Problem]:
    problems = []
    for step in run.checkpoint_steps:
        try:
            read_payload(run.path, step)
        except RunError as error:
            problems.append(problem_of(checkpoint_paths(run.path, step)[0], error))
    for path in checkpoint_files(run.path):
        partner = path.with_suffix(".json" if path.suffix == ".safetensors" else ".safetensors")
        if not partner.exists():
            message = f"{path} has no {partner.name} beside it: the checkpoint was not committed."
            problems.append(Problem(str(path), message, "Resume the run, or delete the file."))
    return problems
