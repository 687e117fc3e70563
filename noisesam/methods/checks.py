"""Refusals of hyper-parameters, in one form: what was given, what was expected."""

from __future__ import annotations

import math

from noisesam.errors import InputError


def check_number(
    name: str,
    value: object,
    *,
    at_least: float | int = -math.inf,
    above: float | int = -math.inf,
    at_most: float | int = math.inf,
    remedy: str = "",
) -> float:
    """Return a finite number within its bounds.

    Example:
        >>> check_number("beta", 0.6, above=0, at_most=1)
        0.6
    """
    number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    if not math.isfinite(number) or number < at_least or number <= above or number > at_most:
        bounds = [f"at least {at_least:g}"] * (at_least > -math.inf) + [f"above {above:g}"] * (above > -math.inf)
        bounds += [f"at most {at_most:g}"] * (at_most < math.inf)
        expected = "a finite number" + (", " + " and ".join(bounds) if bounds else "")
        raise InputError(f"{name}={value!r}", expected=expected, remedy=remedy)
    return number


def check_count(name: str, value: object, *, at_least: int = 1, remedy: str = "") -> int:
    """Return a whole number of at least `at_least`.

    Example:
        >>> check_count("k", 5)
        5
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{name}={value!r}", expected=f"a whole number of at least {at_least}", remedy=remedy)
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return one of the choices.

    Example:
        >>> check_choice("mask", "tensor", ("element", "tensor"))
        'tensor'
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name}={value!r}", expected="one of: " + ", ".join(choices))
    return value


def check_flag(name: str, value: object) -> bool:
    """Return True or False.

    Example:
        >>> check_flag("bias", True)
        True
    """
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r}", expected="True or False")
    return value
