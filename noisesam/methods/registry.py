"""The family by name: one line each. Tables, the command line and the conformance tests follow from here."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from noisesam.errors import InputError, nearest_name, unknown_name
from noisesam.gradients.losses import PerExampleLoss
from noisesam.methods.base import Method
from noisesam.methods.checks import check_flag

_REGISTRY: dict[str, str] = {
    "sgd": "noisesam.methods.sgd:SGD",
    "sam": "noisesam.methods.sam:SAM",
    "m-sam": "noisesam.methods.m_sam:MSAM",
    "1-sam": "noisesam.methods.per_example:OneSAM",
    "l-sam": "noisesam.methods.per_example:LSAM",
    "j-sam": "noisesam.methods.per_example:JSAM",
    "reg-sgd": "noisesam.methods.reg_sgd:RegularizedSGD",
    "esam": "noisesam.methods.esam:ESAM",
    "looksam": "noisesam.methods.looksam:LookSAM",
    "looklayersam": "noisesam.methods.looklayersam:LookLayerSAM",
    "saf": "noisesam.methods.saf:SAF",
    "mesa": "noisesam.methods.mesa:MESA",
    "ssam-f": "noisesam.methods.ssam_f:FisherSparseSAM",
    "ssam-d": "noisesam.methods.ssam_d:DynamicSparseSAM",
    "f-sam": "noisesam.methods.f_sam:FriendlySAM",
    "ausam": "noisesam.methods.ausam:AUSAM",
    "asam": "noisesam.methods.asam:ASAM",
    "gsam": "noisesam.methods.gsam:GSAM",
    "saner": "noisesam.methods.saner:SANER",
    "vasso": "noisesam.methods.vasso:VaSSO",
    "gnp": "noisesam.methods.gnp:GNP",
    "random-sam": "noisesam.methods.random_sam:RandomSAM",
}

_CONTROLS: dict[str, str] = {
    "length-matched-sgd": "noisesam.methods.length_matched_sgd:LengthMatchedSGD",
}
"""Built, described, checked and trained as the family is, and no members of it: a control rules an explanation out and is
nobody's method, so tables of the family do not list it."""
_BUILT = {**_REGISTRY, **_CONTROLS}

COMMON = {
    "chunk_size": "examples per chunk, auto (by memory_budget) or None for all; changes memory, not the result beyond rounding",
    "memory_budget": "bytes for chunk_size=auto, a stated number, so that bits repeat; None: 2 GiB on a CPU, 8 GiB elsewhere",
    "parameter_groups": "[{'params': ..., 'rho': ...}]: groups of parameters with their own rho",
}


@dataclass(frozen=True)
class MethodDescription:
    """What the registry knows of a method."""

    name: str
    title: str
    rule: str
    cost: str
    passes: tuple[str, str]
    """Forward and backward passes over the batch per step."""
    reference: str
    hyperparameters: Mapping[str, tuple[Any, str]]
    """Default and meaning of every hyper-parameter."""
    limits: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Return the names of all methods of the family, the baseline first."""
    return tuple(_REGISTRY)


def controls() -> tuple[str, ...]:
    """Return the names of the controls: rules that `make` builds too, made to rule an explanation out.

    Example:
        >>> controls()
        ('length-matched-sgd',)
    """
    return tuple(_CONTROLS)


def class_named(name: str) -> type[Method] | None:
    """Return the method class of that name, None if no method has it."""
    for place in _BUILT.values():
        module, attribute = place.split(":")
        if attribute == name:
            return getattr(importlib.import_module(module), attribute)
    return None


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        InputError: The name is unknown.
    """
    if not isinstance(name, str) or name not in _BUILT:
        raise unknown_name("method", name, _BUILT)
    module, attribute = _BUILT[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def describe(name: str) -> MethodDescription:
    """Return rule, cost, reference and hyper-parameters of a method.

    Example:
        >>> describe("1-sam").rule
        'mean_i J_i(w+eps_i)^T r_i(w+eps_i)'
        >>> describe("1-sam").hyperparameters["rho"][0]
        0.01
    """
    kind = method_class(name)
    common = {key: meaning for key, meaning in COMMON.items() if kind.perturbs or key != "parameter_groups"}
    meanings = {**kind.hyperparameters, **kind.inherited, **common}
    defaults: dict[str, Any] = {}
    for base in reversed(kind.__mro__[:-1]):  # a subclass hands the options of its bases on
        signature = inspect.signature(base.__init__)
        defaults |= {key: p.default for key, p in signature.parameters.items() if p.default is not p.empty}
    hyperparameters = {key: (defaults[key], meaning) for key, meaning in meanings.items()}
    return MethodDescription(
        kind.name, kind.title, kind.rule, kind.cost, kind.passes, kind.reference, hyperparameters, kind.limits
    )


def make(name: str, model: nn.Module, *, loss: str | PerExampleLoss = "cross_entropy", **hyperparameters: Any) -> Method:
    """Build a method by name.

    Args:
        name: One of `names()` or `controls()`.
        model: The model whose gradient it computes.
        loss: A name or a callable (logits, targets) -> losses (n,).
        hyperparameters: As listed by `describe(name)`.

    Returns:
        The method; call its `backward` in place of `loss.backward()`.

    Raises:
        InputError: The name, a hyper-parameter's name or its value is not valid.

    Example:
        >>> import torch
        >>> make("sam", torch.nn.Linear(3, 2), rho=0.1).rho
        0.1
    """
    kind = method_class(name)
    valid = describe(name).hyperparameters
    for key, value in hyperparameters.items():
        if key not in valid:
            close = nearest_name(key, valid)
            raise InputError(
                f"Unknown hyper-parameter {key!r} of the method {name!r}",
                expected="one of: " + ", ".join(valid),
                remedy=f"Did you mean {close!r}?" if close else f"`noisesam methods {name}` lists them with their meanings.",
            )
        if isinstance(valid[key][0], bool):
            check_flag(key, value)
    return kind(model, loss=loss, **hyperparameters)
