"""Look at a model without a trace: modes, gradients, buffers and generators are as before afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from noisesam.gradients.module_state import ModuleState


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode for a while and leave everything as it was, also after an exception.

    Dropout is off and BatchNorm uses its running statistics inside. Restored are the training flag of every submodule, every
    `.grad` (the same tensor, never written to), the buffers and attributes of the modules, and torch's generators of the CPU
    and of the model's devices.

    Args:
        model: the model that is looked at.

    Yields:
        Nothing.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        >>> with undisturbed(model):
        ...     model.training, torch.equal(model(torch.ones(1, 2)), model(torch.ones(1, 2)))
        (False, True)
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    state = ModuleState(model)
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            model.eval()
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, gradient in gradients:
                parameter.grad = gradient
            state.restore()
