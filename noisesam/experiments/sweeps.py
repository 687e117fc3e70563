"""A sweep: one setting, the points of a grid, seeds, and what is expected of them, stated before anything is run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisesam.errors import ConfigurationError
from noisesam.experiments.calibration import CalibrationPlan, Choice, Try
from noisesam.experiments.calibration_table import Calibration
from noisesam.experiments.jobs import Job
from noisesam.experiments.selection import chosen_by_validation
from noisesam.training import Config, load_config


@dataclass(frozen=True)
class Point:
    """One point of a sweep: what it changes in the setting, by dotted keys of the configuration."""

    label: str
    """Fit for a file name, and of no other point of the sweep."""
    values: dict[str, Any]

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.values["method.name"])


@dataclass(frozen=True)
class Sweep:
    """A setting, the points that are put in it, and the seeds; from a file by `read_sweep`.

    Example:
        >>> points = (Point("sgd", {"method.name": "sgd"}), Point("1-sam", {"method.name": "1-sam", "method.rho": 0.1}))
        >>> sweep = Sweep("a", "A", "1-SAM is above SGD", "paired by seed", {"training": {"epochs": 3}}, points, (0, 1))
        >>> [job.folder.name for job in sweep.jobs("runs")]
        ['sgd-seed0', '1-sam-seed0', 'sgd-seed1', '1-sam-seed1']
        >>> sweep.config(points[1], 4).method.hyperparameters
        {'rho': 0.1}
    """

    name: str
    """The file's name without its ending; the calibration table knows the sweep by it."""
    title: str
    expectation: str
    decision: str
    """The rule by which the runs decide; both texts are stated before the runs are made."""
    run: dict[str, Any]
    """The setting: a configuration without method and seed."""
    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    calibration: CalibrationPlan | None = None

    def config(self, point: Point, seed: int, *, options: Mapping[str, Any] | None = None) -> Config:
        """Return the configuration of one run.

        Args:
            point: A point; what it says stands above the options.
            seed: The root seed.
            options: Hyper-parameters of the method, usually those of its calibration.

        Raises:
            ConfigurationError: What `load_config` refuses.
        """
        chosen = {f"method.{key}": value for key, value in (options or {}).items()}
        return load_config({**with_values(self.run, chosen | point.values), "seed": seed})

    def jobs(self, folder: str | Path, calibration: Calibration | None = None) -> list[Job]:
        """Return every run, seed by seed, so that an interrupted sweep has complete seeds.

        Args:
            folder: Of the runs: each lies in <label>-seed<seed>.
            calibration: The table that holds what was chosen for each calibrated method.

        Raises:
            ConfigurationError: A method's choice is missing from the table, or was made for another setting or grid.
        """
        options = {method: self.options(method, calibration) for method in self.methods}
        return [
            Job(self.config(point, seed, options=options[point.method]), Path(folder) / f"{point.label}-seed{seed}")
            for seed in self.seeds
            for point in self.points
        ]

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods, in the order of the points."""
        return tuple(dict.fromkeys(point.method for point in self.points))

    def options(self, method: str, calibration: Calibration | None = None) -> dict[str, Any]:
        """Return the hyper-parameters that the calibration gives a method: none where it is not part of the plan.

        Raises:
            ConfigurationError: The choice is missing from the table, or was made for another setting or grid.
        """
        plan = self.calibration
        if plan is None or method not in plan.grids:
            return {}
        if plan.is_decided(method):
            return plan.tried(method, 0)
        return (calibration or Calibration()).options(self.name, method, plan.digest(self.run, method))

    def calibration_jobs(self, folder: str | Path) -> dict[tuple[str, int], list[Job]]:
        """Return the runs of every try, by method and number; methods with one try need none.

        No run depends on what is tracked, and no tracked quantity is needed to choose: nothing is tracked.

        Args:
            folder: Of the runs: each lies in <method>-<number>-seed<seed>.
        """
        plan = self.calibration
        if plan is None:
            return {}
        return {
            (method, number): [
                Job(
                    self.config(
                        Point(method, {"method.name": method, "tracking.probe_size": 0}),
                        seed,
                        options=plan.tried(method, number),
                    ),
                    Path(folder) / f"{method}-{number}-seed{seed}",
                )
                for seed in plan.tuning_seeds
            ]
            for method, grid in plan.grids.items()
            if not plan.is_decided(method)
            for number in range(len(grid))
        }

    def choices(self, folder: str | Path) -> list[Choice]:
        """Return what the runs of `calibration_jobs` choose, once they are made: one choice per method with several tries.

        Args:
            folder: Of those runs.

        Raises:
            ConfigurationError: The sweep has no calibration.
            RunError: No try of a method has finished.
        """
        plan, jobs = self.calibration, self.calibration_jobs(folder)
        if plan is None:
            raise ConfigurationError(f"{self.name!r} has no calibration", expected="a section [calibration] in its file")
        grids = {method: plan.grids[method] for method, _ in jobs}
        table = chosen_by_validation({place: [job.folder for job in own] for place, own in jobs.items()}, grids)
        found = []
        for method, grid in grids.items():
            rows = table[table["method"] == method].to_dict("records")
            tries = tuple(
                Try(options, float(row["validation_accuracy"]), float(row["best_epoch"]), bool(row["at_chance"]))
                for options, row in zip(grid, rows, strict=True)
            )
            taken = int(rows[0]["chosen"])
            options, digest = plan.tried(method, taken), plan.digest(self.run, method)
            found.append(Choice(self.name, method, options, plan.tuning_seeds, digest, tries, taken))
        return found

    def check(self) -> None:
        """Refuse names and hyper-parameters that no registry knows, before anything is trained. Loads torch.

        Raises:
            ConfigurationError: What `noisesam.training.validate` refuses.
        """
        from noisesam.training import validate

        plan = self.calibration
        for point in self.points:
            tried: list[dict[str, Any]] = [{}]
            if plan is not None and point.method in plan.grids:
                tried = [plan.tried(point.method, number) for number in range(len(plan.grids[point.method]))]
            for options in tried:
                validate(self.config(point, self.seeds[0], options=options))


def with_values(setting: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested setting with some values replaced, by dotted keys.

    Example:
        >>> with_values({"noise": {"rate": 0.3}}, {"noise.rate": 0.0, "model.options.hidden": [8]})
        {'noise': {'rate': 0.0}, 'model': {'options': {'hidden': [8]}}}
    """
    result = copy.deepcopy(dict(setting))
    for key, value in values.items():
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigurationError(f"{key}: {section} is a value, not a section", expected="section.key")
        place[last] = copy.deepcopy(value)
    return result
