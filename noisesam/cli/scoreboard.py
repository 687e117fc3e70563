"""`noisesam scoreboard EXPERIMENT.toml`: the whole family in one setting, tuned alike, measured for what it keeps of 1-SAM."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisesam.cli.console import print_json, print_table, records, say, say_path, warn
from noisesam.errors import ConfigurationError, RunError
from noisesam.toml_text import parse_toml

if TYPE_CHECKING:
    import pandas as pd

    from noisesam.experiments import Job
    from noisesam.training import Config

BASE, BEST = "sgd", "1-sam"
_SECTIONS = {"title", "expectation", "tuning_seeds", "seeds", "methods", "run"}


@dataclass(frozen=True)
class Entry:
    """A method of the experiment: what is fixed, and the values that are tried."""

    method: str
    fixed: dict[str, Any]
    grid: list[dict[str, Any]]

    def options(self, number: int) -> dict[str, Any]:
        """Return the hyper-parameters of one try."""
        return {**self.fixed, **self.grid[number]}


@dataclass(frozen=True)
class Experiment:
    """A setting, the methods with their grids, and the seeds; stated before anything is run."""

    title: str
    expectation: str
    run: dict[str, Any]
    entries: dict[str, Entry]
    tuning_seeds: list[int]
    seeds: list[int]

    def config(self, options: dict[str, Any], method: str, seed: int, overrides: tuple[str, ...] = ()) -> Config:
        """Return the configuration of one run."""
        from noisesam.training import load_config

        return load_config({**self.run, "method": {"name": method, **options}, "seed": seed}, overrides)

    def tuning_jobs(self, folder: Path) -> dict[tuple[str, int], list[Job]]:
        """Return the runs that choose between the tries of every method; methods with one try need none."""
        from noisesam.experiments import Job

        jobs: dict[tuple[str, int], list[Job]] = {}
        for label, entry in self.entries.items():
            for number in range(len(entry.grid) if len(entry.grid) > 1 else 0):
                jobs[label, number] = [
                    Job(
                        self.config(entry.options(number), entry.method, seed, ("tracking.probe_size=0",)),
                        folder / "tuning" / f"{label}-{number}-seed{seed}",
                    )
                    for seed in self.tuning_seeds
                ]
        return jobs

    def final_jobs(self, folder: Path, chosen: dict[str, int], *, noise: bool) -> list[Job]:
        """Return the runs that are compared, seed by seed; the baseline keeps checkpoints for the weights of all."""
        from noisesam.experiments import Job

        jobs = []
        kind = "noisy" if noise else "clean"
        for seed in self.seeds:
            for label, entry in self.entries.items():
                overrides = () if noise else ("noise.rate=0.0",)
                if label == BASE and noise:
                    overrides = ("checkpoint.keep=0", f"checkpoint.every={max(1, self._epochs // 30)}")
                config = self.config(entry.options(chosen[label]), entry.method, seed, overrides)
                jobs.append(Job(config, folder / kind / f"{label}-seed{seed}"))
        return jobs

    def check(self) -> None:
        """Refuse what no registry knows, before anything is trained."""
        from noisesam.training.validation import validate

        for entry in self.entries.values():
            for number in range(len(entry.grid)):
                validate(self.config(entry.options(number), entry.method, self.seeds[0]))

    @property
    def _epochs(self) -> int:
        return int(self.run.get("training", {}).get("epochs", 10))


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file.

    Raises:
        ConfigurationError: The file is no TOML, or says something that is not understood.
    """
    from noisesam.experiments.reading import read_seeds, read_setting

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path.name} is not valid TOML: {error}", expected="an experiment file") from error
    data = parse_toml(text, given=path.name, expected="an experiment file")
    unknown = set(data) - _SECTIONS
    missing = {"methods", "run", "seeds", "tuning_seeds"} - set(data)
    if unknown or missing:
        said = [f"unknown: {', '.join(sorted(unknown))}"] * bool(unknown) + [f"missing: {', '.join(sorted(missing))}"] * bool(
            missing
        )
        raise ConfigurationError(f"{path.name}: " + "; ".join(said), expected="the sections " + ", ".join(sorted(_SECTIONS)))
    methods = data["methods"]
    if not isinstance(methods, dict) or not all(isinstance(stated, dict) for stated in methods.values()):
        raise ConfigurationError(
            f"methods in {path.name}",
            expected="a section [methods] with a table for each, such as 1-sam = { grid = [{ rho = 0.05 }, { rho = 0.1 }] }",
        )
    run = read_setting(path.name, data["run"])
    seeds, tuning_seeds = (list(read_seeds(path.name, key, data[key])) for key in ("seeds", "tuning_seeds"))
    entries = {}
    for label, stated in methods.items():
        stated = dict(stated)
        grid = stated.pop("grid", [{}])
        if not isinstance(grid, list) or not grid or not all(isinstance(one, dict) for one in grid):
            raise ConfigurationError(f"methods.{label}.grid in {path.name}", expected="a list of tables of hyper-parameters")
        entries[label] = Entry(stated.pop("method", label), stated, grid)
    for needed in (BASE, BEST):
        if needed not in entries:
            raise ConfigurationError(
                f"{path.name} without the method {needed!r}", expected="sgd and 1-sam: gain is measured by them"
            )
    if set(seeds) & set(tuning_seeds):
        raise ConfigurationError(f"seeds and tuning_seeds of {path.name} overlap", expected="seeds that chose nothing")
    return Experiment(data.get("title", path.stem), data.get("expectation", ""), run, entries, tuning_seeds, seeds)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("scoreboard")(scoreboard)


