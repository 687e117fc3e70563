"""LayerNorm, RMSNorm, GroupNorm, InstanceNorm and BatchNorm in evaluation mode: weight, bias, both or none.

The statistics have no parameters. LayerNorm forms sum_t dy_t xhat_t per example; GroupNorm with a weight per example is one
GroupNorm over a single row of n*C channels in n*G groups, whose native kernel returns the per-example gradients for
nothing; the others multiply the normalised tensor by lifted parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from noisesam.gradients.engine.interception import register_rule
from noisesam.gradients.engine.layout import examples_first, tape_of_rows
from noisesam.gradients.engine.lifting import aligned, lift
from noisesam.gradients.engine.rules.channel_normalisation import lies_in_planes, normalise_planes
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.factors import Dense, Factor
from noisesam.gradients.frozen_batch_norm import normalise

OWN_CALL = 2**15
"""Numbers per example from which, on a CPU, one call per example is quicker than a further pass over all of them."""


@register_rule(torch.nn.functional.layer_norm, needs_activation=True)
def layer_norm_rule(
    tape: Tape,
    _: Callable[..., Any],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last axes, then scale and shift per example."""
    shape = tuple(normalized_shape)
    values, back = examples_first(tape, _float32_under_autocast(input), len(shape), "'layer_norm'")
    if tape.perturbed_passes and lies_in_planes(values, shape):
        return back(normalise_planes(tape, values, weight, bias, eps))
    moves = (tape.perturbation(weight), tape.perturbation(bias))
    return back(_LayerNorm.apply(values, weight, bias, shape, eps, tape, *moves))


class _LayerNorm(Function):
    """On (n, T, *normalized_shape)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        shape: tuple[int, ...],
        epsilon: float,
        tape: Tape,
        weight_eps: Factor | None,
        bias_eps: Factor | None,
    ) -> Tensor:
        ctx.shape, ctx.tape, ctx.weight, ctx.bias = shape, tape, weight, bias
        if weight_eps is None and bias_eps is None:
            output, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, epsilon)
            moved = None
        else:
            moved = _per_example(weight, weight_eps, tape.examples)
            shift = _per_example(bias, bias_eps, tape.examples)
            output, mean, rstd = _layer_norm_each(x, shape, moved, shift, epsilon)
        ctx.save_for_backward(x, mean, rstd, weight, moved)
        return output

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (dy,) = output_gradients
        x, mean, rstd, weight, moved = ctx.saved_tensors
        tape, shape = ctx.tape, ctx.shape
        dx = dw = db = weights = biases = None
        if tape.records(ctx.weight):
            products = (x - mean).mul_(rstd).mul_(dy)
            weights = Dense(products[:, 0] if dy.shape[1] == 1 else products.sum(1))
            tape.record(ctx.weight, weights)
        if tape.records(ctx.bias):
            biases = Dense(dy[:, 0] if dy.shape[1] == 1 else dy.sum(1))
            tape.record(ctx.bias, biases)
        wants_weight = ctx.needs_input_grad[1] and tape.shares(ctx.weight)
        wants_bias = ctx.needs_input_grad[2] and tape.shares(ctx.bias)
        if wants_weight and weights is not None and weights.in_full_precision:  # the batch's is the sum of what is there
            dw, wants_weight = weights.total(), False
        if wants_bias and biases is not None and biases.in_full_precision:
            db, wants_bias = biases.total(), False
        if moved is not None and ctx.needs_input_grad[0]:
            dx = _input_gradient_each(dy, x, shape, mean, rstd, moved)
        # The native kernel reduces dy * xhat without forming it; only dx depends on a per-example weight.
        wanted = [ctx.needs_input_grad[0] and moved is None, wants_weight, wants_bias]
        if any(wanted[:2]):
            found = torch.ops.aten.native_layer_norm_backward(dy, x, shape, mean, rstd, weight, ctx.bias, wanted)
            dx, dw, db = (new if want else known for new, want, known in zip(found, wanted, (dx, dw, db), strict=True))
        elif wants_bias:
            db = dy.flatten(0, 1).sum(0)
        return dx, dw, db, *[None] * 5


def _layer_norm_each(
    x: Tensor, shape: tuple[int, ...], scale: Tensor | None, shift: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise (n, T, *shape), scale and shift every example by its own (n, *shape); with the means and deviations."""
    if x.device.type == "cpu" and scale is not None and shift is not None and x.shape[1:].numel() >= OWN_CALL:
        own = [torch.native_layer_norm(*one, epsilon) for one in zip(x, [shape] * len(x), scale, shift, strict=True)]
        output, mean, rstd = (torch.stack(part) for part in zip(*own, strict=True))
        return output, mean, rstd
    output, mean, rstd = torch.native_layer_norm(x, shape, None, None, epsilon)
    # In place: the normalised tensor is the caller's alone, and a fresh one costs more than the arithmetic.
    if scale is not None and shift is not None and scale.dtype == shift.dtype == output.dtype:
        torch.addcmul(shift.unsqueeze(1), output, scale.unsqueeze(1), out=output)
    else:
        output = output if scale is None else output.mul_(scale.unsqueeze(1))
        output = output if shift is None else output.add_(shift.unsqueeze(1))
    return output, mean, rstd


