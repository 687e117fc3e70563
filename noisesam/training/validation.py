"""The names of a configuration, checked against the registries of data, models and methods before anything is trained."""

from __future__ import annotations

from collections.abc import Collection

from noisesam.errors import ConfigurationError, InputError, nearest_name
from noisesam.training.config import Config
from noisesam.training.values import check_choice


def validate(config: Config) -> None:
    """Refuse names and hyper-parameters that no registry knows. Loads torch, which `load_config` does not.

    Args:
        config: a configuration from `load_config`.

    Raises:
        ConfigurationError: an unknown noise kind, model, model option, loss, method or hyper-parameter, with its full key.

    Example:
        >>> from noisesam.training import load_config
        >>> validate(load_config({"method": {"name": "sam", "roh": 0.1}}))
        Traceback (most recent call last):
        noisesam.errors.ConfigurationError: Unknown key 'method.roh' for the method 'sam'. Expected one of: ... Did you mean
        'method.rho'?
    """
    from noisesam import data, methods, models

    # A matrix has no place in a configuration; labels drawn from one come in as a data file of their own.
    check_choice("noise.kind", config.noise.kind, tuple(kind for kind in data.noise_kinds() if kind != "transition-matrix"))
    check_choice("model.name", config.model.name, tuple(models.names()))
    options = models.describe(config.model.name).options
    _check_keys("model.options.", config.model.options, options, f"the model {config.model.name!r}")
    check_choice("method.name", config.method.name, (*methods.names(), *methods.controls()))
    _check_loss(config.method.loss)
    # Groups are lists of tensors, which no file can name.
    known = set(methods.describe(config.method.name).hyperparameters) - {"parameter_groups"}
    _check_keys("method.", config.method.hyperparameters, known, f"the method {config.method.name!r}")


def _check_loss(text: str) -> None:
    """Refuse a loss that has no such name or no such parameter."""
    from noisesam.gradients.losses import resolve

    try:
        resolve(text)
    except InputError as error:
        raise ConfigurationError(
            f"method.loss = {text!r}: {error.given}", expected=error.expected, remedy=error.remedy
        ) from None


def _check_keys(prefix: str, given: Collection[str], known: Collection[str], where: str) -> None:
    """Refuse the first given key that is not known."""
    for key in given:
        if key not in known:
            close = nearest_name(key, known)
            raise ConfigurationError(
                f"Unknown key {prefix + key!r} for {where}",
                expected="one of: " + ", ".join(prefix + name for name in sorted(known)) if known else "no keys of its own",
                remedy=f"Did you mean {prefix + close!r}?" if close else "",
            )
