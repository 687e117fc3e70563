"""What is asked of a method without a step leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from noisesam.gradients.batch import devices_of
from noisesam.gradients.module_state import modules_kept
from noisesam.gradients.randomness import RandomState


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Leave the model's buffers and attributes, and torch's generators as they were."""
    state = RandomState.capture(devices_of(model))
    try:
        with modules_kept(model):
            yield
    finally:
        state.restore()
