"""Products with a weight that all examples share, by the quicker of the two libraries that torch brings.

On a CPU torch multiplies matrices with MKL, which is not at its best on processors of other makers than its own. oneDNN, with
which torch computes convolutions, uses AVX-512 wherever there is any. It is asked where the product is large enough for its
longer call; on MKL's maker's own processors only for x W^T + b, since it adds the bias on the way. Types, shapes, the
processor's maker and its instructions decide, never a clock. The numbers are float32's with either, summed in another order.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from noisesam.gradients.engine.torch_rounding import torch_rounding

WORTH_THE_CALL = 2**21
"""Multiplications from which oneDNN's longer call is made up for."""
WORTH_THE_CALL_BESIDE_MKL = 2**26
"""The same where MKL is at its best, and the bias alone is to be gained."""
REORDERED_PER_ENTRY = 64
"""Multiplications per entry from which writing out a transposed operand, as oneDNN does, is made up for."""


def linear(x: Float[Tensor, "... d"], weight: Float[Tensor, "p d"], bias: Float[Tensor, " p"] | None) -> Float[Tensor, "... p"]:
    """Return x W^T + b."""
    if _large(x, weight.shape[0]) and (not mkl_is_at_home() or x.numel() * weight.shape[0] >= WORTH_THE_CALL_BESIDE_MKL):
        bias = None if bias is None else bias.contiguous()  # oneDNN's function reads on as if its entries were neighbours
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.nn.functional.linear(x, weight, bias)


def matmul(x: Float[Tensor, "... d"], weight: Float[Tensor, "d p"]) -> Float[Tensor, "... p"]:
    """Return x W."""
    if _large(x, weight.shape[1]) and not mkl_is_at_home():
        return torch.ops.mkldnn._linear_pointwise(x, weight.t(), None, "none", [], "")
    return x @ weight


def add_linear_(output: Float[Tensor, "m p"], x: Float[Tensor, "m d"], weight: Float[Tensor, "p d"]) -> Float[Tensor, "m p"]:
    """Add x W^T to the output in place."""
    if _large(x, weight.shape[0]) and not mkl_is_at_home():
        return output.add_(linear(x, weight, None))
    return output.addmm_(x, weight.t())


def transposed_matmul(left: Float[Tensor, "m p"], right: Float[Tensor, "m d"]) -> Float[Tensor, "p d"]:
    """Return left^T right, the weight's gradient from those of the outputs and from the inputs.

    Over many rows it is the kernel's gradient of a convolution with a single pixel, which reads both as they lie.
    """
    rows, outputs, inputs = len(left), left.shape[1], right.shape[1]
    if not _large(left, inputs) or mkl_is_at_home():
        return left.t() @ right
    if rows >= outputs + inputs and inputs > 1:
        return _kernel_gradient(left.contiguous(), right.contiguous())
    if outputs * inputs >= REORDERED_PER_ENTRY * (outputs + inputs):
        return torch.ops.mkldnn._linear_pointwise(left.t(), right.t(), None, "none", [], "")
    return left.t() @ right


def _kernel_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """Return dy^T x as the gradient of a pointwise convolution over an image of one column, its channels last."""
    images = [values.view(1, len(values), 1, -1).permute(0, 3, 1, 2) for values in (dy, x)]
    kernel = x.new_empty(1).expand(dy.shape[1], x.shape[1], 1, 1)
    # Holes in a kernel of one pixel change nothing, but make torch take oneDNN on one thread too.
    found = torch.ops.aten.convolution_backward(
        *images, kernel, None, [1, 1], [0, 0], [2, 2], False, [0, 0], 1, [False, True, False]
    )[1]
    return found.reshape(dy.shape[1], x.shape[1])


def _large(x: Tensor, outputs: int) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * outputs >= WORTH_THE_CALL
        and torch.backends.mkldnn.enabled  # pyright: ignore[reportGeneralTypeIssues]
        and _quicker()
        and not torch_rounding()
    )


@cache
def _quicker() -> bool:
    """Whether this build has the function, and this processor the instructions that MKL may leave aside."""
    present = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return present and torch.backends.cpu.get_cpu_capability() == "AVX512"


@cache
def mkl_is_at_home() -> bool:
    """Whether this is a processor of MKL's maker, on which its products are the quicker ones."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        described = platform.processor()
    return "GenuineIntel" in described
