"""The same dropout masks in every pass of a step, and passes that leave no trace."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import devices_of
from noisesam.gradients.module_state import modules_kept


@dataclass(frozen=True)
class RandomState:
    """The state of torch's default generators, on the CPU and on the accelerators that the model uses.

    With it goes Python's own: models drop whole layers by it.
    """

    cpu: Tensor
    devices: tuple[tuple[torch.device, Tensor], ...]
    python: tuple[Any, ...]

    @classmethod
    def capture(cls, devices: Sequence[torch.device] = ()) -> RandomState:
        """Copy the current state."""
        on_devices = tuple((device, torch.cuda.get_rng_state(device)) for device in devices)
        return cls(torch.get_rng_state(), on_devices, random.getstate())

    @property
    def of(self) -> list[torch.device]:
        """The accelerators whose generators are among them."""
        return [device for device, _ in self.devices]

    def holds(self) -> bool:
        """Whether nothing has been drawn from torch's generators since."""
        on_devices = all(torch.equal(torch.cuda.get_rng_state(device), state) for device, state in self.devices)
        return on_devices and torch.equal(torch.get_rng_state(), self.cpu)

    def restore(self) -> None:
        """Put the copied state back, so that the next pass draws what the pass after `capture` drew."""
        torch.set_rng_state(self.cpu)
        random.setstate(self.python)
        for device, state in self.devices:
            torch.cuda.set_rng_state(state, device)


@contextmanager
def undisturbed(model: nn.Module, *, attributes: bool = True) -> Iterator[None]:
    """Leave generators, buffers, attributes and gradients as they were; inside no parameter has a `.grad`.

    Args:
        model: The model.
        attributes: Whether the modules' attributes are put back, too.
    """
    state = RandomState.capture(devices_of(model))
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with modules_kept(model, attributes=attributes):
            yield
    finally:
        state.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient
