"""Groups of parameters with a radius of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.methods.checks import check_number, shown

EXPECTED = "groups such as [{'params': model.head.parameters(), 'rho': 0.1}]"


def as_groups(groups: Any) -> list[dict[str, Any]]:
    """Return parameter groups as a list, the parameters of each as a list too; None is no group.

    Raises:
        InputError: They are no list of mappings with the keys 'params' and 'rho'.
    """
    if groups is None:
        return []
    if isinstance(groups, (str, Mapping, Tensor)) or not isinstance(groups, Iterable):
        raise InputError(
            f"parameter_groups of type {type(groups).__name__}", expected=EXPECTED, remedy="A single group is a list of one."
        )
    return [_as_group(group, f"parameter_groups[{number}]") for number, group in enumerate(groups)]


def _as_group(group: Any, place: str) -> dict[str, Any]:
    if not isinstance(group, Mapping):
        raise InputError(
            f"{place} of type {type(group).__name__}",
            expected=EXPECTED,
            remedy="Write every group as {'params': ..., 'rho': ...}",
        )
    if set(group) != {"params", "rho"}:
        keys = ", ".join(sorted(map(repr, group))) or "none"
        raise InputError(
            f"{place} with the keys {keys}",
            expected="the keys 'params' and 'rho', as in " + EXPECTED,
            remedy="Learning rate and weight decay of a group belong to the optimizer's groups.",
        )
    members = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    if isinstance(members, (str, Mapping)) or not isinstance(members, Iterable):
        raise InputError(
            f"{place} with 'params' of type {type(members).__name__}",
            expected="a parameter of the model or several",
            remedy="Pass tensors, such as model.head.parameters(), not names.",
        )
    members = list(members)
    if not members:
        raise InputError(
            f"{place} without parameters",
            expected="at least one parameter of the model",
            remedy="A generator such as model.parameters() serves once: pass list(model.parameters()).",
        )
    return {"params": members, "rho": group["rho"]}


def radii_by_name(groups: list[dict[str, Any]], model: nn.Module) -> dict[str, float]:
    """Return rho by the name of every parameter that a group holds.

    By name, not by identity: a deep copy of model and method keeps its radii.

    Raises:
        InputError: A group holds what is no parameter of the model, or a parameter of another group; or a radius is not one.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    radii: dict[str, float] = {}
    for number, group in enumerate(groups):
        place = f"parameter_groups[{number}]"
        rho = check_number(f"{place}['rho']", group["rho"], at_least=0, remedy="rho=0 leaves the group where it is.")
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if name is None:
                raise InputError(
                    f"{place} holds {'text' if isinstance(parameter, str) else f'a {type(parameter).__name__}'}"
                    f" that is no parameter of the model: {shown(parameter)}",
                    expected="parameters of the model that the method was built with",
                    remedy="Pass tensors, such as model.head.parameters(), not names or copies.",
                )
            if name in radii:
                raise InputError(
                    f"{place} repeats the parameter {name!r}",
                    expected="every parameter in one group at most",
                    remedy="Take it out of one of them; a tied weight counts once.",
                )
            radii[name] = rho
    return radii
