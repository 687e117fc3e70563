"""The tables of `analyze` and `demo`: what `noisesam.analysis` computed, laid out for 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from noisesam.cli.console import number, print_table, say

if TYPE_CHECKING:
    import pandas as pd

SELECTIONS = (("oracle", "best on test\n(oracle)"), ("validation", "chosen on\nnoisy validation"), ("last", "last epoch"))


def short(value: Any) -> str:
    """A fraction without its leading zero.

    Example:
        >>> short(0.9485), short(1.0), short(-0.02), short(float("nan"))
        ('.949', '1.000', '-.020', '-')
    """
    text = number(value)
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def mean_and_sd(mean: Any, sd: Any) -> str:
    """Mean and standard deviation over seeds; one seed has no spread.

    Example:
        >>> mean_and_sd(0.9485, 0.0042), mean_and_sd(0.9, float("nan"))
        ('.949 ±.004', '.900')
    """
    spread = short(sd)
    return short(mean) if spread == "-" else f"{short(mean)} ±{spread}"


def bracket(low: Any, high: Any) -> str:
    """An interval, or nothing where there is none."""
    return "" if short(low) == "-" else f"[{short(low)}, {short(high)}]"


def show_accuracy(summary: pd.DataFrame) -> None:
    """Clean test accuracy under the three ways to stop, one row per method and setting."""
    rows = []
    for row in summary.to_dict("records"):
        cells = []
        for selection, _ in SELECTIONS:
            accuracy = f"{selection}_test_accuracy"
            spread = bracket(row[f"{accuracy}_low"], row[f"{accuracy}_high"])
            lines = [mean_and_sd(row[f"{accuracy}_mean"], row[f"{accuracy}_sd"])]
            lines += [spread] if spread else []
            epoch = number(row[f"{selection}_epoch_mean"], 0)
            lines += [f"epoch {epoch}"] if epoch != "-" else []
            cells.append("\n".join(lines))
        rows.append((str(row["method"]), str(row["setting"]), str(row["seeds"]), *cells))
    print_method_table(
        ("runs", *(heading for _, heading in SELECTIONS)),
        rows,
        title="Test accuracy (clean labels): mean ±sd over seeds, 95% interval, epoch",
    )


def show_mechanism(summary: pd.DataFrame) -> None:
    """Wrong labels fitted, weight of clean against noisy gradients, cost per step."""
    rows = [
        (
            str(row["method"]),
            str(row["setting"]),
            short(row["oracle_noisy_fitted_mean"]),
            short(row["last_noisy_fitted_mean"]),
            number(row["early_ratio_mean"], 2),
            number(row["oracle_ratio_mean"], 2),
            f"{passes(row['forward_passes'])}/{passes(row['backward_passes'])}",
            number(1000 * float(row["step_seconds"]), 2),
        )
        for row in summary.to_dict("records")
    ]
    columns = ("wrong labels\nfitted, best", "\nlast", "clean/noisy\nstep, early", "\nbest", "passes\nF/B", "ms per\nstep")
    title = "Wrong labels reproduced; mean norm of the step terms, clean over noisy, on each method's own path; cost"
    print_method_table(columns, rows, title=title, right=range(2, 8))


def passes(value: Any) -> str:
    """Passes of a batch per step.

    Example:
        >>> passes(2.0), passes(1.25), passes(float("nan"))
        ('2', '1.25', '-')
    """
    return "-" if number(value) == "-" else f"{float(value):.3g}"


def show_differences(paired: pd.DataFrame, baseline: str) -> None:
    """Test accuracy minus the baseline's at the same seed, one row per method and setting."""
    rows = []
    for key, group in paired.groupby(["method", "setting", "baseline_setting"], sort=False):
        by_selection = {row["selection"]: row for row in group.to_dict("records")}
        cells = []
        for selection, _ in SELECTIONS:
            row = by_selection.get(selection)
            if row is None or short(row["difference"]) == "-":
                cells.append("-")
            else:
                difference = short(row["difference"])
                signed = difference if difference.startswith("-") else f"+{difference}"
                cells.append("\n".join(line for line in (signed, bracket(row["low"], row["high"])) if line))
        method, setting, against = key if isinstance(key, tuple) else (key, "", "")
        rows.append(
            (str(method), f"{setting} (against {against})" if against else str(setting), str(int(group["pairs"].max())), *cells)
        )
    if rows:
        headings = tuple(heading for _, heading in SELECTIONS)
        print_method_table(("pairs", *headings), rows, title=f"Difference to {baseline}, paired by seed: mean, 95% interval")


def print_method_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str, right: Sequence[int] = (2,)
) -> None:
    """A table whose first columns are method and setting; the setting column is left out where it says nothing."""
    headings: tuple[str, ...] = ("method", "setting", *columns)
    numbers = list(right)
    if not any(row[1] for row in rows):
        headings = (headings[0], *headings[2:])
        rows = [(row[0], *row[2:]) for row in rows]
        numbers = [position - 1 for position in numbers]
    print_table(headings, rows, title=title, right=numbers)
    say()


def show_findings(sentences: Sequence[str]) -> None:
    """The findings, one paragraph each."""
    for sentence in sentences:
        print_table(("", ""), [("-", sentence)])
