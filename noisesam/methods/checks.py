"""Refusals of hyper-parameters, in one form: what was given, what was expected, what to type instead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from torch import nn

from noisesam.errors import InputError, nearest_name

_PARALLEL = {"DistributedDataParallel", "FullyShardedDataParallel"}


def check_number(
    name: str,
    value: object,
    *,
    at_least: float | int = -math.inf,
    above: float | int = -math.inf,
    at_most: float | int = math.inf,
    below: float | int = math.inf,
    remedy: str = "",
) -> float:
    """Return a finite number within its bounds, as a Python float.

    Example:
        >>> check_number("beta", 0.6, above=0, at_most=1)
        0.6
    """

    def fits(number: float) -> bool:
        return math.isfinite(number) and at_least <= number <= at_most and above < number < below

    number = _as_float(value)
    if not fits(number):
        bounds = [f"at least {at_least:g}"] * (at_least > -math.inf) + [f"above {above:g}"] * (above > -math.inf)
        bounds += [f"at most {at_most:g}"] * (at_most < math.inf) + [f"below {below:g}"] * (below < math.inf)
        if isinstance(value, str) and fits(_parsed(value)):
            remedy = f"Type the number without quotes: {name}={value.strip()}"
        raise InputError(
            f"{name}={shown(value)}",
            expected="a finite number" + (", " + " and ".join(bounds) if bounds else ""),
            remedy=remedy or _left_out(name),
        )
    return number


def refuse_data_parallel(model: nn.Module) -> None:
    """Refuse wrappers that average gradients by hooks on loss.backward(): a method takes gradients without it."""
    for module in model.modules():
        wrapper = next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _PARALLEL), None)
        if wrapper is not None:
            raise InputError(
                f"A model wrapped in {wrapper}",
                expected="the model itself: the wrapper averages gradients in loss.backward() alone, which a method replaces",
                remedy="Pass model.module, and average every .grad over the processes after method.backward().",
            )


def check_count(name: str, value: object, *, at_least: int = 1, remedy: str = "") -> int:
    """Return a whole number of at least `at_least`, as a Python int.

    Example:
        >>> check_count("k", 5)
        5
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < at_least:
        meant = _parsed(value) if isinstance(value, str) else _as_float(value)
        if not isinstance(value, Integral) and meant.is_integer() and meant >= at_least:
            remedy = f"Type the whole number: {name}={int(meant)}"
        raise InputError(
            f"{name}={shown(value)}", expected=f"a whole number of at least {at_least}", remedy=remedy or _left_out(name)
        )
    return int(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return one of the choices.

    Example:
        >>> check_choice("mask", "tensor", ("element", "tensor"))
        'tensor'
    """
    if not isinstance(value, str) or value not in choices:
        close = nearest_name(value, choices) if isinstance(value, str) else None
        raise InputError(
            f"{name}={shown(value)}",
            expected="one of: " + ", ".join(choices),
            remedy=f"Did you mean {close!r}?" if close else _left_out(name),
        )
    return value


def check_flag(name: str, value: object) -> bool:
    """Return True or False.

    Example:
        >>> check_flag("bias", True)
        True
    """
    if not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}", expected="True or False", remedy=f"Type {name}=True or {name}=False")
    return value


def saved_count(state: Mapping[str, Any], name: str) -> int:
    """Return a counter of a saved state.

    Example:
        >>> saved_count({"method": "sam", "steps": 3}, "steps")
        3

    Raises:
        InputError: The state holds no whole number of that name.
    """
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(
            f"A method's state with {name}={shown(value)}" if name in state else f"A method's state without {name!r}",
            expected="what state_dict returned",
            remedy="Build the method with the configuration of the run that saved it.",
        )
    return int(value)


def shown(value: object) -> str:
    """Return a value as it was typed, cut where it is long (a tensor, say).

    Example:
        >>> shown("0.1")
        "'0.1'"
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def _left_out(name: str) -> str:
    return f"Leave {name} out for its default"


def _as_float(value: object) -> float:
    """Return a real number as a float, NaN for anything else; whole numbers beyond the range of floats are infinite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _parsed(text: str) -> float:
    """Return the number that a text spells, NaN if it spells none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
