"""A model with other weights for the length of a call, its own put back afterwards whatever happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class WithWeights(nn.Module):
    """The model with other weights, callable like the model (not registered as a submodule: nothing is to be renamed).

    Each place of a module is exchanged once, by the identity of the parameter in it, also where layers or parameters are
    shared under several names; `torch.func.functional_call` goes by names, and leaves a layer that has two without its weights.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["_substituted"] = (model, weights)

    def forward(self, *args: object, **kwargs: object) -> Any:
        """Call the model with these weights."""
        model, weights = self.__dict__["_substituted"]
        other = {id(parameter): weights[name] for name, parameter in model.named_parameters() if name in weights}
        places = [
            (module._parameters, name, parameter)
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if id(parameter) in other
        ]
        try:
            for held, name, parameter in places:
                held[name] = other[id(parameter)]
            return model(*args, **kwargs)
        finally:
            for held, name, parameter in places:
                held[name] = parameter
