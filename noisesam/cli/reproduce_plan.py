"""What `noisesam reproduce` says before anything is run: runs, time and memory, what is expected, and the rule."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from noisesam.cli.console import print_json, print_table, say, warn, warnings_in_words

if TYPE_CHECKING:
    from noisesam.reproduce.planning import Planned
    from noisesam.reproduce.settings import Scale, Setting


def introduce(scale: Scale, settings: list[Setting]) -> None:
    """Say what is about to be run, what is expected of it, and by which rule it decides."""
    say(f"Why is SAM robust to label noise? {scale.name}: {scale.title}", style="bold")
    for setting in settings:
        say()
        say(f"{setting.name}: {setting.sweep.title} ({len(setting.jobs)} runs)", style="bold")
        say(f"Expected: {setting.sweep.expectation}")
        say(f"Decided by: {setting.sweep.decision}")
    say()


def show_plan(scale: Scale, settings: list[Setting], *, workers: int, data_root: Path | None, as_json: bool) -> None:
    """State what would be run and what it would take."""
    from noisesam.reproduce.estimates import in_minutes
    from noisesam.reproduce.planning import plan

    at_once = 1 if scale.by_method else workers
    with warnings_in_words():
        planned = plan(settings, workers=at_once, data_root=data_root)
    total = sum(one.seconds for one in planned) / at_once
    tuning = sum(one.tuning_seconds for one in planned) / at_once
    if as_json:
        print_json(
            {
                "scale": scale.name,
                "workers": at_once,
                "budget_minutes": scale.minutes,
                "minutes": total / 60,
                "calibration_minutes": tuning / 60,
                "measured": all(one.measured for one in planned),
                "settings": [asdict(one) for one in planned],
            }
        )
        return
    say(f"{scale.name}: {scale.title}", style="bold")
    rows = [_planned_row(one, at_once) for one in planned]
    headings = ("setting", "runs", "made", "steps", "minutes", "memory", "calibration")
    print_table(headings, rows, right=(1, 2, 3, 4, 5))
    say()
    one = planned[0]
    say(f"Seconds: {one.device}; {at_once} run{'s' if at_once > 1 else ''} at once. Memory is a worker's, or the device's.")
    made = sum(one.finished for one in planned)
    left = f", {made} of them made already" if made else ""
    budget = f" (budget: {scale.minutes:g})" if scale.minutes is not None else ""
    say(f"{sum(one.runs for one in planned)} runs{left}: about {in_minutes(total)} minutes{budget}.")
    if tuning:
        runs = sum(one.tuning_runs for one in planned)
        say(f"Calibration, a run of its own for a new setting: {runs} runs, about {in_minutes(tuning)} minutes.")
    if scale.minutes is not None and total > 60 * scale.minutes:
        warn(f"{in_minutes(total)} minutes are more than the {scale.minutes:g} of this scale")


def _planned_row(one: Planned, at_once: int) -> tuple[str, ...]:
    from noisesam.reproduce.estimates import in_minutes

    memory = one.device_memory or one.memory
    bound = "" if one.measured else ">"
    tuning = f"{one.tuning_runs} runs, {in_minutes(one.tuning_seconds / at_once)} min" if one.tuning_runs else "-"
    shown = f"{bound}{memory / 1e9:.1f} GB" if memory else "-"
    return (one.name, str(one.runs), str(one.finished), f"{one.steps:,}", in_minutes(one.seconds / at_once), shown, tuning)
