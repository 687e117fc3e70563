"""`noisesam demo`: the main job from end to end on real images that come with scikit-learn."""

from __future__ import annotations

import shlex
import time
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisesam.cli.console import print_json, print_table, records, say, say_path, warn

if TYPE_CHECKING:
    from noisesam.cli.workers import Job
    from noisesam.training import Config


@dataclass(frozen=True)
class Preset:
    """What the demo runs: one configuration, the methods that are put in it, and the seeds."""

    run: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    seeds: int
    overrides: tuple[str, ...] = ()

    def config(self, method: str, seed: int) -> Config:
        """The configuration of one run."""
        from noisesam.training import load_config

        return load_config({**self.run, "method": {"name": method, **self.methods[method]}, "seed": seed}, self.overrides)

    def jobs(self, folder: Path) -> list[Job]:
        """Every run of the demo, seed by seed, so that an interrupted demo has complete seeds."""
        from noisesam.cli.workers import Job

        pairs = [(method, seed) for seed in range(self.seeds) for method in self.methods]
        return [Job(self.config(method, seed), folder / f"{method}-seed{seed}") for method, seed in pairs]


IN_WORDS = {
    "sam": "one perturbation for the whole batch",
    "1-sam": "one for each example",
    "l-sam": "1-sam's perturbation in the logit scale alone: how wrong the output is",
    "j-sam": "the same in the Jacobian alone: how the weights move the output",
    "reg-sgd": "no perturbation: a penalty on the last hidden activation and the last layer",
}


def preset(*, quick: bool = False, seeds: int | None = None) -> Preset:
    """Read the demo's preset, or its small one.

    Example:
        >>> full = preset()
        >>> full.seeds, list(full.methods), full.config("1-sam", 0).training.epochs
        (5, ['sgd', 'sam', '1-sam', 'l-sam', 'j-sam', 'reg-sgd'], 150)
    """
    data = tomllib.loads(files("noisesam.cli").joinpath("demo.toml").read_text(encoding="utf-8"))
    small = data["quick"] if quick else {}
    return Preset(
        run=data["run"],
        methods=small.get("methods", data["methods"]),
        seeds=seeds if seeds is not None else small.get("seeds", data["seeds"]),
        overrides=tuple(small.get("overrides", ())),
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs and figures. (default: demo-output; demo-output/quick with --quick)")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds per method. (default: 5; 2 with --quick)")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="A small preset of seconds; its numbers mean nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train, track, analyse and draw: six methods on real images with wrong labels (two minutes on two cores)."""
    from noisesam.cli.analyze import analysed, draw, open_all, show_all, show_figures
    from noisesam.cli.workers import run_all

    folder = out if out is not None else Path("demo-output", *(["quick"] if quick else []))
    chosen = preset(quick=quick, seeds=seeds)
    jobs = chosen.jobs(folder / "runs")
    if not as_json:
        introduce(chosen)
    started = time.perf_counter()
    made = run_all(jobs, workers=workers)
    trained = time.perf_counter() - started
    collection, problems = open_all([job.folder for job in jobs])
    for problem in problems:
        warn(problem)
    tables = analysed(collection, "sgd")
    tables["summary"].to_csv(folder / "summary.csv", index=False)
    (folder / "findings.txt").write_text("\n".join(tables["findings"]) + "\n", encoding="utf-8")
    figures = draw(collection, folder / "figures")
    if as_json:
        print_json(
            {
                "summary": records(tables["summary"]),
                "paired_differences": records(tables["paired_differences"]),
                "findings": tables["findings"],
                "problems": problems,
                "runs": folder / "runs",
                "figures": figures["drawn"],
                "skipped_figures": figures["skipped"],
                "seconds": time.perf_counter() - started,
            }
        )
        return
    done = f"{made} runs in {trained:.0f} s" if made else "every run was finished already"
    say(f"Trained: {done}" + (f", {len(jobs) - made} were finished already." if 0 < made < len(jobs) else "."))
    say()
    show_all(tables, "sgd")
    if quick:
        say("This was --quick: it shows that everything works, and its numbers mean nothing. Without it: noisesam demo")
        say()
    show_figures(figures, folder / "figures")
    conclude(folder)


def introduce(chosen: Preset) -> None:
    """Say in words what is about to happen."""
    config = chosen.config("1-sam", 0)
    training = (config.data.train_size or 0) - config.data.validation_size
    say("Why do sharpness-aware methods resist label noise?", style="bold")
    say(
        f"{training} images of handwritten digits, {config.noise.rate:.0%} of them with a wrong label "
        f"({config.noise.kind} noise); "
        f"{config.data.validation_size} more, as noisy, to choose the epoch to stop at. "
        "Clean test images are used for reporting only. "
        f"{len(chosen.methods)} methods, {chosen.seeds} seeds, {config.training.epochs} epochs each."
    )
    say(
        "SGD first learns the digits, then memorises the wrong labels. "
        "A sharpness-aware step perturbs the weights before it takes the gradient:"
    )
    print_table(("", ""), [(f"  {method}", meaning) for method, meaning in IN_WORDS.items() if method in chosen.methods])
    say()


def conclude(folder: Path) -> None:
    """Say where everything lies, and what to try next."""
    say_path("Runs:", folder / "runs")
    say_path("Table:", folder / "summary.csv")
    runs = shlex.quote(str(folder / "runs"))
    say(f"Next: noisesam runs {runs}; noisesam analyze {runs} --json; noisesam methods, for the rule of each", style="dim")
