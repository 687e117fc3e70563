"""Activation checkpointing is set aside where every example has weights of its own.

A checkpointed block would be run again in the reverse pass, when the model's parameters are those at w: what was computed at
w + eps_i would be replaced by what the block makes of w, and nothing would show it. In per-example passes such blocks run as
they are and keep their values; parts of the batch (`chunk_size`) bound the memory. Checkpoints by other means are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs, call_model
from noisesam.gradients.frozen_batch_norm import WrittenOut

# Not public functions of torch: without them a checkpoint would not be set aside, or pass unseen, which tests of every
# supported version look for.
_GENERATOR = "_checkpoint_without_reentrant_generator"
_top_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd,  # pyright: ignore[reportAttributeAccessIssue]
    "_top_saved_tensors_default_hooks",
    lambda _: None,
)


def evaluate(model: nn.Module, inputs: Inputs, under: AbstractContextManager[Any] | None = None) -> Tensor:
    """Return the model's output, from a forward pass that keeps all that its reverse pass needs.

    Args:
        model: The model.
        inputs: The examples.
        under: What is active while the model runs, if it takes care of BatchNorm itself: a second mode costs time at every
            function of the model.
    """
    with _nothing_recomputed():
        return call_model(model, inputs, under or WrittenOut())


_lock = threading.Lock()
_inside = 0
_replaced: dict[str, Any] = {}


@contextmanager
def _nothing_recomputed() -> Iterator[None]:
    """Let both kinds of torch's checkpoints call their blocks directly; threads may overlap, the last one puts them back."""
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _replaced[_GENERATOR] = getattr(torch_checkpoint, _GENERATOR, None)
            setattr(torch_checkpoint, _GENERATOR, _pass_through)
            torch_checkpoint.CheckpointFunction.apply = staticmethod(_call_directly)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                setattr(torch_checkpoint, _GENERATOR, _replaced.pop(_GENERATOR))
                del torch_checkpoint.CheckpointFunction.apply  # inherited again


def _pass_through(
    function: Callable[..., Any], preserve: bool = True, context: Any = torch_checkpoint.noop_context_fn, *_: Any, **__: Any
) -> Iterator[None]:
    """Stand for what surrounds a block in `checkpoint(..., use_reentrant=False)`: the context of its forward pass alone."""
    del function, preserve
    with context()[0]:
        yield


def _call_directly(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
    """Stand for what `checkpoint(..., use_reentrant=True)` makes of a block."""
    del preserve
    return function(*args)


def refuse_recomputation() -> None:
    """Refuse to go on inside a block whose intermediate values are dropped, to be computed again in the reverse pass."""
    hooks = _top_hooks(True)
    if hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint":
        raise InputError(
            "Activation checkpointing inside the model, by other means than torch.utils.checkpoint.checkpoint",
            expected="intermediate values that are kept: a checkpoint would compute them again at w instead of w + eps_i",
            remedy="Switch checkpointing off for per-example passes; chunk_size or memory_budget bounds their memory.",
        )


class NoRecomputation(TorchFunctionMode):
    """While active, every torch function refuses to run inside a checkpointed block."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look before every function."""
        refuse_recomputation()
        return func(*args, **(kwargs or {}))