def _input_gradient_each(dy: Tensor, x: Tensor, shape: tuple[int, ...], mean: Tensor, rstd: Tensor, moved: Tensor) -> Tensor:
    """Return the input gradient where every example has its own weight, (n, *shape)."""
    scaled = dy * moved.unsqueeze(1)
    return torch.ops.aten.native_layer_norm_backward(scaled, x, shape, mean, rstd, None, None, [True, False, False])[0]


def _per_example(parameter: Tensor | None, eps: Factor | None, examples: int) -> Tensor | None:
    if parameter is None:
        return None
    if eps is None:  # written out: a native kernel reads on behind a view of stride 0
        return parameter.detach().expand(examples, *parameter.shape).contiguous()
    return parameter.detach() + eps.dense().to(parameter.dtype)


@register_rule(torch.nn.functional.group_norm, needs_activation=True)
def group_norm_rule(
    tape: Tape,
    _: Callable[..., Any],
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise groups of channels of (n, C, ...), then scale and shift per example."""
    tape = tape_of_rows(tape, input, "'group_norm'")
    moves = (tape.perturbation(weight), tape.perturbation(bias))
    return _GroupNorm.apply(_float32_under_autocast(input), weight, bias, num_groups, eps, tape, *moves)  # pyright: ignore[reportReturnType]


class _GroupNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        groups: int,
        epsilon: float,
        tape: Tape,
        weight_eps: Factor | None,
        bias_eps: Factor | None,
    ) -> Tensor:
        x = x.contiguous()
        n, channels = x.shape[:2]
        size = x.shape[2:].numel()
        scale = _per_example(weight, weight_eps, n)
        shift = _per_example(bias, bias_eps, n)
        scale = (x.new_ones(n, channels) if scale is None else scale.to(x.dtype)).reshape(-1)
        shift = (x.new_zeros(n, channels) if shift is None else shift.to(x.dtype)).reshape(-1)
        row = x.view(1, n * channels, size)
        output, mean, rstd = torch.native_group_norm(row, scale, shift, 1, n * channels, size, n * groups, epsilon)
        ctx.save_for_backward(x, mean, rstd, scale)
        ctx.groups, ctx.tape, ctx.weight, ctx.bias = groups, tape, weight, bias
        return torch.ops.aten._unsafe_view(output, x.shape)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (dy,) = output_gradients
        x, mean, rstd, scale = ctx.saved_tensors
        tape = ctx.tape
        n, channels = x.shape[:2]
        size = x.shape[2:].numel()
        row = (1, n * channels, size)
        wanted = [ctx.needs_input_grad[0], True, True]
        dx, dw, db = torch.ops.aten.native_group_norm_backward(
            dy.contiguous().view(row), x.view(row), mean, rstd, scale, 1, n * channels, size, n * ctx.groups, wanted
        )
        dx = None if dx is None else dx.view(x.shape)
        gradients: list[Tensor | None] = []
        for parameter, needed, value in ((ctx.weight, ctx.needs_input_grad[1], dw), (ctx.bias, ctx.needs_input_grad[2], db)):
            value = value.view(n, channels)
            if tape.records(parameter):
                tape.record(parameter, Dense(value))
            gradients.append(value.sum(0) if needed and tape.shares(parameter) else None)
        return dx, *gradients, *[None] * 5


@register_rule(torch.nn.functional.rms_norm, needs_activation=True)
def rms_norm_rule(
    tape: Tape,
    function: Callable[..., Any],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Divide by the root mean square of the last axes, then scale per example."""
    values, back = examples_first(tape, input, len(normalized_shape), "'rms_norm'")
    normalised = function(values, normalized_shape, None, eps)
    assert weight is not None
    return back(normalised * lift(tape, weight).unsqueeze(1).to(normalised.dtype))


@register_rule(torch.nn.functional.instance_norm, needs_activation=True)
def instance_norm_rule(
    tape: Tape,
    function: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> Tensor:
    """Normalise every channel of every example, then scale and shift per example."""
    tape = tape_of_rows(tape, input, "'instance_norm'")
    return _affine(tape, function(input, running_mean, running_var, None, None, *options, **named), weight, bias)


@register_rule(torch.nn.functional.batch_norm, needs_activation=True)
def batch_norm_rule(
    tape: Tape,
    _: Callable[..., Any],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Apply the running statistics, which are constants, then scale and shift per example."""
    del momentum
    if training or running_mean is None or running_var is None:
        raise UnsupportedParameterUse("'batch_norm' in training mode mixes the examples of a batch")
    tape = tape_of_rows(tape, input, "'batch_norm'")
    return _affine(tape, normalise(input, running_mean, running_var, eps), weight, bias)


def _affine(tape: Tape, normalised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    def of_each(parameter: Tensor) -> Tensor:
        return aligned(lift(tape, parameter), 1, normalised.dim()).to(normalised.dtype)

    output = normalised if weight is None else normalised * of_each(weight)
    return output if bias is None else output + of_each(bias)


def _float32_under_autocast(values: Tensor) -> Tensor:
    """Normalise in float32 under autocast, as torch does."""
    low = values.dtype in (torch.float16, torch.bfloat16)
    return values.float() if low and torch.is_autocast_enabled(values.device.type) else values
