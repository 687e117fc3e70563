"""Initial weights from a generator of their own: the same seed gives the same model, and no other draw is disturbed."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from noisesam.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


class Tokens(nn.Module):
    """Learned vectors that are added to, or put before, the positions of every example; drawn from N(0, 0.02^2)."""

    weight: Tensor

    def __init__(self, positions: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, positions, features))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the vectors anew."""
        nn.init.normal_(self.weight, std=0.02, generator=generator)


def initialise(model: Model, generator: torch.Generator, *, init_std: float | int | str | None = None) -> Model:
    """Draw every parameter of `model` anew, in place, from `generator` alone.

    With `init_std=None`, torch's own default distributions: weights and biases of linear and convolutional layers are
    uniform on `[-1/sqrt(d), 1/sqrt(d)]`, d the number of inputs of one output; normalisation layers are the identity;
    embeddings are N(0, 1). With a number, every linear and convolutional weight is N(0, init_std^2); with "fan_in" it is
    N(0, 1/d); their biases are zero then.

    A module that holds other parameters says how to draw them in a method `initialise(generator)`.

    Args:
        model: the network; changed in place.
        generator: a CPU generator; the only source of randomness.
        init_std: None, a standard deviation, or "fan_in".

    Returns:
        The same model.

    Raises:
        InputError: a module holds parameters and neither is of a known kind nor has a method `initialise`.

    Example:
        >>> import torch
        >>> from noisesam.models import initialise
        >>> layer = torch.nn.Linear(3, 2)
        >>> first = initialise(layer, torch.Generator().manual_seed(7)).weight.clone()
        >>> bool((initialise(layer, torch.Generator().manual_seed(7)).weight == first).all())
        True
    """
    with torch.no_grad():
        for name, module in model.named_modules():
            own = list(module.parameters(recurse=False))
            draw = getattr(module, "initialise", None)
            if not own:
                continue
            if callable(draw):
                draw(generator)
            elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                _draw_weighted(module, generator, init_std)
            elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                # Written out, since reset_parameters is free to draw from the global generator.
                nn.init.ones_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, generator=generator)
                if module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()
            else:
                raise InputError(
                    f"The module {name!r} of type {type(module).__name__} holds parameters that nobody draws",
                    expected="Linear, Conv, LayerNorm, GroupNorm, Embedding, or a module with a method initialise(generator)",
                    remedy="Give the module a method initialise(generator) that draws its own parameters.",
                )
    return model


def _draw_weighted(
    module: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, generator: torch.Generator, init_std: float | int | str | None
) -> None:
    inputs_per_output = max(1, module.weight[0].numel())
    if init_std is None:
        bound = 1 / math.sqrt(inputs_per_output)
        nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        if module.bias is not None:
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        return
    std = 1 / math.sqrt(inputs_per_output) if init_std == "fan_in" else float(init_std)
    nn.init.normal_(module.weight, std=std, generator=generator)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
