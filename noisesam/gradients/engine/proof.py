"""The example axis is proven, not assumed.

A fast engine must know which axis of every intermediate tensor is the example. Before it is used on a model (and again for
every new batch shape, train or eval state and set of trainable parameters) four things are checked on the batch at hand:

* output i does not depend on input j: the gradients of the first and of the last output at the other inputs are exactly zero;
* an example run alone gives the output it has in the batch;
* its row of the batch has, by plain autograd, the per-parameter gradient norms that the engine finds for it;
* run alone with its own weights w + eps_i it has the output that the engine finds for it in the batch.

A use of a parameter whose gradient is zero for these examples is compared for the example where it is largest, and where it
is zero for all of them (behind a scale that starts at zero) a step away. What is silent there, too, is noted in the verdict.

Dropout is switched off while this is checked, since the masks of a batch and of an example alone differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor, nn

from noisesam.errors import InputError, first_line
from noisesam.gradients.batch import Inputs, batch_size, take
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.mixing import refuse_mixing
from noisesam.gradients.engine.perturbed_proof import agrees_at_perturbed_weights
from noisesam.gradients.engine.tape import Use
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
    uses: frozenset[Use] = frozenset()
    silent: frozenset[Use] = frozenset()
    """The uses of parameters whose gradient was zero wherever it was compared."""

    @property
    def silent_parameters(self) -> frozenset[str]:
        """The parameters whose every use was silent."""
        if not self.silent:
            return frozenset()  # asked for at every step
        spoken = {name for name, _ in self.uses - self.silent}
        return frozenset(name for name, _ in self.silent if name not in spoken)


class _Everything:
    """What contains every use."""

    def __contains__(self, use: object) -> bool:
        return True


@dataclass(frozen=True)
class _Comparison:
    """The verdict on some examples, with the squared norms (n,) of every use of a parameter over all of them."""

    verdict: Verdict
    use_norms: Mapping[Use, Tensor]

    def silent(self, parameters: Iterable[str], rows: Iterable[int]) -> set[Use]:
        """Return the uses that are zero for these examples; a parameter without any use counts as one."""
        unused = {(name, 0) for name in parameters} - self.use_norms.keys()
        return unused | {use for use, norms in self.use_norms.items() if not any(bool(norms[row] > 0) for row in rows)}

    def loudest(self, uses: Iterable[Use]) -> list[int]:
        """Return the examples for which these uses are largest, where they are not zero for all."""
        found = (self.use_norms[use] for use in uses if use in self.use_norms)
        return sorted({int(norms.argmax()) for norms in found if bool((norms > 0).any())})


def prove(engine: FastEngine, inputs: Inputs, rows: Iterable[int] = ()) -> Verdict | None:
    """Check the engine and the model on this batch.

    Args:
        engine: The fast engine, whose guess of the layout is set to the one that holds.
        inputs: The batch.
        rows: Examples that are compared beside the first, the middle and the last.

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
        compared = sorted({0, size // 2, size - 1, *rows})
        alone = _alone(engine, inputs, compared)
        refuse_mixing(model, inputs, output, alone)
        if view is not None:
            return Verdict(False, f"it uses {view!r} by way of a view that was made before the step")
        twins = _twins(engine, inputs, alone)
        _refuse_gradients_on_the_way(model)
        found = None
        for prefers_second in (False, True):
            engine.prefers_second = prefers_second
            found = _compare(engine, inputs, twins)
            if found is None or found.verdict.fast:
                break
        if found is None or not found.verdict.fast:
            return None if found is None else found.verdict
        return _compare_silent_uses(engine, inputs, found, compared)


def _compare_silent_uses(engine: FastEngine, inputs: Inputs, found: _Comparison, rows: list[int]) -> Verdict:
    """Compare the uses that are zero for these examples for others, and a step away."""
    silent = found.silent(engine.parameters, rows)
    further = found.loudest(silent)
    if further:
        found_there = _compare(engine, inputs, _twins(engine, inputs, _alone(engine, inputs, further)))
        if found_there is not None:
            if not found_there.verdict.fast:
                return found_there.verdict
            silent &= found_there.silent(engine.parameters, further)
    if silent:
        elsewhere = _compare_elsewhere(engine, inputs, rows)
        if elsewhere is not None:
            if not elsewhere.verdict.fast:
                return elsewhere.verdict
            if elsewhere.verdict.trace == found.verdict.trace:
                silent &= elsewhere.silent(engine.parameters, rows)
    return replace(found.verdict, uses=frozenset(found.use_norms), silent=frozenset(silent))


def _alone(engine: FastEngine, inputs: Inputs, rows: Iterable[int]) -> dict[int, Tensor]:
    """Return the outputs of examples that are run alone."""
    return {row: evaluate(engine.model, take(inputs, slice(row, row + 1))).detach() for row in rows}


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


def _compare_elsewhere(engine: FastEngine, inputs: Inputs, rows: list[int]) -> _Comparison | None:
    """Compare once more with all weights a step away: behind a factor of zero nothing was to be seen of a parameter."""
    generator = torch.Generator().manual_seed(0)
    with movable(engine.parameters) as move:
        for name, parameter in engine.parameters.items():
            size = float(whole_norm(parameter.detach())) / max(parameter.numel(), 1) ** 0.5
            step = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * (STEP * (size or 1.0))
            move(name, step.to(parameter))
        return _compare(engine, inputs, _twins(engine, inputs, _alone(engine, inputs, rows)))


def _refuse_gradients_on_the_way(model: nn.Module) -> None:
    """Refuse a model whose reverse pass adds to `.grad` by itself: no plain gradient shows that part."""
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise InputError(
            f"A function of {type(model).__name__} calls backward() in its own reverse pass",
            expected="a reverse pass that returns its gradients",
            remedy="Let that function return torch.autograd.grad's gradients of all its inputs, its parameters among them.",
        )


def _compare(engine: FastEngine, inputs: Inputs, twins: dict[int, _Twin]) -> _Comparison | None:
    """Compare what the engine finds in the batch with plain autograd."""
    try:
        point = engine.at(inputs)
        point.tape.heard_of = _Everything()
        gradient = point.per_example_gradient(fixed_cotangent(point.logits))
    except UnsupportedParameterUse as reason:
        return _different(str(reason))
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        # The model itself has just run: it is a row for every example that it does not take somewhere.
        return _different(f"it does not go through with a row for every example: {first_line(error)}")
    if point.tape.sized_by_data:
        return _different(f"the data decide by {point.tape.sized_by_data} how many positions a layer sees")
    if not bool(point.logits.isfinite().all()):
        return None
    tolerance = rounding_tolerance(point.logits)
    for row, twin in twins.items():
        if not close(point.logits[row : row + 1], twin.alone, tolerance):
            return _different("the model draws random numbers outside dropout")
        norms = {name: _norm_in_double(factor, row) for name, factor in gradient.factors.items()}
        largest = max(twin.norms.values(), default=0.0)
        for name in engine.parameters:
            difference = abs(norms.get(name, 0.0) - twin.norms.get(name, 0.0))
            if not difference <= tolerance * largest:
                return _different(f"the gradient of {name!r} does not separate by example where it is used")
    try:
        if not _agrees_when_perturbed(engine, inputs, point, gradient, sorted(twins)):
            return _different("its outputs at perturbed weights are not those that the examples have alone")
    except UnsupportedParameterUse as reason:
        return _different(str(reason))
    except (InputError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return _different(f"it does not go through at perturbed weights: {first_line(error)}")
    return _Comparison(Verdict(True, prefers_second=engine.prefers_second, trace=point.tape.trace), point.tape.use_norms)


def _different(reason: str) -> _Comparison:
    return _Comparison(Verdict(False, reason), {})


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
