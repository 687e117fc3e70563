"""The command line, the only place of the package that prints. Every command imports what it needs when it runs."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from noisesam.cli.console import err, out, show_error
from noisesam.errors import ConfigurationError, InputError, NoisesamError

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
"""Exit statuses: the call was wrong; the call was right and failed; Ctrl-C."""


def exit_status(error: NoisesamError) -> int:
    """2 where the user has to type something else (a name, a value, a configuration), 1 where something went wrong."""
    return USAGE if isinstance(error, (ConfigurationError, InputError)) else FAILURE


class Commands(TyperGroup):
    """Shows the errors that noisesam raises on purpose without a traceback; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; translate what it raises into a message and an exit status."""
        try:
            return super().invoke(ctx)
        except NoisesamError as error:
            show_error(error)
            raise typer.Exit(exit_status(error)) from error
        except FloatingPointError as error:
            show_error(NoisesamError(str(error), remedy="The run diverged: lower optimizer.lr or the method's rho"))
            raise typer.Exit(FAILURE) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            place = error.filename or "a file"
            reason = error.strerror or type(error).__name__
            show_error(
                NoisesamError(
                    f"Cannot use {place}: {reason}",
                    remedy="Check that it exists and may be read and written, and that the disk has space",
                )
            )
            raise typer.Exit(FAILURE) from error
        except KeyboardInterrupt as error:
            err.print("\nInterrupted. What a run had written is kept; the same command again resumes from its last checkpoint.")
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    name="noisesam",
    cls=Commands,
    help="Why do sharpness-aware methods resist label noise, and which part of the mechanism does each method keep?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        from noisesam import __version__

        out.print(f"noisesam {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


# The order is the order of the help page.
_COMMANDS = ("demo", "train", "analyze", "scoreboard", "sweep", "reproduce", "methods", "noise", "runs", "bench", "readme")
for _name in _COMMANDS:
    importlib.import_module(f"noisesam.cli.{_name}").register(app)


def main() -> None:
    """Run the command line; the entry point of `noisesam` and of `python -m noisesam`."""
    for stream in (sys.stdout, sys.stderr):
        # A stream of few characters (ASCII, Latin-1) gets a question mark for what it cannot show, not a traceback.
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")
    app()
