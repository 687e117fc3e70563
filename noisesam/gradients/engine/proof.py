"""The example axis is proven, not assumed.

A fast engine must know which axis of every intermediate tensor is the example. Before it is used on a model (and again for
every new batch shape, train or eval state and set of trainable parameters) four things are checked on the batch at hand:

* output i does not depend on input j: the gradient of output 0 at the other inputs is exactly zero;
* an example run alone gives the output it has in the batch;
* its row of the batch has, by plain autograd, the per-parameter gradient norms that the engine finds for it;
* run alone with its own weights w + eps_i it has the output that the engine finds for it in the batch.

Dropout is switched off while this is checked, since the masks of a batch and of an example alone differ.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs, batch_size, call_model, devices_of, take
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.interception import UnsupportedParameterUse
from noisesam.gradients.engine.perturbed_proof import (
    agrees_at_perturbed_weights,
    kept_from_before,
    plain_gradient_norms,
    reference_gradient_norms,
)
from noisesam.gradients.factors import PerExampleGradient
from noisesam.gradients.points import Point
from noisesam.gradients.randomness import RandomState


@dataclass(frozen=True)
class Verdict:
    """Whether the fast engine may be used for this batch shape, and why not."""

    fast: bool
    reason: str = ""
    prefers_second: bool = False
    """Which guess of `layout` holds where the shapes leave two."""


_DROPOUTS: set[Callable[..., Any]] = {
    torch.nn.functional.dropout,
    torch.nn.functional.dropout1d,
    torch.nn.functional.dropout2d,
    torch.nn.functional.dropout3d,
    torch.nn.functional.alpha_dropout,
    torch.nn.functional.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
    torch.feature_dropout,
    torch.alpha_dropout,
    torch.feature_alpha_dropout,
}


class _WithoutDropout(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is torch.nn.functional.scaled_dot_product_attention:
            args, kwargs = args[:4], {name: value for name, value in kwargs.items() if name != "dropout_p"}
        if func is torch.nn.functional.multi_head_attention_forward:
            # It attends by functions that this mode does not see; its rate is the eleventh argument.
            args = (*args[:10], 0.0, *args[11:])
        return func(*args, **kwargs)


def refuse_batch_normalisation(model: nn.Module) -> None:
    """Refuse BatchNorm in training mode: it mixes the examples of a batch, so a per-example gradient is not defined."""
    for name, module in model.named_modules():
        mixes = module.training or getattr(module, "running_mean", None) is None
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and mixes:
            raise InputError(
                f"The layer {name!r} ({type(module).__name__}) normalises over the batch",
                expected="a model whose examples do not mix: a per-example gradient is not defined otherwise",
                remedy="Use LayerNorm or GroupNorm, or freeze the statistics with that layer's .eval().",
            )


def prove(engine: FastEngine, inputs: Inputs) -> Verdict | None:
    """Check the engine and the model on this batch.

    Returns:
        The verdict; None where the outputs are not finite, so that nothing can be concluded.

    Raises:
        InputError: The model mixes the examples of a batch.
    """
    model = engine.model
    with _undisturbed(model), torch.enable_grad(), _WithoutDropout():
        rows = sorted({0, batch_size(inputs) - 1})
        alone = {row: call_model(model, take(inputs, slice(row, row + 1))).detach() for row in rows}
        _refuse_mixing(model, inputs, alone[0])
        twins = _twins(engine, inputs, alone)
        verdict = None
        for prefers_second in (False, True):
            engine.prefers_second = prefers_second
            verdict = _compare(engine, inputs, twins)
            if verdict is None or verdict.fast:
                break
        return verdict


def _compare(engine: FastEngine, inputs: Inputs, twins: dict[int, _Twin]) -> Verdict | None:
    """Compare what the engine finds in the batch with plain autograd."""
    try:
        point = engine.at(inputs)
        gradient = point.per_example_gradient(_cotangent(point.logits))
    except UnsupportedParameterUse as reason:
        return Verdict(False, str(reason))
    if not bool(point.logits.isfinite().all()):
        return None
    tolerance = _tolerance(point.logits)
    for row, twin in twins.items():
        if not _close(point.logits[row : row + 1], twin.alone, tolerance):
            return Verdict(False, "the model draws random numbers outside dropout")
        own = {name: factor.of(slice(row, row + 1)).in_double() for name, factor in gradient.factors.items()}
        norms = {name: float(factor.squared_norm()[0].sqrt()) for name, factor in own.items()}
        largest = max(twin.norms.values(), default=0.0)
        for name in engine.parameters:
            difference = abs(norms.get(name, 0.0) - twin.norms.get(name, 0.0))
            if not difference <= tolerance * largest:
                return Verdict(False, f"the gradient of {name!r} does not separate by example where it is used")
    try:
        if not _agrees_when_perturbed(engine, inputs, point, gradient, sorted(twins)):
            return Verdict(False, "its outputs at perturbed weights are not those that the examples have alone")
    except UnsupportedParameterUse as reason:
        return Verdict(False, str(reason))
    return Verdict(True, prefers_second=engine.prefers_second)


def _agrees_when_perturbed(
    engine: FastEngine, inputs: Inputs, point: Point, gradient: PerExampleGradient, rows: list[int]
) -> bool:
    """Compare at w + eps_i in at least float32: sixteen bits round as much as a small perturbation changes."""
    kind = point.logits.device.type
    if not torch.is_autocast_enabled(kind):
        if point.logits.dtype in (torch.float16, torch.bfloat16):
            return True
        return agrees_at_perturbed_weights(engine, inputs, point, gradient, rows, _tolerance(point.logits))
    with torch.autocast(kind, enabled=False):
        try:
            point = engine.at(inputs)
        except RuntimeError:
            return True  # inputs of sixteen bits, which only autocast brings together with the weights
        gradient = point.per_example_gradient(_cotangent(point.logits))
        return agrees_at_perturbed_weights(engine, inputs, point, gradient, rows, _tolerance(point.logits))


def refuse_what_the_reference_misses(model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Inputs) -> None:
    """Refuse a model of which plain autograd sees more than a call with other weights does.

    Raises:
        InputError: It holds a tensor that was made of a parameter before the step.
    """
    one = take(inputs, slice(0, 1))
    with _undisturbed(model), torch.enable_grad(), _WithoutDropout():
        output = call_model(model, one)
        if not output.requires_grad or not bool(output.isfinite().all()):
            return
        cotangent = _cotangent(output.detach())
        plain = plain_gradient_norms(parameters, output, cotangent)
    with _undisturbed(model), torch.enable_grad(), _WithoutDropout():
        found = reference_gradient_norms(model, parameters, one, cotangent)
    allowed = _tolerance(output) * max(plain.values(), default=0.0)
    for name, size in plain.items():
        if not abs(found[name] - size) <= allowed:
            raise kept_from_before(model, name)


@dataclass(frozen=True)
class _Twin:
    """An example by plain autograd: its output when it is run alone, and the gradient norms of its row of the batch.

    The gradients are those of the batch and not of the example alone: an activation function with a kink turns a difference
    of one rounding in its input into another gradient, and a matrix product of one row rounds otherwise than one of many.
    """

    alone: Tensor
    norms: dict[str, float]


def _twins(engine: FastEngine, inputs: Inputs, alone: dict[int, Tensor]) -> dict[int, _Twin]:
    output = call_model(engine.model, inputs)
    return {row: _Twin(own, _norms_of_row(engine, output, row)) for row, own in alone.items()}


def _norms_of_row(engine: FastEngine, output: Tensor, row: int) -> dict[str, float]:
    """Return the norms alone, so that the gradients of one row are gone before those of the next are there."""
    if not output.requires_grad:
        return {}
    cotangent = torch.zeros_like(output)
    cotangent[row] = _cotangent(output)[row]
    return plain_gradient_norms(engine.parameters, output, cotangent)


def _refuse_mixing(model: nn.Module, inputs: Inputs, first_alone: Tensor) -> None:
    """Refuse a model whose output 0 depends on the inputs of the other examples."""
    size = batch_size(inputs)
    if size == 1:
        return
    leaves: list[Tensor] = []
    output = call_model(model, _with_gradients(inputs, leaves))
    if output.shape[:1] != (size,):
        raise InputError(
            f"The model returned shape {tuple(output.shape)} for {size} examples",
            expected=f"one row of logits per example: shape ({size}, ...)",
            remedy="Make the example the first axis of the output.",
        )
    if not bool(output.isfinite().all()):
        return
    mixed = False
    if leaves and output.requires_grad:
        gradients = torch.autograd.grad(output[:1], leaves, _cotangent(output[:1]), allow_unused=True)
        mixed = any(g is not None and bool((g[1:] != 0).any()) for g in gradients)
    if not mixed and not _close(output[:1], first_alone, _tolerance(output)):
        # The same example alone twice: a model that draws its own random numbers differs from itself.
        repeats = [call_model(model, take(inputs, slice(0, 1))).detach() for _ in range(2)]
        mixed = all(_close(repeat, first_alone, _tolerance(output)) for repeat in repeats)
    if mixed:
        raise InputError(
            f"{type(model).__name__} mixes the examples of a batch: the output of one depends on the inputs of others",
            expected="a model whose output i depends on input i alone: a per-example gradient is not defined otherwise",
            remedy="Remove what computes over the example axis (batch statistics, centring, attention across examples).",
        )


def _with_gradients(inputs: Inputs, leaves: list[Tensor]) -> Inputs:
    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1]
        return value

    if isinstance(inputs, Tensor):
        return leaf(inputs)
    if isinstance(inputs, dict):
        return {name: leaf(value) for name, value in inputs.items()}
    return tuple(leaf(value) for value in inputs)


def _cotangent(output: Tensor) -> Tensor:
    """Return a fixed direction that weighs every output of every example differently."""
    rows = torch.arange(output.shape[0], device=output.device, dtype=torch.float64)
    columns = torch.arange(output[0].numel(), device=output.device, dtype=torch.float64)
    return torch.cos(1 + rows[:, None] + 2.3 * columns).view(output.shape).to(output.dtype)


def _tolerance(output: Tensor) -> float:
    """Return the relative rounding allowed between a batch and an example alone; a wrong axis is off by order one."""
    if output.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(output.device.type):
        return 5e-2
    # TF32 rounds factors to 10 bits of mantissa; torch allows it in CUDA's convolutions unless it is told otherwise.
    if output.is_cuda and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32):
        return 1e-8 if output.dtype == torch.float64 else 5e-2
    return 1e-8 if output.dtype == torch.float64 else 2e-3


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    scale = torch.maximum(first.abs().max(), second.abs().max()).clamp_min(torch.finfo(first.dtype).tiny)
    return bool(((first - second).abs().max() <= tolerance * scale).item())


@contextmanager
def _undisturbed(model: nn.Module):
    """Leave generators and buffers as they were."""
    state = RandomState.capture(devices_of(model))
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        state.restore()
        with torch.no_grad():
            for buffer, copy in buffers:
                buffer.copy_(copy)
