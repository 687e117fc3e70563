"""A second look in float64 at a gradient that float32 leaves in doubt.

Behind a kink (ReLU, a largest value) a difference of one rounding can be another gradient, and what is compared are two
computations that round otherwise. A wrong axis is wrong in any numbers; an activation that lies within a rounding of zero does
so in float32 alone. So weights, buffers and inputs are taken to float64 for a moment, and the comparison is made there, where
it allows five orders of magnitude less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs, each_tensor
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.rounding import Rounding
from noisesam.gradients.engine.terms import close
from noisesam.gradients.engine.unsupported import FAILURES
from noisesam.gradients.traversal import modules_of

BY_A_KINK = 0.5
"""The share of a parameter's gradient by which roundings at kinks may change it; a wrong axis changes it by order one."""


def may_be_rounding(gap: float, own: float, rounding: Rounding) -> bool:
    """Whether two computations of a gradient may be this far apart for no other reason than float32."""
    return rounding.eps == torch.finfo(torch.float32).eps and gap <= BY_A_KINK * own


def agrees_in_double(
    engine: FastEngine,
    inputs: Inputs,
    logits: Tensor,
    compared: Callable[[FastEngine, Inputs], Tensor | None],
    rounding: Rounding,
) -> bool:
    """Whether the engine gives in float64 what plain autograd gives there.

    Args:
        engine: The engine, whose model has its own weights and buffers again afterwards: they are not touched.
        inputs: The batch.
        logits: The engine's outputs in float32, which have to be those in float64 but for roundings.
        compared: Compares an engine on a batch; returns its outputs, None where it is wrong or the model goes another way.
        rounding: What float32 allows.

    Returns:
        False, too, where nothing is found out: a model that computes in float32 alone, or for which there is no memory.
    """
    if all(own.dtype == torch.float64 for own in engine.parameters.values()):
        return False  # this is float64 already, of a model that returns coarser numbers
    try:
        with _in_double(engine.model) as in_double:
            parameters = {name: in_double[id(own)] for name, own in engine.parameters.items()}
            another = FastEngine(engine.model, parameters, guess=engine.guess)
            found = compared(another, each_tensor(inputs, _doubled))
        return found is not None and close(logits.double(), found.double(), rounding.tolerance)
    except (InputError, KeyError, *FAILURES):  # out of memory among them: the first look has to do
        return False


def _doubled(values: Tensor) -> Tensor:
    if values.is_complex():
        return values.to(torch.complex128)
    return values.double() if values.is_floating_point() else values


@contextmanager
def _in_double(model: nn.Module) -> Iterator[dict[int, nn.Parameter]]:
    """Put copies in float64 in the place of all parameters and buffers; lend the parameters' by the numbers of their own."""
    parameters, buffers = dict[int, nn.Parameter](), dict[int, Tensor]()
    own_tensors: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in modules_of(model):
            for name, own in list(module._parameters.items()):
                if own is not None:
                    copy = parameters.get(id(own))
                    if copy is None:
                        copy = nn.Parameter(_doubled(own.detach()), requires_grad=own.requires_grad)
                    own_tensors.append((module._parameters, name, own))
                    module._parameters[name] = parameters[id(own)] = copy
            for name, own in list(module._buffers.items()):
                if own is not None:
                    own_tensors.append((module._buffers, name, own))
                    module._buffers[name] = buffers.setdefault(id(own), _doubled(own.detach().clone()))
        yield parameters
    finally:
        for tensors, name, own in own_tensors:
            tensors[name] = own
