"""The example axis is proven, not assumed.

A fast engine must know which axis of every intermediate tensor is the example. Before it is used on a model (and again for
every new batch shape, train or eval state and set of trainable parameters) four things are checked on the batch at hand:

* output i does not depend on input j: the gradients of the first and of the last output at the other inputs are exactly zero;
* an example run alone gives the output it has in the batch;
* its row of the batch has, by plain autograd, the per-parameter gradient norms that the engine finds for it;
* run alone with its own weights w + eps_i it has the output that the engine finds for it in the batch.

Where a parameter has no gradient at all (behind a scale that starts at zero), this is checked once more a step away.

Dropout is switched off while this is checked, since the masks of a batch and of an example alone differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from noisesam.errors import InputError, first_line
from noisesam.gradients.batch import Inputs, batch_size, take
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.perturbed_proof import agrees_at_perturbed_weights
from noisesam.gradients.engine.terms import WithoutDropout, close, fixed_cotangent, rounding_tolerance
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.factors import Factor
from noisesam.gradients.moved_weights import movable
from noisesam.gradients.per_example_gradient import PerExampleGradient
from noisesam.gradients.plain import kept_view, named_plain_gradients, next_number, whole_norm
from noisesam.gradients.points import Point
from noisesam.gradients.randomness import undisturbed
from noisesam.gradients.recomputation import evaluate

STEP = 0.1
"""That step, as a share of the root mean square of each parameter, or of 1 where that is zero."""


@dataclass(frozen=True)
class Verdict:
    """Whether the fast engine may be used for this batch shape, and why not."""

    fast: bool
    reason: str = ""
    prefers_second: bool = False
    """Which guess of `layout` holds where the shapes leave two."""
    trace: int = 0
    """What the model called while it was proven (`Tape.trace`): it holds for what goes the same way."""


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
    with undisturbed(model), torch.enable_grad(), WithoutDropout():
        torch.clear_autocast_cache()  # a cast from before is no copy that the model keeps
        size, start = batch_size(inputs), next_number()
        with _numpy_refused(model):
            output = evaluate(model, inputs)
        view = kept_view(model, engine.parameters, output, start)
        output = output.detach()  # one graph at a time is held
        rows = sorted({0, size // 2, size - 1})
        alone = {row: evaluate(model, take(inputs, slice(row, row + 1))).detach() for row in rows}
        _refuse_mixing(model, inputs, output, alone)
        if view is not None:
            return Verdict(False, f"it uses {view!r} by way of a view that was made before the step")
        twins = _twins(engine, inputs, alone)
        _refuse_gradients_on_the_way(model)
        verdict = None
        for prefers_second in (False, True):
            engine.prefers_second = prefers_second
            verdict = _compare(engine, inputs, twins)
            if verdict is None or verdict.fast:
                break
        if verdict is not None and verdict.fast:
            unseen = [name for name in engine.parameters if not any(twin.norms.get(name, 0.0) for twin in twins.values())]
            elsewhere = _compare_elsewhere(engine, inputs, sorted(twins)) if unseen else None
            return elsewhere if elsewhere is not None and not elsewhere.fast else verdict
        return verdict


@contextmanager
def _numpy_refused(model: nn.Module) -> Iterator[None]:
    """Refuse a model that draws with NumPy's generator, whose state takes longer to copy than a step of a small model."""
    before = numpy.random.get_state(legacy=False)  # noqa: NPY002 - the one that a model would draw from
    yield
    after = numpy.random.get_state(legacy=False)  # noqa: NPY002
    if after["state"]["pos"] != before["state"]["pos"] or (after["state"]["key"] != before["state"]["key"]).any():
        raise InputError(
            f"{type(model).__name__} draws numbers with NumPy's global generator",
            expected="draws that a second pass of the step can repeat",
            remedy="Draw with torch's default generator or with Python's `random`.",
        )


def _compare_elsewhere(engine: FastEngine, inputs: Inputs, rows: list[int]) -> Verdict | None:
    """Compare once more with all weights a step away: behind a factor of zero nothing was to be seen of a parameter."""
    generator = torch.Generator().manual_seed(0)
    with movable(engine.parameters) as move:
        for name, parameter in engine.parameters.items():
            size = float(whole_norm(parameter.detach())) / max(parameter.numel(), 1) ** 0.5
            step = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * (STEP * (size or 1.0))
            move(name, step.to(parameter))
        alone = {row: evaluate(engine.model, take(inputs, slice(row, row + 1))).detach() for row in rows}
        return _compare(engine, inputs, _twins(engine, inputs, alone))


def _refuse_gradients_on_the_way(model: nn.Module) -> None:
    """Refuse a model whose reverse pass adds to `.grad` by itself: no plain gradient shows that part."""
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise InputError(
            f"A function of {type(model).__name__} calls backward() in its own reverse pass",
            expected="a reverse pass that returns its gradients",
            remedy="Let that function return torch.autograd.grad's gradients of all its inputs, its parameters among them.",
        )


def _compare(engine: FastEngine, inputs: Inputs, twins: dict[int, _Twin]) -> Verdict | None:
    """Compare what the engine finds in the batch with plain autograd."""
    try:
        point = engine.at(inputs)
        gradient = point.per_example_gradient(fixed_cotangent(point.logits))
    except UnsupportedParameterUse as reason:
        return Verdict(False, str(reason))
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        # The model itself has just run: it is a row for every example that it does not take somewhere.
        return Verdict(False, f"it does not go through with a row for every example: {first_line(error)}")
    if point.tape.sized_by_data:
        return Verdict(False, f"the data decide by {point.tape.sized_by_data} how many positions a layer sees")
    if not bool(point.logits.isfinite().all()):
        return None
    tolerance = rounding_tolerance(point.logits)
    for row, twin in twins.items():
        if not close(point.logits[row : row + 1], twin.alone, tolerance):
            return Verdict(False, "the model draws random numbers outside dropout")
        norms = {name: _norm_in_double(factor, row) for name, factor in gradient.factors.items()}
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
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return Verdict(False, f"it does not go through at perturbed weights: {first_line(error)}")
    return Verdict(True, prefers_second=engine.prefers_second, trace=point.tape.trace)


