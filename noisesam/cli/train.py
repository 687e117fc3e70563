"""`noisesam train CONFIG.toml`: one run from a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisesam.cli.console import out, print_json, print_table, progress_bar, records, say, say_path, warn, warnings_in_words
from noisesam.cli.toml_text import to_toml
from noisesam.errors import ConfigurationError

if TYPE_CHECKING:
    from noisesam.runs import Run
    from noisesam.training import Config


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(train)


def train(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The configuration.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run. (default: one in runs/, named after method, configuration and seed)"),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets. (default: $NOISESAM_DATA)")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and sizes, train nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from the last checkpoint in the folder of the run.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train one run; the same command again resumes it after an interruption."""
    from noisesam.training import config_to_dict, load_config

    if not config_file.is_file():
        raise ConfigurationError(
            f"There is no configuration file {config_file}",
            expected="a TOML file",
            remedy="Copy one from examples/, or give its path",
        )
    config = load_config(config_file, overrides=tuple(overrides or ()))
    from noisesam.training import default_directory  # loads torch: a mistake in the configuration is told without it

    target = folder if folder is not None else default_directory(config)
    if dry_run:
        resolved, sizes = config_to_dict(config), run_sizes(config, data_root)
        if as_json:
            print_json({"configuration": resolved, "sizes": sizes, "out": target})
        else:
            out.print(to_toml(resolved), markup=False, end="", soft_wrap=True)
            say()
            print_table(("", ""), [(label, f"{value:,}") for label, value in sizes.items()], title="Sizes", right=(1,))
            say_path("Would write to", target)
        return
    run = fit_with_progress(config, target, data_root, resume=resume)
    report(run, as_json=as_json)


def run_sizes(config: Config, data_root: Path | None) -> dict[str, int]:
    """Examples, parameters and steps of the run, from its data and its model, without training."""
    from noisesam.training import prepare, validate

    validate(config)
    with warnings_in_words():
        prepared = prepare(config, data_root=data_root)
    splits = prepared.splits
    return {
        "training examples": len(splits.train),
        "wrong labels among them": 0 if splits.train.is_noisy is None else int(splits.train.is_noisy.sum()),
        "validation examples": 0 if splits.validation is None else len(splits.validation),
        "test examples": 0 if splits.test is None else len(splits.test),
        "trainable parameters": sum(one.numel() for one in prepared.model.parameters() if one.requires_grad),
        "steps per epoch": prepared.order.steps_per_epoch,
        "steps": prepared.total_steps,
    }


def fit_with_progress(config: Config, target: Path, data_root: Path | None, *, resume: bool) -> Run:
    """Train behind a progress bar of steps."""
    from noisesam.training import fit

    title = f"{config.method.name}, seed {config.seed} (steps)"
    with progress_bar(title, None) as bar, warnings_in_words():
        task = bar.task_ids[0]

        def show(step: int, total: int, _: str) -> None:
            bar.update(task, completed=step, total=total)

        return fit(config, target, data_root=data_root, progress=show, resume=resume)


def report(run: Run, *, as_json: bool) -> None:
    """Print the three ways to stop this run, and where it lies."""
    from noisesam import analysis
    from noisesam.cli.report import SELECTIONS, short

    for problem in run.problems:
        warn(str(problem))
    stops = analysis.early_stopping(run)
    if as_json:
        print_json({"run": run.id, "path": run.path, "status": run.status, "early_stopping": records(stops)})
        return
    meaning = {name: heading.replace("\n", " ") for name, heading in SELECTIONS}
    print_table(
        ("stopped at", "epoch", "test\naccuracy", "clean labels\nfitted", "wrong labels\nfitted"),
        [
            (
                meaning[str(row["selection"])],
                "-" if row["epoch"] != row["epoch"] else f"{row['epoch']:.0f}",
                short(row["test_accuracy"]),
                short(row["clean_fitted"]),
                short(row["noisy_fitted"]),
            )
            for row in stops.to_dict("records")
        ],
        right=(1, 2, 3, 4),
    )
    say_path("Run:", run.path)
