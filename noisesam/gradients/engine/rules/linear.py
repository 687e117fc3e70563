"""Linear maps y = x W^T + b with T positions per example.

Per-example gradient of W: sum_t dy_t x_t^T, kept as its factors. Perturbed output: x W^T + (x right^T) left, where eps_i =
left^T right; the pull-back is the same with the roles exchanged. Where the factors outgrow the weight they are multiplied
out, and the perturbed weights run as one batched product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from noisesam.gradients.engine.interception import UnsupportedParameterUse, register_rule
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.factors import Dense, Factor, OuterProducts, Shared


@register_rule(torch.nn.functional.linear)
def linear_rule(tape: Tape, _: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Evaluate a linear map at w or w + eps_i, recording or sharing its gradients on the way back."""
    if input.shape[0] != tape.examples or input.dim() < 2:
        raise UnsupportedParameterUse(f"'linear' sees an input of shape {tuple(input.shape)} for {tape.examples} examples")
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input = input.to(dtype)
    perturbation = tape.perturbation(weight)
    bias_perturbation = tape.perturbation(bias)
    return _Linear.apply(input, weight, bias, tape, perturbation, bias_perturbation)  # pyright: ignore[reportReturnType]


def _positions(values: Tensor) -> Tensor:
    """Return (n, T, features), the axes between the first and the last merged."""
    if values.dim() == 2:
        return values.unsqueeze(1)
    return values if values.dim() == 3 else values.flatten(1, -2)


def _factors(left: Tensor, right: Tensor) -> Factor:
    """Keep sum_t left_t right_t^T as factors while that is smaller than the product."""
    positions, outputs, inputs = left.shape[1], left.shape[2], right.shape[2]
    if positions == 1 or 3 * positions * (inputs + outputs) < inputs * outputs:
        return OuterProducts(left, right)
    return Dense(torch.bmm(left.transpose(1, 2), right))


class _Linear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, tape: Tape, eps: Factor | None, bias_eps: Factor | None
    ) -> Tensor:
        ctx.weight, ctx.bias, ctx.tape, ctx.eps = weight, bias, tape, eps
        ctx.save_for_backward(x, weight)
        reused = tape.recall_first(weight, x)
        plain_weight, plain_bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if isinstance(eps, Dense):
            output = _per_example_weights(x, plain_weight, eps)
            if plain_bias is not None:
                output = output + plain_bias
        elif isinstance(eps, Shared):
            output = torch.nn.functional.linear(x, plain_weight + eps.tensor.to(x.dtype), plain_bias)
        else:
            output = _not_a_view(torch.nn.functional.linear(x, plain_weight, plain_bias)) if reused is None else reused
            if reused is None and eps is None:
                tape.remember_first(weight, x, output)
            if isinstance(eps, OuterProducts):
                output = _add_low_rank(output, x, eps.right.to(x.dtype), eps.left.to(x.dtype))
            elif reused is not None:
                output = output.clone()
        if bias_eps is not None:
            shift = bias_eps.dense().to(x.dtype)
            output = output + shift.view(shift.shape[0], *[1] * (output.dim() - 2), shift.shape[1])
        return output

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (dy,) = output_gradients
        x, weight = ctx.saved_tensors
        tape, eps = ctx.tape, ctx.eps
        weight_gradient = bias_gradient = input_gradient = None
        if tape.recording:
            if ctx.bias is not None and tape.tracks(ctx.bias):
                tape.record(ctx.bias, Dense(_positions(dy).sum(1)))
            if tape.tracks(ctx.weight):
                tape.record(ctx.weight, _factors(_positions(dy), _positions(x.detach())))
        else:
            if ctx.needs_input_grad[1]:
                weight_gradient = dy.flatten(0, -2).t() @ x.flatten(0, -2)
            if ctx.bias is not None and ctx.needs_input_grad[2]:
                bias_gradient = dy.flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            if isinstance(eps, Dense):
                input_gradient = torch.bmm(_positions(dy), weight.to(dy.dtype) + eps.tensor.to(dy.dtype)).view(x.shape)
            elif isinstance(eps, Shared):
                input_gradient = dy @ (weight + eps.tensor).to(dy.dtype)
            else:
                input_gradient = dy @ weight.to(dy.dtype)
                if isinstance(eps, OuterProducts):
                    input_gradient = _add_low_rank(input_gradient, dy, eps.left.to(dy.dtype), eps.right.to(dy.dtype))
        return input_gradient, weight_gradient, bias_gradient, None, None, None


def _per_example_weights(x: Tensor, weight: Tensor, eps: Dense) -> Tensor:
    product = torch.bmm(_positions(x), (weight + eps.tensor.to(x.dtype)).transpose(1, 2))
    return _not_a_view(product.view(*x.shape[:-1], weight.shape[0]))


def _not_a_view(output: Tensor) -> Tensor:
    """Return the tensor without its record of being a view: the in-place activation that may follow refuses views."""
    return torch.ops.aten._unsafe_view(output, output.shape) if output._is_view() else output


def _add_low_rank(output: Tensor, x: Tensor, seen: Tensor, written: Tensor) -> Tensor:
    """Return output + (x seen^T) written, per example; `seen` and `written` hold the factors by position."""
    if x.dim() == 2 and seen.shape[1] == 1:
        products = torch.linalg.vecdot(x, seen[:, 0]).unsqueeze(1)
        return torch.addcmul(output, products, written[:, 0])
    added = torch.baddbmm(_positions(output), torch.bmm(_positions(x), seen.transpose(1, 2)), written)
    return _not_a_view(added.view(output.shape))
