"""What a model does in its first pass on such a batch alone is done before the model is proven.

Many fill a table when they first meet a length (positions, rotations, distances) and note that they have. Of two passes of a
step the first would then be another one than the second, and what was proven would be neither. So the model is run twice: what
only the first pass has changed stays, as after any forward pass of the user's; what both change (running statistics, counters)
is put back.
"""

from __future__ import annotations

import numpy
import torch
from torch import nn

from noisesam.gradients.batch import Inputs, devices_of, each_tensor
from noisesam.gradients.engine.unsupported import FAILURES
from noisesam.gradients.module_state import ModuleState
from noisesam.gradients.randomness import RandomState
from noisesam.gradients.recomputation import evaluate


def fill_tables(model: nn.Module, inputs: Inputs) -> None:
    """Let the modules keep what they compute once for batches like this; all else is left as it was."""
    before, random_state = ModuleState(model), RandomState.capture(devices_of(model))
    of_numpy = numpy.random.get_state(legacy=False)  # noqa: NPY002 - a model that draws with it is refused later
    filled: list[nn.Module] = []
    try:
        with torch.enable_grad():
            evaluate(model, each_tensor(inputs, torch.clone))
            changed = before.changed()
            if changed:
                between = ModuleState(model)
                random_state.restore()
                evaluate(model, each_tensor(inputs, torch.clone))
                again = between.changed()
                filled = [module for module in changed if not any(module is other for other in again)]
    except FAILURES:
        filled = []  # the proof will meet it, too, and say so
    finally:
        before.restore(besides=filled)
        random_state.restore()
        numpy.random.set_state(of_numpy)  # noqa: NPY002
