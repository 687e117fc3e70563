"""BatchNorm with its running statistics, written out: torch's own kernel has wrong gradients for some memory orders.

On a CPU the reverse pass of `torch.nn.functional.batch_norm` reads the output gradient in another order than the one it lies
in where an axis has length one, a batch of one example above all, and that axis' stride suggests channels that lie last
(seen in torch 2.11 and 2.13). Examples that run alone meet just that. With running statistics the layer is a scale and a
shift, so it costs nothing to write it out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from noisesam.gradients.traversal import modules_of


def normalise(
    values: Float[Tensor, "n channels ..."],
    mean: Float[Tensor, " channels"],
    variance: Float[Tensor, " channels"],
    epsilon: float,
) -> Float[Tensor, "n channels ..."]:
    """Return (x - mean) / sqrt(variance + epsilon) channel by channel, at least in the statistics' precision."""
    view = [1, -1] + [1] * (values.dim() - 2)
    inverse = torch.rsqrt(variance + epsilon)
    shift, scale = (-mean * inverse).view(view), inverse.view(view)
    return torch.addcmul(shift, values.to(torch.promote_types(values.dtype, shift.dtype)), scale).to(values.dtype)


def written_out(model: nn.Module) -> AbstractContextManager[Any]:
    """While active, the model's BatchNorm layers that use their running statistics do so by plain arithmetic."""
    frozen = any(isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training for module in modules_of(model))
    return WrittenOut() if frozen else nullcontext()


class WrittenOut(TorchFunctionMode):
    """While active, `batch_norm` with running statistics is plain arithmetic, whoever calls it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Write the one function out and leave all others as they are."""
        return as_arithmetic(func)(*args, **(kwargs or {}))


def as_arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands for a function: `batch_norm` written out, every other as it is."""
    return _batch_norm if function is torch.nn.functional.batch_norm else function


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None or running_mean.numel() != input.shape[1]:
        return torch.nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    output = normalise(input, running_mean, running_var, eps)
    view = [1, -1] + [1] * (input.dim() - 2)
    if weight is not None:
        output = output * weight.view(view).to(output.dtype)
    return output if bias is None else output + bias.view(view).to(output.dtype)
