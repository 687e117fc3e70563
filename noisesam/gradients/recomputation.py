"""Activation checkpointing is refused where every example has weights of its own.

A checkpointed block is run again in the reverse pass, when the model's parameters are those at w: what was computed at
w + eps_i would be replaced by what the block makes of w, and nothing would show it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from noisesam.errors import InputError

# Not a public function of torch: without it a checkpoint would pass unseen, which a test of every supported version looks for.
_top_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd,  # pyright: ignore[reportAttributeAccessIssue]
    "_top_saved_tensors_default_hooks",
    lambda _: None,
)


def refuse_recomputation() -> None:
    """Refuse to go on inside a block whose intermediate values are dropped, to be computed again in the reverse pass."""
    hooks = _top_hooks(True)
    if hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint":
        raise InputError(
            "Activation checkpointing (torch.utils.checkpoint) inside the model",
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
