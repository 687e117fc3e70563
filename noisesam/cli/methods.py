"""`noisesam methods`: the registry as a table, or one method in full."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisesam.cli.console import out, plain, print_json, print_table, say

if TYPE_CHECKING:
    from noisesam.methods import MethodDescription


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("methods")(methods)


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method in full.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every hyper-parameter and default.")] = False,
) -> None:
    """List the methods: rule, cost in passes, reference; with NAME its hyper-parameters and defaults."""
    from noisesam.methods import controls, describe, names

    chosen = [describe(one) for one in ([name] if name is not None else names())]
    if as_json:
        described = [as_record(one) for one in chosen]
        print_json(described[0] if name is not None else described)
    elif name is None:
        print_table(
            ("name", "rule", "cost", "reference"),
            [(one.name, one.rule, one.cost, short_reference(one.reference)) for one in chosen],
            keep=(0, 2),
        )
        say()
        say("J: network Jacobian, r: logit scale (the residual), w: weights, eps: perturbation.")
        say("F, B: one forward, one backward pass of the batch.")
        say("Controls, made to rule an explanation out: " + ", ".join(controls()) + ".")
        say("In full, with hyper-parameters: noisesam methods NAME", style="dim")
    else:
        show_one(chosen[0])


def show_one(one: MethodDescription) -> None:
    """Print everything the registry says about a method."""
    out.print(f"[bold]{one.name}[/bold]  ", end="")
    say(one.title)
    facts = [("rule", one.rule), ("cost", one.cost), ("reference", one.reference), *(("limit", limit) for limit in one.limits)]
    print_table(("", ""), facts)
    say()
    rows = [(key, shown_default(default), meaning) for key, (default, meaning) in one.hyperparameters.items()]
    print_table(("hyper-parameter", "default", "meaning"), rows, keep=(0, 1))


def as_record(one: MethodDescription) -> dict[str, Any]:
    """Everything the registry says about a method, as JSON."""
    forward, backward = one.passes
    return {
        "name": one.name,
        "title": one.title,
        "rule": one.rule,
        "cost": one.cost,
        "passes": {"forward": forward, "backward": backward},
        "reference": one.reference,
        "hyperparameters": {
            key: {"default": plain(default), "meaning": meaning} for key, (default, meaning) in one.hyperparameters.items()
        },
        "limits": list(one.limits),
    }


def shown_default(default: Any) -> str:
    """A default as it is typed.

    Example:
        >>> shown_default(0.05), shown_default(None), shown_default(inspect.Parameter.empty)
        ('0.05', 'none', 'required')
    """
    if default is inspect.Parameter.empty:
        return "required"
    return "none" if default is None else str(default)


def short_reference(reference: str) -> str:
    """Authors and year of a reference.

    Example:
        >>> short_reference("Foret et al. 2021, Sharpness-Aware Minimization, arXiv 2010.01412")
        'Foret et al. 2021'
    """
    found = re.match(r".*?\b(19|20)\d\d\b\)?", reference)
    return found.group() if found else reference