def _norm_in_double(factor: Factor, row: int) -> float:
    """Return the norm of one example's gradient, of which no copy in float64 is left."""
    return float(factor.of(slice(row, row + 1)).in_double().squared_norm()[0].sqrt())


def _agrees_when_perturbed(
    engine: FastEngine, inputs: Inputs, point: Point, gradient: PerExampleGradient, rows: list[int]
) -> bool:
    """Compare at w + eps_i in at least float32: sixteen bits round as much as a small perturbation changes."""
    kind = point.logits.device.type
    if not torch.is_autocast_enabled(kind):
        if point.logits.dtype in (torch.float16, torch.bfloat16):
            return True
        return agrees_at_perturbed_weights(engine, inputs, point, gradient, rows, rounding_tolerance(point.logits))
    with torch.autocast(kind, enabled=False):
        try:
            point = engine.at(inputs)
        except RuntimeError:
            return True  # inputs of sixteen bits, which only autocast brings together with the weights
        gradient = point.per_example_gradient(fixed_cotangent(point.logits))
        return agrees_at_perturbed_weights(engine, inputs, point, gradient, rows, rounding_tolerance(point.logits))


@dataclass(frozen=True)
class _Twin:
    """An example by plain autograd: its output when it is run alone, and the gradient norms of its row of the batch.

    The gradients are those of the batch and not of the example alone: an activation function with a kink turns a difference
    of one rounding in its input into another gradient, and a matrix product of one row rounds otherwise than one of many.
    """

    alone: Tensor
    norms: dict[str, float]


def _twins(engine: FastEngine, inputs: Inputs, alone: dict[int, Tensor]) -> dict[int, _Twin]:
    output = evaluate(engine.model, inputs)
    return {row: _Twin(own, _norms_of_row(engine, output, row)) for row, own in alone.items()}


def _norms_of_row(engine: FastEngine, output: Tensor, row: int) -> dict[str, float]:
    """Return the norms alone, so that the gradients of one row are gone before those of the next are there."""
    if not output.requires_grad:
        return {}
    cotangent = torch.zeros_like(output)
    cotangent[row] = fixed_cotangent(output)[row]
    found = named_plain_gradients(engine.parameters, output, cotangent, retain_graph=True)
    return {name: 0.0 if gradient is None else float(whole_norm(gradient)) for name, gradient in found.items()}


def _reaches_others(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the gradient of the first or of the last output is other than zero at the inputs of another example."""
    size = batch_size(inputs)
    if size == 1:  # beside itself: alone it has nobody to depend on
        inputs = take(inputs, torch.zeros(2, dtype=torch.long, device=_device(inputs)))
    leaves: list[Tensor] = []
    try:
        output = evaluate(model, _with_gradients(inputs, leaves))
    except (RuntimeError, TypeError, ValueError, IndexError):
        if size == 1:
            return False  # a model for one example at a time
        raise
    if not leaves or not output.requires_grad or output.shape[:1] != (batch_size(inputs),):
        return False
    for row in (0, len(output) - 1):
        one = output[row : row + 1]
        found = torch.autograd.grad(one, leaves, fixed_cotangent(one), allow_unused=True, retain_graph=True)
        for gradient in found:
            if gradient is not None and any(bool((part != 0).any()) for part in (gradient[:row], gradient[row + 1 :])):
                return True
    return False


def _device(inputs: Inputs) -> torch.device:
    values = [inputs] if isinstance(inputs, Tensor) else inputs.values() if isinstance(inputs, dict) else inputs
    return next(value.device for value in values if isinstance(value, Tensor))


def _refuse_mixing(model: nn.Module, inputs: Inputs, output: Tensor, alone: dict[int, Tensor]) -> None:
    """Refuse a model in which the output of one example depends on the inputs of others."""
    size = batch_size(inputs)
    if output.shape[:1] != (size,):
        if size == 1:
            return
        raise InputError(
            f"The model returned shape {tuple(output.shape)} for {size} examples",
            expected=f"one row of logits per example: shape ({size}, ...)",
            remedy="Make the example the first axis of the output.",
        )
    if not bool(output.isfinite().all()):
        return
    tolerance = rounding_tolerance(output)
    if not _reaches_others(model, inputs):
        apart = [row for row, own in alone.items() if not close(output[row : row + 1], own, tolerance)]
        if not apart:
            return
        row = apart[0]
        rows, own = slice(row, row + 1), alone[row]
        # The same example alone twice: a model that draws its own random numbers differs from itself.
        repeats = [evaluate(model, take(inputs, rows)).detach() for _ in range(2)]
        if not all(close(repeat, own, tolerance) for repeat in repeats):
            return
        copies = take(inputs, torch.full((size,), row, dtype=torch.long, device=output.device))
        if close(output[rows], evaluate(model, copies)[rows].detach(), tolerance):
            raise InputError(
                f"An example alone has other outputs than in its batch, whatever the others are: "
                f"{float((output[rows] - own).abs().max()):.1e} apart, of outputs up to {float(output.abs().max()):.1e}",
                expected="outputs that depend on neither the size of the batch nor on rounding",
                remedy="Take out what reads the batch size; if there is nothing, centre the inputs or compute in float64.",
            )
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
