"""Commands whose place is kept: their names are reserved, and calling one says so instead of guessing."""

from __future__ import annotations

import typer

from noisesam.cli.console import err

PLANNED: dict[str, str] = {}


def register(app: typer.Typer) -> None:
    """Add one hidden command per planned name; it takes any arguments and exits with status 2."""
    for name, meaning in PLANNED.items():
        _add(app, name, meaning)


def _add(app: typer.Typer, name: str, meaning: str) -> None:
    def planned() -> None:
        err.print(f"noisesam {name} is not available in this version. Planned: {meaning}.", markup=False)
        raise typer.Exit(2)

    app.command(
        name,
        hidden=True,
        help=f"Not available in this version. Planned: {meaning}.",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(planned)
