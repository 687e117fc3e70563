"""A loss by its name, with parameters where it has some: "cross_entropy", "generalised_cross_entropy(q=0.5)"."""

from __future__ import annotations

import inspect
import re

from noisesam.errors import InputError, nearest_name, unknown_name
from noisesam.gradients.losses import CrossEntropy, Logistic, Loss, SquaredError
from noisesam.gradients.robust_losses import ROBUST

_NAMED: dict[str, type[Loss]] = {loss.name: loss for loss in (CrossEntropy, Logistic, SquaredError, *ROBUST)}
_FORM = re.compile(r"\s*([^\s()]+)\s*(?:\((.*)\)\s*)?", re.DOTALL)


def known_names() -> tuple[str, ...]:
    """Return the names of the losses that have a closed-form residual."""
    return tuple(_NAMED)


def named_loss(text: str) -> Loss:
    """Return the loss of a name, with the parameters that stand behind it in parentheses.

    Args:
        text: A name, or "name(parameter=value, ...)"; a parameter that is left out takes its default.

    Returns:
        The loss.

    Raises:
        InputError: An unknown name or parameter, a value out of its range, or text of another form.

    Example:
        >>> named_loss("generalised_cross_entropy").q, named_loss("generalised_cross_entropy(q=0.5)").q
        (0.7, 0.5)
        >>> named_loss("label_smoothing(eps=0.1)")
        Traceback (most recent call last):
        noisesam.errors.InputError: Unknown parameter 'eps' of the loss 'label_smoothing'. Expected one of: epsilon. Did you
        mean 'epsilon'?
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise InputError(f"The loss {text!r}", expected="a name, or name(parameter=value)", remedy="Type cross_entropy.")
    name, inside = found.groups()
    if name not in _NAMED:
        raise unknown_name("loss", name, _NAMED)
    kind = _NAMED[name]
    known = defaults_of(kind)
    values: dict[str, float] = {}
    for part in (inside or "").split(","):
        if not part.strip():
            continue
        key, equals, value = (word.strip() for word in part.partition("="))
        if equals and key not in known:
            close = nearest_name(key, known)
            raise InputError(
                f"Unknown parameter {key!r} of the loss {name!r}",
                expected="one of: " + ", ".join(known) if known else "no parameter",
                remedy=f"Did you mean {close!r}?" if close else f"Type {name}." if not known else "",
            )
        if not equals or key in values:
            raise InputError(
                f"{part.strip()!r} in the loss {text!r}",
                expected="each parameter once, as parameter=value",
                remedy=f"Type {shown(kind)}.",
            )
        values[key] = _number(key, value, text)
    return kind(**values)


def defaults_of(kind: type[Loss]) -> dict[str, float]:
    """Return the parameters of a loss with their defaults.

    Example:
        >>> defaults_of(named_loss("generalised_cross_entropy").__class__)
        {'q': 0.7}
    """
    if "__init__" not in vars(kind):
        return {}
    return {key: one.default for key, one in inspect.signature(kind).parameters.items()}


def shown(kind: type[Loss]) -> str:
    """Return the loss as it is typed with its defaults.

    Example:
        >>> shown(type(named_loss("label_smoothing")))
        'label_smoothing(epsilon=0.1)'
    """
    inside = ", ".join(f"{key}={value:g}" for key, value in defaults_of(kind).items())
    return f"{kind.name}({inside})" if inside else kind.name


def _number(key: str, value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{key}={value!r} in the loss {text!r}", expected="a number", remedy=f"Type {key}=0.5.") from None