def scoreboard(
    experiment: Annotated[Path, typer.Argument(help="Experiment file, such as experiments/scoreboard-digits.toml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs. (default: scoreboard-output/<name>)")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Write table, figure and manifests there too, under the experiment's name.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets. (default: NOISESAM_DATA)")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tune every method alike on noisy validation labels, run all seeds, and say who keeps 1-SAM's gain at what cost."""
    from noisesam.cli.workers import run_all

    if not experiment.exists():
        raise ConfigurationError(f"No file {experiment}", expected="an experiment file", remedy="See experiments/.")
    planned = read_experiment(experiment)
    planned.check()
    folder = out if out is not None else Path("scoreboard-output") / experiment.stem
    tuning = planned.tuning_jobs(folder)
    first = dict.fromkeys(planned.entries, 0)
    total = sum(map(len, tuning.values())) + 2 * len(planned.final_jobs(folder, first, noise=True))
    if not as_json:
        say(planned.title, style="bold")
        if planned.expectation:
            say(f"Expected: {planned.expectation}")
        say(f"{total} runs: {sum(map(len, tuning.values()))} to tune, the rest with and without wrong labels.")
    if dry_run:
        return
    run_all([job for jobs in tuning.values() for job in jobs], workers=workers, data_root=data_root)
    choices = tuned(planned, tuning)
    chosen = {label: int(choices.loc[choices["method"] == label, "chosen"].iloc[0]) for label in planned.entries}
    jobs = {kind: planned.final_jobs(folder, chosen, noise=kind == "noisy") for kind in ("noisy", "clean")}
    run_all([*jobs["noisy"], *jobs["clean"]], workers=workers, data_root=data_root)
    table = measured(planned, jobs, chosen, data_root)
    for path in [folder] + ([keep] if keep is not None else []):
        write(path, experiment.stem, planned, table, choices, jobs, tuning)
    if as_json:
        print_json({"scoreboard": records(table), "tuning": records(choices)})
        return
    show(table)
    say_path("Table, figure and manifests:", folder)


def tuned(planned: Experiment, tuning: dict[tuple[str, int], list[Job]]) -> pd.DataFrame:
    """Return one row per method and try: noisy validation accuracy at its best epoch, and which try is taken."""
    from noisesam.experiments import chosen_by_validation

    tries = {place: [job.folder for job in own] for place, own in tuning.items()}
    choices = chosen_by_validation(tries, {label: entry.grid for label, entry in planned.entries.items()})
    for row in choices[choices["at_chance"] & (choices["try"] == choices["chosen"])].to_dict("records"):
        warn(f"{row['method']} stays at chance in all of its grid: lower its values")
    return choices


def measured(planned: Experiment, jobs: dict[str, list[Job]], chosen: dict[str, int], data_root: Path | None) -> pd.DataFrame:
    """Return the scoreboard of the finished runs."""
    import pandas as pd

    from noisesam.analysis import early_stopping, scoreboard
    from noisesam.bench.setting import step_costs
    from noisesam.cli.analyze import open_all
    from noisesam.runs import open_run
    from noisesam.training.equal_weights import mechanism_at_equal_weights

    collections = {}
    for kind, own in jobs.items():
        collections[kind], problems = open_all([job.folder for job in own])
        for problem in problems:
            warn(problem)
    options = {label: (entry.method, entry.options(chosen[label])) for label, entry in planned.entries.items()}
    parts = []
    for job in jobs["noisy"]:
        if job.folder.name.startswith(f"{BASE}-seed"):
            collection, _ = open_all([job.folder])
            stops = early_stopping(collection)
            epoch = float(stops.loc[stops["selection"] == "validation", "epoch"].iloc[0])
            parts.append(mechanism_at_equal_weights(open_run(job.folder), options, epoch=epoch, data_root=data_root))
    if not parts:
        raise RunError("No run of the baseline", expected="sgd among the methods")
    config = planned.config(planned.entries[BASE].options(chosen[BASE]), planned.entries[BASE].method, planned.seeds[0])
    costs = step_costs(config, options, data_root=data_root)
    return scoreboard(collections["noisy"], collections["clean"], pd.concat(parts), costs, base=BASE, best=BEST)


def write(
    folder: Path,
    name: str,
    planned: Experiment,
    table: pd.DataFrame,
    choices: pd.DataFrame,
    jobs: dict[str, list[Job]],
    tuning: dict[tuple[str, int], list[Job]],
) -> None:
    """Write table, tuning, figure and the manifests of all runs."""
    from noisesam.plotting import plot_scoreboard, save
    from noisesam.runs import open_run

    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False)
    if table[["early_gain", "last_gain"]].notna().any(axis=None):
        axes = plot_scoreboard(table)
        axes[0].figure.suptitle(planned.title)
        save(axes[0].figure, folder / name, table)
    else:
        warn(f"No figure: {BEST} gains nothing over {BASE} in these runs, so that no method can keep a share of it")
    choices.to_csv(folder / f"{name}-tuning.csv", index=False)
    every = [*(job for own in tuning.values() for job in own), *(job for own in jobs.values() for job in own)]
    manifests = [open_run(job.folder).manifest for job in every]
    text = json.dumps(manifests, separators=(",", ":"), sort_keys=True)
    (folder / f"{name}-manifests.json").write_text(text + "\n", encoding="utf-8")


def show(table: pd.DataFrame) -> None:
    """Print the scoreboard."""
    rows = [
        (
            row["method"],
            f"{row['early_mean']:.3f}",
            f"{row['last_mean']:.3f}",
            _number(row.get("clean_last"), 3),
            _number(row["early_gain"], 2),
            _number(row["last_gain"], 2),
            f"{_number(row['logit_weight_clean'], 2)}/{_number(row['logit_weight_noisy'], 2)}",
            f"{_number(row['jacobian_weight_clean'], 2)}/{_number(row['jacobian_weight_noisy'], 2)}",
            f"{row['passes']:.2f}",
        )
        for row in table.sort_values("last_gain", ascending=False, na_position="last").to_dict("records")
    ]
    headings = ("method", "early", "last", "no noise", "gain early", "gain last", "logit c/n", "Jacobian c/n", "passes")
    print_table(headings, rows, keep=(0,))
    say()
    say("early: test accuracy at the epoch chosen on noisy validation labels; last: at the last epoch; means over seeds.")
    say("gain: share of 1-SAM's gain over SGD; a dash where that gain cannot be told from nothing.")
    say("logit, Jacobian: weight on clean/noisy examples at SGD's weights.")
    say("passes: of forward and backward, SGD 1.")


def _number(value: Any, digits: int) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"
