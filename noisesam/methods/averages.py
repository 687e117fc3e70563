"""Tensors that a method carries from step to step, by parameter name: gradient averages, kept directions, masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from noisesam.errors import InputError


def saved_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies for a state_dict."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def loaded_tensors(saved: Any, model: nn.Module, what: str) -> dict[str, Tensor]:
    """Return saved tensors on the parameters' devices, in the model's order; refuse what does not fit the model.

    Raises:
        InputError: A name or a shape is not that of a parameter of the model.
    """
    parameters = dict(model.named_parameters())  # frozen ones too: what was kept before they were is kept
    if not isinstance(saved, Mapping):
        raise InputError(
            f"{what} of type {type(saved).__name__} in a method's state",
            expected="tensors by parameter name",
            remedy="Build the method with the configuration of the run that saved it.",
        )
    loaded: dict[str, Tensor] = {}
    for name, value in saved.items():
        if name not in parameters or not isinstance(value, Tensor) or value.shape != parameters[name].shape:
            raise InputError(
                f"{what} of {name!r} in a method's state",
                expected="a tensor of the shape of a parameter of the model",
                remedy="Build model and method with the configuration of the run that saved them.",
            )
        loaded[name] = value.detach().clone().to(parameters[name].device)
    return {name: loaded[name] for name in parameters if name in loaded}  # a file may have kept another order
