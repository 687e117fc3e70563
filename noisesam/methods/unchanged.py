"""What is asked of a method without a step leaves the model as it was."""

from __future__ import annotations

import torch
from torch import nn

from noisesam.gradients.batch import devices_of
from noisesam.gradients.randomness import RandomState


class unchanged:  # noqa: N801
    """Leave the model's buffers and torch's generators as they were."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.state = RandomState.capture(devices_of(self.model))
        self.buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]

    def __exit__(self, *exception: object) -> None:
        self.state.restore()
        with torch.no_grad():
            for buffer, copy in self.buffers:
                buffer.copy_(copy)
