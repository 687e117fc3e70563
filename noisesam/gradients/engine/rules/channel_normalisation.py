"""LayerNorm over the channels of images that lie in memory channel by channel.

torch normalises rows: such images are first written out anew, channels last, and every pixel is then a row of its own, at a
price per row that few channels do not repay. Here one pass over whole planes does for all pixels what a row does for one,
and the images stay in the order in which grouped convolutions, one kernel for every example, want them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.factors import Dense, Factor

FEW_CHANNELS = 32
"""Channels up to which planes are normalised as they lie. With more of them rows cost little, and convolutions with shared
kernels, which prefer channels last, are most of a step."""


def lies_in_planes(values: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether (n, T, C), to be normalised over its last axis, lies in a CPU's memory as (n, C, T) with few channels."""
    if len(shape) != 1 or not 1 < shape[0] <= FEW_CHANNELS or values.device.type != "cpu":
        return False
    return values.shape[1] > 1 and values.dtype in (torch.float32, torch.float64) and values.transpose(1, 2).is_contiguous()


def normalise_planes(
    tape: Tape, values: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> Float[Tensor, "n positions channels"]:
    """Normalise (n, T, C) over its last axis, scale and shift, at w or w + eps_i; the memory order stays."""
    moves = (tape.perturbation(weight), tape.perturbation(bias))
    return _ChannelNorm.apply(values.transpose(1, 2), weight, bias, epsilon, tape, *moves).transpose(1, 2)  # pyright: ignore[reportOptionalMemberAccess]


class _ChannelNorm(Function):
    """On (n, C, T): xhat = (x - mean) / sqrt(variance + epsilon) over C, output = scale xhat + shift."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        epsilon: float,
        tape: Tape,
        weight_eps: Factor | None,
        bias_eps: Factor | None,
    ) -> Tensor:
        scale, shift = _columns(weight, weight_eps), _columns(bias, bias_eps)
        normalised = x - x.mean(1, keepdim=True)
        output = normalised.square()  # its memory, still in the cache, becomes that of the output
        inverse = output.mean(1, keepdim=True).add_(epsilon).rsqrt_()
        normalised.mul_(inverse)
        ctx.tape, ctx.weight, ctx.bias = tape, weight, bias
        ctx.save_for_backward(normalised, inverse, scale)
        output = output.copy_(normalised) if scale is None else torch.mul(normalised, scale, out=output)
        return output if shift is None else output.add_(shift)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        dy = output_gradients[0].contiguous()
        normalised, inverse, scale = ctx.saved_tensors
        products = dy * normalised
        gradients: list[Tensor | None] = []
        tape: Tape = ctx.tape
        for parameter, needed, terms in (
            (ctx.weight, ctx.needs_input_grad[1], products),
            (ctx.bias, ctx.needs_input_grad[2], dy),
        ):
            recorded = tape.records(parameter)
            shared = needed and tape.shares(parameter)
            each = terms.sum(2) if recorded or shared else None
            if recorded and each is not None:
                tape.record(parameter, Dense(each))
            gradients.append(each.sum(0) if shared and each is not None else None)
        dx = None
        if ctx.needs_input_grad[0]:
            means = _mean_over_channels(dy, scale), _mean_over_channels(products, scale)
            dx = products.copy_(dy) if scale is None else torch.mul(dy, scale, out=products)
            dx.sub_(means[0]).addcmul_(normalised, means[1], value=-1).mul_(inverse)
        return dx, *gradients, *[None] * 4


def _columns(parameter: Tensor | None, eps: Factor | None) -> Tensor | None:
    """Return the parameter, of every example where it is perturbed, for broadcasting over (n, C, T)."""
    if parameter is None:
        return None
    own = parameter.detach()
    return own[:, None] if eps is None else (own + eps.dense().to(own.dtype)).unsqueeze(2)


def _mean_over_channels(values: Float[Tensor, "n channels positions"], scale: Tensor | None) -> Tensor:
    """Return the mean of scale times values over the channels, (n, 1, T)."""
    if scale is None:
        return values.mean(1, keepdim=True)
    weights = (scale / values.shape[1]).transpose(-1, -2)
    return torch.bmm(weights.expand(len(values), *weights.shape[-2:]), values)
