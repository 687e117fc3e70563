"""Activation checkpointing is seen before it can do harm where every example has weights of its own.

A checkpointed block is run again in the reverse pass, when the model's parameters are those at w: what was computed at
w + eps_i would be replaced by what the block makes of w, and nothing would show it. Such a model runs on the engine that
moves the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs, call_model
from noisesam.gradients.plain import has_reentrant_checkpoint
from noisesam.gradients.randomness import undisturbed

# Not a public function of torch: without it a checkpoint would pass unseen, which a test of every supported version looks for.
_top_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd,  # pyright: ignore[reportAttributeAccessIssue]
    "_top_saved_tensors_default_hooks",
    lambda _: None,
)


RECOMPUTES = "activation checkpointing computes values again in the reverse pass"


class RecomputedActivationsError(InputError):
    """A block of the model drops its intermediate values, to compute them again in the reverse pass."""


def refuse_recomputation() -> None:
    """Refuse to go on inside a block whose intermediate values are dropped, to be computed again in the reverse pass."""
    hooks = _top_hooks(True)
    if hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint":
        raise RecomputedActivationsError(
            "Activation checkpointing (torch.utils.checkpoint) that was switched on after the model's first step",
            expected="the checkpoints that it had then: values would be computed again at w instead of w + eps_i",
            remedy="Switch it on before the first step, or work with copy.deepcopy(model): a new model is looked at anew.",
        )


class NoRecomputation(TorchFunctionMode):
    """While active, every torch function refuses to run inside a checkpointed block."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look before every function."""
        refuse_recomputation()
        return func(*args, **(kwargs or {}))


def recomputes(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a forward pass drops values that it computes again in the reverse pass."""
    with undisturbed(model), torch.enable_grad():
        try:
            with NoRecomputation():
                output = call_model(model, inputs)
        except RecomputedActivationsError:
            return True
        return has_reentrant_checkpoint(output)
