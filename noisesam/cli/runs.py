"""`noisesam runs`: list, show, verify and compare saved runs. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from noisesam.cli.console import number, out, print_json, print_table, records, say, warn
from noisesam.cli.report import short
from noisesam.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

    from noisesam.runs import Run, RunCollection

NEVER_COMPARED = ("step_seconds",)
"""Metrics of the clock: two equal runs differ in them."""


class ListByDefault(TyperGroup):
    """`runs PATH` is `runs list PATH`; a folder with the name of a command is reached as ./show."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` in front of arguments that start with no command."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


commands = typer.Typer(
    cls=ListByDefault,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="List, show, verify and compare saved runs: `noisesam runs PATH` lists. Loads no torch.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    app.add_typer(commands, name="runs")


@commands.command("list")
def list_runs(
    paths: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold runs.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """List the runs under PATH: method, setting, seed, status, epochs, best and last test accuracy."""
    from noisesam.cli.analyze import open_all

    collection, problems = open_all(paths)
    rows = overview(collection)
    if as_json:
        print_json({"runs": rows, "problems": problems})
    else:
        print_table(
            ("run", "method", "setting", "seed", "status", "epochs", "best\ntest", "last\ntest"),
            [
                (
                    row["run"],
                    row["method"],
                    row["setting"],
                    str(row["seed"]),
                    row["status"],
                    number(row["epochs"], 0),
                    short(row["best_test_accuracy"]),
                    short(row["last_test_accuracy"]),
                )
                for row in rows
            ],
            right=(3, 5, 6, 7),
            keep=(1,),
        )
        say(f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}", style="dim")
    for problem in problems:
        warn(problem)
    if not rows:
        raise typer.Exit(1)  # Nothing could be read; the problems say why.


def overview(collection: RunCollection) -> list[dict[str, Any]]:
    """One record per run of a collection, in full precision."""
    rows = []
    for run in collection:
        metrics = run.metrics
        test = metrics[(metrics["metric"] == "accuracy") & (metrics["split"] == "test") & (metrics["group"] == "all")]
        accuracy = test.sort_values("step")["value"]
        rows.append(
            {
                "run": run.id,
                "method": run.method,
                "setting": collection.setting(run),
                "seed": run.seed,
                "status": run.status,
                "epochs": float(metrics["epoch"].max()) if len(metrics) else None,
                "best_test_accuracy": float(accuracy.max()) if len(accuracy) else None,
                "last_test_accuracy": float(accuracy.iloc[-1]) if len(accuracy) else None,
                "path": run.path,
            }
        )
    return rows


@commands.command("show")
def show(run: Annotated[Path, typer.Argument(help="A run.", show_default=False)], as_json: AsJson = False) -> None:
    """Show one run: its manifest, what was measured, its checkpoints and problems."""
    from noisesam.runs import open_run

    opened = open_run(run)
    last = last_values(opened.metrics)
    problems = [str(problem) for problem in opened.problems]
    if as_json:
        print_json(
            {
                "manifest": opened.manifest,
                "last": records(last),
                "metrics_rows": len(opened.metrics),
                "examples_rows": len(opened.examples),
                "checkpoint_steps": opened.checkpoint_steps,
                "problems": problems,
            }
        )
        return
    say(f"{opened.id}: {opened.status}", style="bold")
    print_table(("", ""), list(flatten(opened.manifest)))
    say()
    print_table(
        ("split", "group", "metric", "last value"),
        [
            (str(row["split"]), str(row["group"]), str(row["metric"]), number(row["value"], 4))
            for row in last.to_dict("records")
        ],
        title=f"Measured last ({len(opened.metrics)} rows of metrics, {len(opened.examples)} of examples in all)",
        right=(3,),
        keep=(2,),
    )
    say()
    say("checkpoints at steps " + (", ".join(str(step) for step in opened.checkpoint_steps) or "none"))
    for problem in problems:
        warn(problem)


def last_values(metrics: pd.DataFrame) -> pd.DataFrame:
    """The newest value of every metric, split and group."""
    newest = metrics.sort_values("step", kind="stable").groupby(["split", "group", "metric"], sort=True, observed=True).tail(1)
    return newest.sort_values(["split", "metric", "group"]).reset_index(drop=True)


def flatten(mapping: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys as dotted ones; a transition matrix is named by its shape.

    Example:
        >>> flatten({"data": {"name": "digits"}, "seed": 0})
        [('data.name', 'digits'), ('seed', '0')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        if isinstance(value, dict):
            rows += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], list):
            rows.append((f"{prefix}{key}", f"{len(value)} x {len(value[0])} matrix"))
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


@commands.command("verify")
def verify(
    paths: Annotated[list[Path], typer.Argument(help="Runs, or folders that hold runs.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Check every file of the runs; exits with 1 if there is a problem."""
    from noisesam.runs import verify as verify_run
    from noisesam.runs.collection import run_folders
    from noisesam.runs.files import cannot_read

    found: dict[str, list[str]] = {}
    for path in paths:
        if not path.exists():
            raise RunError(f"{path} does not exist", expected="a run or a folder that holds runs")
        closed: list[OSError] = []
        for run in run_folders(path, closed.append):
            found[str(run)] = [str(problem) for problem in verify_run(run)]
        for error in closed:
            folder = Path(error.filename or path)
            found[str(folder)] = [str(cannot_read(folder, error))]
    if not found:
        raise RunError(
            f"No run in {', '.join(str(path) for path in paths)}", expected="a folder with a manifest.json in it or below it"
        )
    broken = sum(bool(problems) for problems in found.values())
    if as_json:
        print_json(found)
    else:
        for run, problems in found.items():
            out.print("[green]ok[/green]     " if not problems else "[red]broken[/red] ", end="")
            say(run)
            for problem in problems:
                say(f"         {problem}")
        say(f"{len(found)} checked, {broken} with problems", style="dim")
    if broken:
        raise typer.Exit(1)


@commands.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="A run.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another run.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compare two runs: what differs in the configuration, what in the metrics, and whether they agree to the last bit."""
    from noisesam.runs import open_run

    a, b = open_run(first), open_run(second)
    settings = config_differences(a, b)
    metrics = metric_differences(a.metrics, b.metrics)
    same_metrics = equal_bits(a.metrics, b.metrics)
    same_examples = equal_bits(a.examples, b.examples)
    if as_json:
        print_json(
            {
                "runs": [a.id, b.id],
                "configuration": settings,
                "metrics": records(metrics),
                "metrics_bit_equal": same_metrics,
                "examples_bit_equal": same_examples,
            }
        )
        return
    if settings:
        rows = [(key, str(values[0]), str(values[1])) for key, values in settings.items()]
        print_table(("configuration", "first", "second"), rows)
    else:
        say("The configurations are equal.")
    say()
    differing = metrics[metrics["largest_difference"] > 0]
    if len(differing):
        print_table(
            ("split", "group", "metric", "last,\nfirst", "last,\nsecond", "largest\ndifference"),
            [
                (
                    str(row["split"]),
                    str(row["group"]),
                    str(row["metric"]),
                    number(row["first"], 4),
                    number(row["second"], 4),
                    f"{row['largest_difference']:.2g}",
                )
                for row in differing.to_dict("records")
            ],
            right=(3, 4, 5),
            keep=(2,),
        )
        say()
    excluded = ", ".join(NEVER_COMPARED)
    say(f"metrics (without {excluded}): {'equal to the last bit' if same_metrics else 'different'}")
    say(f"examples: {'equal to the last bit' if same_examples else 'different'}")


def config_differences(a: Run, b: Run) -> dict[str, list[str | None]]:
    """Dotted keys of the configuration whose values differ; None where a run has no such key."""
    first, second = dict(flatten(a.config)), dict(flatten(b.config))
    keys = dict.fromkeys([*first, *second])
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}


def metric_differences(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Per split, group and metric: the last values, and the largest difference over the steps that both measured."""
    keys = ["split", "group", "metric"]
    a, b = (table[~table["metric"].isin(NEVER_COMPARED)] for table in (a, b))
    both = a.merge(b, on=[*keys, "step"], suffixes=("_first", "_second"))
    both["largest_difference"] = (both["value_first"] - both["value_second"]).abs()
    largest = both.groupby(keys, observed=True)["largest_difference"].max().reset_index()
    last_a = last_values(a)[[*keys, "value"]].rename(columns={"value": "first"})
    last_b = last_values(b)[[*keys, "value"]].rename(columns={"value": "second"})
    return last_a.merge(last_b, on=keys, how="outer").merge(largest, on=keys, how="left")


def equal_bits(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Whether two tables hold the same rows with the same bits, the clock left out."""
    if list(a.columns) != list(b.columns):
        return False
    if "metric" in a.columns:
        a, b = (table[~table["metric"].isin(NEVER_COMPARED)].reset_index(drop=True) for table in (a, b))
    return len(a) == len(b) and all(_bytes(a[column]) == _bytes(b[column]) for column in a.columns)


def _bytes(column: pd.Series) -> bytes:
    values = column.to_numpy()
    return "\0".join(map(str, values)).encode() if values.dtype.kind not in "iufb" else values.tobytes()
