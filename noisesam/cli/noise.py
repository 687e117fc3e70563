"""`noisesam noise`: what a noise kind does to a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from noisesam.cli.console import number, out, print_json, print_table, say, say_path
from noisesam.errors import InputError
from noisesam.training.values import WITHOUT_RATE

if TYPE_CHECKING:
    from noisesam.data import NoisyDataset

_SHOWN_CLASSES = 12
"""Beyond, a matrix no longer fits 80 columns; --json and --out have it in full."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("noise")(noise)


def noise(
    data: Annotated[str, typer.Option(help="Data set by name, or the path of a file or folder.")] = "digits",
    kind: Annotated[str, typer.Option(help="Kind of label noise.")] = "symmetric",
    rate: Annotated[float | None, typer.Option(help="Requested rate, from 0 to 1 (default: 0.4).", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    source: Annotated[str | None, typer.Option(help="For kind human: aggregate, random1, random2, random3 or worst.")] = None,
    matrix: Annotated[Path | None, typer.Option(help="For kind transition-matrix: a CSV file, K rows of K numbers.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets. (default: $NOISESAM_DATA)")] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Draw the transition matrix and write its numbers here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a noise kind does to a data set: realised rate, transition matrix stated and empirical, a picture."""
    from noisesam.data import add_label_noise, load

    _refuse_unread(kind, source, matrix)
    if rate is None and kind not in WITHOUT_RATE:
        rate = 0.4
    stated_law = read_matrix(matrix) if matrix is not None else None
    clean = load(data, root=data_root)
    noisy = add_label_noise(clean, kind, rate, seed=seed, source=source, transition_matrix=stated_law, root=data_root)
    record = noisy.noise
    if record is None or noisy.clean_labels is None:
        raise InputError(f"The data set {data!r} has no true labels", expected="a data set whose labels are known to be right")
    empirical, counts = empirical_matrix(noisy)
    stated = None if record.transition_matrix is None else np.asarray(record.transition_matrix, dtype=float)
    path = draw(noisy, empirical, counts, out_folder / f"noise-{record.kind}") if out_folder is not None else None
    if as_json:
        print_json(
            {
                "data": noisy.name,
                "examples": len(noisy),
                "kind": record.kind,
                "source": record.source,
                "seed": record.seed,
                "requested_rate": record.requested_rate,
                "realised_rate": record.realised_rate,
                "classes": list(noisy.classes),
                "class_counts": counts,
                "stated_transition_matrix": stated,
                "empirical_transition_matrix": empirical,
                "picture": path,
            }
        )
        return
    wrong = int((noisy.labels != noisy.clean_labels).sum())
    requested = "none" if record.requested_rate is None else number(record.requested_rate, 4)
    say(f"{noisy.name}, {len(noisy)} examples, {len(noisy.classes)} classes; noise {record.kind}, seed {record.seed}")
    say(f"requested rate {requested}, realised {number(record.realised_rate, 4)}: {wrong} wrong labels")
    say()
    show_matrices(stated, empirical, [str(name) for name in noisy.classes])
    if path is not None:
        say_path("Picture:", path)
    else:
        say("A picture of it: the same command with --out FOLDER", style="dim")


def _refuse_unread(kind: str, source: str | None, matrix: Path | None) -> None:
    """Refuse options that the kind of noise would not read, and ask for the one that it needs."""
    if source is not None and kind != "human":
        raise InputError(
            f"--source {source} with --kind {kind}", expected="a source for kind human", remedy="Leave --source out"
        )
    if matrix is not None and kind != "transition-matrix":
        raise InputError(
            f"--matrix {matrix} with --kind {kind}",
            expected="a matrix for kind transition-matrix",
            remedy="Type --kind transition-matrix, or leave --matrix out",
        )
    if matrix is None and kind == "transition-matrix":
        raise InputError(
            "--kind transition-matrix without --matrix",
            expected="a CSV file, K rows of K probabilities",
            remedy="Type --matrix FILE.csv",
        )


def empirical_matrix(dataset: NoisyDataset) -> tuple[np.ndarray, np.ndarray]:
    """Count how often each true class carries each label.

    Args:
        dataset: n examples of K classes with true labels.

    Returns:
        The matrix (K, K), rows summing to 1 and NaN for a class without examples, and the examples per class (K,).
    """
    classes = len(dataset.classes)
    counts = np.zeros((classes, classes))
    if dataset.clean_labels is not None:
        np.add.at(counts, (dataset.clean_labels.cpu().numpy(), dataset.labels.cpu().numpy()), 1)
    per_class = counts.sum(axis=1).astype(np.int64)
    with np.errstate(invalid="ignore"):
        return counts / per_class[:, None], per_class


def draw(dataset: NoisyDataset, matrix: np.ndarray, counts: np.ndarray, path: Path) -> Path:
    """Write the picture of the empirical matrix, with its numbers beside it."""
    import pandas as pd
    from matplotlib.figure import Figure

    from noisesam.plotting import plot_transition_matrix, save

    rate = None if dataset.noise is None else dataset.noise.realised_rate
    names = [str(name) for name in dataset.classes]
    axes = plot_transition_matrix(matrix, names, class_counts=[float(count) for count in counts], realised_rate=rate)
    table = pd.DataFrame(matrix, columns=pd.Index(names)).assign(true_class=names)
    figure = axes.get_figure()
    if not isinstance(figure, Figure):
        raise InputError("The Axes belong to no figure", expected="Axes of a Figure")
    return Path(save(figure, path, table).png)


def show_matrices(stated: np.ndarray | None, empirical: np.ndarray, names: list[str]) -> None:
    """Print both matrices, or only how far they are apart where there are too many classes."""
    if stated is not None:
        known = ~np.isnan(empirical).any(axis=1)
        apart = float(np.abs(stated - empirical)[known].max()) if known.any() else float("nan")
        say(f"largest difference between the stated and the empirical probability: {number(apart, 4)}")
        say()
    if len(names) > _SHOWN_CLASSES:
        say(f"{len(names)} classes: the matrices are in --json, the picture in --out")
        return
    for title, matrix in (("stated", stated), ("empirical", empirical)):
        if matrix is None:
            continue
        rows = [(name, *(cell_text(cell) for cell in row)) for name, row in zip(names, matrix, strict=True)]
        heading = f"{title} probability of the observed label (column), given the true class (row)"
        print_table(("", *(name[:5] for name in names)), rows, title=heading, right=range(1, len(names) + 1))
        out.print()


def cell_text(probability: float) -> str:
    """A cell of a matrix: two digits, a dot for a true zero, a dash where the class has no examples.

    Example:
        >>> cell_text(0.6), cell_text(0.0), cell_text(0.001), cell_text(float("nan"))
        ('.60', '.', '.00', '-')
    """
    return "." if probability == 0 else number(float(probability), 2).removeprefix("0")


def read_matrix(path: Path) -> np.ndarray:
    """Read a transition matrix from a CSV file: K rows of K probabilities, no heading."""
    expected = "K rows of K probabilities, separated by commas"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path} cannot be read: {reason}", expected=expected, remedy="Check the path of --matrix") from error
    if not text.strip():
        raise InputError(f"{path} is empty", expected=expected, remedy="Write one row for every true class")
    try:
        return np.loadtxt(text.splitlines(), delimiter=",", ndmin=2)
    except ValueError as error:
        raise InputError(
            f"{path} is no table of numbers: {error}", expected=expected, remedy="Leave out headings and names"
        ) from error
