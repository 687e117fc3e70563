"""A sweep from its TOML file: what is understood is stated here, and everything else is refused with its key.

title, expectation, decision     texts, all three mandatory: what is asked, what is expected, the rule that decides
seeds = [0, 1, 2]
[run.<section>]                  a configuration as `noisesam train` reads it, without method and seed
[grid]                           methods = [...], "section.key" = [...]: every combination is a point
[[points]]                       label = "...", "section.key" = value: points of their own, or times the grid
[calibration]                    tuning_seeds = [...]
[calibration.methods.<method>]   grid = [{ rho = 0.05 }, ...] and fixed hyper-parameters beside it

Keys of the configuration may be quoted ("noise.rate") or not (noise.rate).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisesam.errors import ConfigurationError, nearest_name
from noisesam.experiments.calibration import CalibrationPlan
from noisesam.experiments.sweeps import Point, Sweep
from noisesam.toml_text import parse_toml
from noisesam.training import config_to_dict

TEXTS = ("title", "expectation", "decision")
KEYS = (*TEXTS, "seeds", "run", "grid", "points", "calibration")
_FILE_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep and every configuration in it, without loading torch.

    Args:
        path: The TOML file.

    Returns:
        The sweep, named after the file.

    Raises:
        ConfigurationError: The file is missing or no TOML, says something that is not understood, leaves out title,
            expectation or decision, or states a configuration that `load_config` refuses.

    Example:
        >>> import tempfile
        >>> text = '''
        ... title = "Digits"
        ... expectation = "1-SAM is above SGD at the last epoch."
        ... decision = "Supported if the 95% interval of the difference, paired by seed, is above zero."
        ... seeds = [0, 1, 2]
        ... [run.noise]
        ... kind = "symmetric"
        ... [grid]
        ... methods = ["sgd", "1-sam"]
        ... "noise.rate" = [0.2, 0.4]
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "digits.toml").write_text(text)
        ...     [point.label for point in read_sweep(Path(folder) / "digits.toml").points]
        ['sgd-rate0.2', 'sgd-rate0.4', '1-sam-rate0.2', '1-sam-rate0.4']
    """
    place = Path(path)
    data = _read(place)
    _refuse_unknown(place.name, data, KEYS)
    for key in TEXTS:
        if not isinstance(data.get(key), str) or not data[key].strip():
            raise ConfigurationError(
                f"{place.name} without {key}" if key not in data else f"{key} in {place.name}",
                expected="title, expectation and decision as text: an experiment is stated before it is run",
            )
    seeds = read_seeds(place.name, "seeds", data.get("seeds"))
    plan = _calibration(place.name, data.get("calibration"))
    if plan is not None and set(plan.tuning_seeds) & set(seeds):
        raise ConfigurationError(
            f"seeds and calibration.tuning_seeds of {place.name} overlap", expected="seeds that chose nothing"
        )
    sweep = Sweep(
        name=place.stem,
        title=data["title"].strip(),
        expectation=data["expectation"].strip(),
        decision=data["decision"].strip(),
        run=read_setting(place.name, data.get("run", {})),
        points=_points(place.name, data),
        seeds=seeds,
        calibration=plan,
    )
    _check(place.name, sweep)
    return sweep


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"Cannot read {path}: {error.strerror}", expected="a sweep file", remedy="See experiments/ for examples"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path.name} is not TOML: {error}", expected="a sweep file") from error
    return parse_toml(text, given=path.name, expected="a sweep file")


