"""Modules are found as torch finds them."""

from __future__ import annotations

import pytest
from torch import nn

from noisesam.bench.models import MODELS
from noisesam.gradients.traversal import modules_of


def _shared() -> nn.Module:
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return nn.ModuleDict({"a": nn.Sequential(nn.Sequential(shared), nn.Tanh()), "b": shared, "c": shared[0]})


def _without_a_child() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.register_module("missing", None)
    return model


def _in_a_circle() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    model[1].register_module("whole", model)
    return model


BUILDERS = {name: lambda model=model: model.build(True) for name, model in MODELS.items()}
BUILDERS |= {"shared": _shared, "without a child": _without_a_child, "in a circle": _in_a_circle, "alone": nn.ReLU}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_modules_are_torchs_in_its_order(name):
    model = BUILDERS[name]()
    found, expected = modules_of(model), list(model.modules())
    assert len(found) == len(expected)
    assert all(one is other for one, other in zip(found, expected, strict=True))
