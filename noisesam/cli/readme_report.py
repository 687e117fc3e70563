"""REPORT.md's tables: the committed verdicts and numbers of every scale of `noisesam reproduce`, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisesam.markdown import markdown_table, replaced

if TYPE_CHECKING:
    import pandas as pd

SCALES = ("toy", "cpu", "gpu", "controls")
"""Scales of the reproduction in the order in which they are shown; one that is not kept is left out."""
MARKS = {"supported": "yes", "not supported": "no", "undecided": "open", "not tested": ""}
SETTINGS = {
    "toy: linear": "toy, linear",
    "toy: linear, zero start": "toy, from zero",
    "toy: two-layer linear": "toy, two-layer",
    "digits": "digits",
    "fashion": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar10n": "CIFAR-10N",
    "gpu": "CIFAR-10, ResNet-18",
    "train-size": "control: images",
    "width": "control: width",
    "robust-losses": "control: losses",
}
"""Settings in the order in which they are shown, and their headings; others follow under their own names."""
ORDER = ("sam", "1-sam", "l-sam", "j-sam", "reg-sgd")


def fill_report(text: str, figures: Path) -> str:
    """Replace every generated section of REPORT.md.

    Args:
        text: The report.
        figures: Folder of the kept tables.
    """
    for name, section in SECTIONS.items():
        text = replaced(text, name, section(figures))
    return text


def claims_section(figures: Path) -> str:
    """Return the claims against the settings, one word each, and the verdict over all of them."""
    import pandas as pd

    from noisesam.reproduce.claims import verdicts

    kept = [_kept(figures, scale, "claims") for scale in SCALES if _has(figures, scale, "claims")]
    judged = pd.concat(kept, ignore_index=True)
    judged = judged.assign(setting=judged["setting"].fillna(""))
    overall = verdicts(judged).set_index("claim")["verdict"]
    names = [name for name in dict.fromkeys([*SETTINGS, *judged["setting"]]) if name and name in set(judged["setting"])]
    tested = [name for name in names if (judged.loc[judged["setting"] == name, "verdict"] != "not tested").any()]
    rows = []
    for claim, own in judged.groupby("claim", sort=False):
        words = dict(zip(own["setting"], own["verdict"].map(MARKS), strict=True))
        statement = str(own["statement"].iloc[0])
        link = f"[{claim}](docs/claims.md#{str(claim).lower()})"
        rows.append((link, statement, *(words.get(name, "") for name in tested), str(overall[claim])))
    rows.sort(key=lambda row: int(row[0].split("]")[0].removeprefix("[C")))
    return markdown_table(("", "claim", *(SETTINGS.get(name, name) for name in tested), "all"), rows)


def gains_section(figures: Path) -> str:
    """Return the difference of every method to SGD in every setting with wrong labels, early and at the end."""
    blocks = []
    for scale in SCALES:
        if not _has(figures, scale, "differences"):
            continue
        table, settings = _kept(figures, scale, "differences"), _kept(figures, scale, "settings")
        fitted = dict(zip(settings["experiment"], settings["wrong_labels_fitted_by_sgd"], strict=True))
        table = table[(table["variant"] == "main") & table["method"].isin(ORDER)]
        rows = []
        for name in [name for name in dict.fromkeys([*SETTINGS, *table["experiment"]]) if name in set(table["experiment"])]:
            own = table[table["experiment"] == name]
            for selection, words in (("validation", "early stopping"), ("last", "last epoch")):
                cells = [_difference(own, method, selection) for method in ORDER]
                front = (SETTINGS.get(name, name), f"{100 * fitted[name]:.0f}%") if selection == "validation" else ("", "")
                rows.append((*front, words, *cells))
        blocks.append(markdown_table(("setting", "wrong labels that SGD fits", "test accuracy at", *ORDER), rows))
    return "\n\n".join(blocks) if blocks else "Not kept: `noisesam reproduce baek2024 --scale cpu --keep figures`."


def controls_section(figures: Path) -> str:
    """Return the questions of the controls that had an expected answer and got one; how many stay open."""
    if not _has(figures, "controls", "controls"):
        return "Not kept: `noisesam reproduce baek2024 --scale controls --keep figures`."
    table = _kept(figures, "controls", "controls")
    table["as_expected"] = table["as_expected"].fillna("")
    asked = table[table["as_expected"] != ""]
    decided = asked[asked["as_expected"].isin(["yes", "no"])]
    rows = [
        (
            str(row["control"]) if first else "",
            str(row["question"]),
            str(row["at"]),
            f"**{row['verdict']}**" if row["as_expected"] == "no" else str(row["verdict"]),
            str(row["estimate"]),
            str(row["as_expected"]),
        )
        for row, first in zip(decided.to_dict("records"), ~decided["control"].duplicated(), strict=True)
    ]
    counts = [f"{word}: {int((asked['as_expected'] == word).sum())}" for word in ("yes", "no", "open")]
    file = "figures/baek2024-controls-controls.csv"
    tail = (
        f"As expected, of {len(asked)} questions with a stated expectation: {', '.join(counts)}. The open ones, and "
        f"{len(table) - len(asked)} answers without one: [{file}]({file})."
    )
    headings = ("control", "question", "at", "answer", "numbers (95% intervals)", "as expected")
    return markdown_table(headings, rows) + "\n\n" + tail


def published_section(figures: Path) -> str:
    """Return the published numbers beside the measured ones."""
    blocks = []
    for scale in SCALES:
        if not _has(figures, scale, "published"):
            continue
        rows = [
            (
                f"`{row['method']}`",
                _percent(row["published"]),
                _points(row["published_gap"]),
                _percent(row["ours"]),
                _points(row["ours_gap"]),
                str(int(row["seeds"])),
            )
            for row in _kept(figures, scale, "published").to_dict("records")
        ]
        headings = ("best test accuracy (oracle)", "published", "to SGD", f"ours, scale {scale}", "to SGD", "our seeds")
        blocks.append(markdown_table(headings, rows))
    return "\n\n".join(blocks) if blocks else "No scale with CIFAR-10 is kept."


def runs_section(figures: Path) -> str:
    """Return how many runs each scale is, how long they took by their manifests, and of which commit and on what they are."""
    rows = []
    for scale in SCALES:
        place = figures / f"baek2024-{scale}-manifests.json"
        if not place.exists() or not (manifests := json.loads(place.read_text(encoding="utf-8"))):
            continue
        begun = [datetime.fromisoformat(one["times"]["created"]) for one in manifests]
        ended = [datetime.fromisoformat(one["times"]["finished"]) for one in manifests]
        each = sum((end - begin).total_seconds() for begin, end in zip(begun, ended, strict=True))
        rows.append(
            (
                f"`{scale}`",
                str(len(manifests)),
                f"{(max(ended) - min(begun)).total_seconds() / 60:.1f}",
                f"{each / 60:.1f}",
                ", ".join(_distinct(one["git"]["commit"][:7] + "+changes" * one["git"]["dirty"] for one in manifests)),
                ", ".join(_distinct(one["versions"]["torch"] for one in manifests)),
                ", ".join(_distinct(_machine(one["hardware"]) for one in manifests)),
            )
        )
    headings = (
        "scale",
        "runs",
        "minutes from the first begun to the last ended",
        "minutes of all runs",
        "commit",
        "torch",
        "on",
    )
    return markdown_table(headings, rows) if rows else "No scale is kept with manifests."


SECTIONS: dict[str, Callable[[Path], str]] = {
    "report-claims": claims_section,
    "report-gains": gains_section,
    "report-controls": controls_section,
    "report-published": published_section,
    "report-runs": runs_section,
}


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def _machine(hardware: Mapping[str, Any]) -> str:
    return str(hardware["gpu"]) if hardware["gpu"] else f"{hardware['cpu']}, {hardware['cpu_count']} cores"


def _path(figures: Path, scale: str, name: str) -> Path:
    return figures / f"baek2024-{scale}-{name}.csv"


def _has(figures: Path, scale: str, name: str) -> bool:
    return _path(figures, scale, name).exists()


def _kept(figures: Path, scale: str, name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(_path(figures, scale, name))


def _difference(table: pd.DataFrame, method: str, selection: str) -> str:
    """A difference in points with its interval, bold where the interval leaves zero out."""
    own = table[(table["method"] == method) & (table["selection"] == selection)]
    if own.empty:
        return "-"
    middle, low, high = (100 * float(own.iloc[0][name]) for name in ("difference", "low", "high"))
    text = f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}%"


def _points(value: float) -> str:
    return "-" if value != value else f"{100 * value:+.1f}"