def _refuse_unknown(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            close = nearest_name(key, known)
            raise ConfigurationError(
                f"Unknown key {key!r} in {where}",
                expected="one of: " + ", ".join(known),
                remedy=f"Did you mean {close!r}?" if close else "",
            )


def read_seeds(file: str, key: str, given: Any) -> tuple[int, ...]:
    """Return the seeds that a file states under this key."""
    whole = isinstance(given, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in given)
    if not whole or not given or len(set(given)) < len(given):
        raise ConfigurationError(
            f"{file} without {key}" if given is None else f"{key} = {given!r} in {file}",
            expected="a list of different whole numbers, such as [0, 1, 2]",
        )
    return tuple(given)


def read_setting(file: str, run: Any) -> dict[str, Any]:
    """Return the sections of a configuration, without a method and a seed."""
    if not isinstance(run, dict):
        raise ConfigurationError(f"run = {run!r} in {file}", expected="sections [run.data], [run.training], ...")
    for key in ("method", "seed"):
        if key in run:
            raise ConfigurationError(
                f"run.{key} in {file}",
                expected="a setting without method and seed",
                remedy="Write seeds = [...] at the top, and methods or method.* in [grid] or [[points]]",
            )
    return run


def _points(file: str, data: Mapping[str, Any]) -> tuple[Point, ...]:
    """Every combination of the stated points with those of the grid."""
    stated, grid = data.get("points", []), data.get("grid", {})
    if not isinstance(stated, list) or not all(isinstance(one, dict) for one in stated):
        raise ConfigurationError(f"points in {file}", expected='[[points]] tables with label = "..."')
    if not isinstance(grid, dict) or not (stated or grid):
        raise ConfigurationError(f"{file} without points", expected="a section [grid], or [[points]]")
    own = [_stated(file, number, one) for number, one in enumerate(stated)]
    axes = _axes(file, grid)
    points = []
    for label, values in own or [("", {})]:
        for combination in itertools.product(*axes):
            parts = [label, *(part for part, _ in combination)]
            merged = dict(values)
            for _, change in combination:
                if shared := set(change) & set(values):
                    raise ConfigurationError(
                        f"{shared.pop()} in {file} stands in [grid] and in [[points]]", expected="one place"
                    )
                merged |= change
            points.append(Point("-".join(part for part in parts if part), merged))
    return tuple(points)


def _stated(file: str, number: int, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Label and values of one [[points]] table."""
    label = given.get("label")
    if not isinstance(label, str) or not _FILE_SAFE.fullmatch(label):
        raise ConfigurationError(
            f"points[{number}].label = {label!r} in {file}",
            expected="letters, digits and . _ + - only: folders are named so",
        )
    return label, _dotted({key: value for key, value in given.items() if key != "label"})


def _axes(file: str, grid: Mapping[str, Any]) -> list[list[tuple[str, dict[str, Any]]]]:
    """For each key of the grid its values, each with its part of the label; the only value of a key needs none."""
    axes = []
    for key, values in _dotted(grid).items():
        name = "method.name" if key == "methods" else key
        if not isinstance(values, list) or not values:
            raise ConfigurationError(f"grid.{key} = {values!r} in {file}", expected="a list of values")
        several = len(values) > 1 or name == "method.name"
        parts = [_part(name, number, value) if several else "" for number, value in enumerate(values)]
        axes.append([(part, {name: value}) for part, value in zip(parts, values, strict=True)])
    return axes


def _dotted(given: Mapping[str, Any]) -> dict[str, Any]:
    """Accept section.key = value with and without quotes: without, TOML hands over a table of the section."""
    result = {}
    for key, value in given.items():
        if isinstance(value, Mapping) and "." not in key:
            result |= {f"{key}.{inner}": one for inner, one in value.items()}
        else:
            result[key] = value
    return result


def _part(key: str, number: int, value: Any) -> str:
    """What a value adds to the label of its point: itself, with the last part of its key unless it is a name."""
    last = key.rpartition(".")[2]
    if isinstance(value, Mapping):
        return f"{last}{number}"
    if isinstance(value, bool):
        return last if value else f"no-{last}"
    if isinstance(value, list):
        return last + "x".join(_safe(one) for one in value)
    return _safe(value) if isinstance(value, str) else f"{last}{_safe(value)}"


def _safe(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text)


def _calibration(file: str, given: Any) -> CalibrationPlan | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ConfigurationError(f"calibration in {file}", expected="a section [calibration]")
    _refuse_unknown(f"[calibration] of {file}", given, ("tuning_seeds", "methods"))
    seeds = read_seeds(file, "calibration.tuning_seeds", given.get("tuning_seeds"))
    methods = given.get("methods", {})
    if not isinstance(methods, dict):
        raise ConfigurationError(
            f"calibration.methods = {methods!r} in {file}",
            expected="sections [calibration.methods.<method>], each with its grid = [{ rho = 0.05 }, ...]",
        )
    grids, fixed = {}, {}
    for method, stated in methods.items():
        grid = stated.get("grid", [{}]) if isinstance(stated, dict) else None
        if not isinstance(grid, list) or not grid or not all(isinstance(one, dict) for one in grid):
            raise ConfigurationError(
                f"calibration.methods.{method}.grid in {file}",
                expected="a list of tables of hyper-parameters, such as [{ rho = 0.05 }, { rho = 0.1 }]",
            )
        grids[method] = tuple(grid)
        fixed[method] = {key: value for key, value in stated.items() if key != "grid"}
    if not grids:
        raise ConfigurationError(f"[calibration] of {file} without methods", expected="[calibration.methods.<method>] sections")
    return CalibrationPlan(seeds, grids, fixed)


def _check(file: str, sweep: Sweep) -> None:
    """Refuse points without a method, two of one label or of one run, and what `load_config` refuses."""
    labels: set[str] = set()
    runs: dict[str, str] = {}
    for point in sweep.points:
        if not isinstance(point.values.get("method.name"), str):
            raise ConfigurationError(
                f"The point {point.label!r} of {file} has no method",
                expected='methods = ["sgd", "1-sam"] in [grid], or "method.name" in [[points]]',
            )
        if point.label.lower() in labels:
            raise ConfigurationError(f"Two points of {file} have the label {point.label!r}", expected="different labels")
        labels.add(point.label.lower())
        if "seed" in point.values:
            raise ConfigurationError(
                f"A point of {file} has a seed", expected="seeds = [...] at the top, the same for all points"
            )
        plan = sweep.calibration
        options = plan.tried(point.method, 0) if plan is not None and point.method in plan.grids else {}
        meaning = json.dumps(config_to_dict(sweep.config(point, sweep.seeds[0], options=options)), sort_keys=True)
        if meaning in runs:
            raise ConfigurationError(
                f"The points {runs[meaning]!r} and {point.label!r} of {file} are the same runs", expected="different points"
            )
        runs[meaning] = point.label
    for method in sweep.calibration.grids if sweep.calibration is not None else ():
        if method not in sweep.methods:
            raise ConfigurationError(
                f"calibration.methods.{method} of {file}, but no point has that method",
                expected="one of: " + ", ".join(sweep.methods),
                remedy="Write one name in both places, as `noisesam methods` lists it",
            )
