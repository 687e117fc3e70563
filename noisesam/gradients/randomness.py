"""The same dropout masks in every pass of a step, and passes that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import devices_of


@dataclass(frozen=True)
class RandomState:
    """The state of torch's default generators, on the CPU and on the accelerators that the model uses."""

    cpu: Tensor
    devices: tuple[tuple[torch.device, Tensor], ...]

    @classmethod
    def capture(cls, devices: Sequence[torch.device] = ()) -> RandomState:
        """Copy the current state."""
        return cls(torch.get_rng_state(), tuple((device, torch.cuda.get_rng_state(device)) for device in devices))

    def restore(self) -> None:
        """Put the copied state back, so that the next pass draws what the pass after `capture` drew."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices:
            torch.cuda.set_rng_state(state, device)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leave generators, buffers and gradients as they were; inside no parameter has a `.grad`."""
    state = RandomState.capture(devices_of(model))
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        state.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, copy in buffers:
                if not torch.equal(buffer, copy):  # writing what is there would spoil a graph that somebody holds
                    buffer.copy_(copy)
