"""A batch by the fast engine and by plain autograd: some of its examples one by one, and the sum of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from noisesam.errors import InputError, first_line
from noisesam.gradients.batch import Inputs, take
from noisesam.gradients.engine.fast import FastEngine, TapedPoint
from noisesam.gradients.engine.perturbed_proof import agrees_at_perturbed_weights
from noisesam.gradients.engine.rounding import Rounding, has_few_bits, rounding_of
from noisesam.gradients.engine.second_look import agrees_in_double, may_be_rounding
from noisesam.gradients.engine.terms import close, fixed_cotangent, tells
from noisesam.gradients.engine.torch_rounding import with_torch_rounding
from noisesam.gradients.engine.twins import Twins, total_alone, twins_of, weights_of_rows
from noisesam.gradients.engine.unsupported import FAILURES, UnsupportedParameterUse
from noisesam.gradients.engine.verdict import Comparison, Everything, Verdict, loudness
from noisesam.gradients.factors import Factor
from noisesam.gradients.per_example_gradient import PerExampleGradient
from noisesam.gradients.plain import whole_norm
from noisesam.gradients.points import Point
from noisesam.gradients.randomness import RandomState
from noisesam.gradients.recomputation import evaluate


def outputs_alone(
    engine: FastEngine, inputs: Inputs, rows: Iterable[int], state: RandomState | None = None
) -> dict[int, Tensor]:
    """Return the outputs of examples that are run alone, each with the draws that follow on this state."""
    found: dict[int, Tensor] = {}
    try:
        for row in rows:
            if state is not None:
                state.restore()
            found[row] = evaluate(engine.model, take(inputs, slice(row, row + 1))).detach()
        return found
    except (InputError, torch.OutOfMemoryError):
        raise
    except FAILURES as error:
        raise InputError(
            f"{type(engine.model).__name__} runs on the batch, but not on one of its examples alone: {first_line(error)}",
            expected="a forward pass for any number of examples: each has an output of its own",
            remedy="Take the number of examples from the inputs' shape, and keep no state of an earlier batch.",
        ) from error


def compare(engine: FastEngine, inputs: Inputs, twins: Twins, *, perturbed: bool = True) -> Comparison | None:
    """Compare what the engine finds in the batch with plain autograd.

    Args:
        engine: The engine in question.
        inputs: The batch.
        twins: What plain autograd finds.
        perturbed: Whether outputs at w + eps_i are compared, too.
    """
    hooked = [name for name, parameter in engine.parameters.items() if parameter._backward_hooks]
    if hooked:
        return _different(f"{hooked[0]!r} has a hook, which is to see the gradient of the weight itself")
    engine.looks_for_unheard = True
    try:
        with with_torch_rounding():
            point = engine.at(inputs)
        point.tape.heard_of = Everything()
        gradient = point.per_example_gradient(fixed_cotangent(point.logits))
    except (UnsupportedParameterUse, *FAILURES) as error:
        # The model itself has just run: it is a row for every example that it does not take somewhere.
        return _broken_off(error, "with a row for every example")
    heard, rewrites, trace = loudness(point, gradient), point.tape.rewrites, point.tape.trace
    if point.tape.sized_by_data:
        return _different(point.tape.why_sized_by_data, trace=trace)
    if not tells(point.logits):
        return None
    rounding = rounding_of(engine.parameters.values(), point.logits)
    rounding_of_all = rounding_of(engine.model.parameters(), point.logits)
    in_doubt = ""
    for row, twin in twins.of_rows.items():
        if not close(point.logits[row : row + 1], twin.alone, rounding_of_all.tolerance):
            return _different("the model draws random numbers outside dropout")
        norms = {name: _norm_in_double(factor, row) for name, factor in gradient.factors.items()}
        largest = max(twin.norms.values(), default=0.0)
        for name in engine.parameters:
            own = twin.norms.get(name, 0.0)
            gap = abs(norms.get(name, 0.0) - own)
            if not gap <= rounding.allowed_difference(own, largest):
                if not may_be_rounding(gap, own, rounding):
                    return _different(_separates_not(name), trace=trace)
                in_doubt = in_doubt or name
    for name, gap, own in _unlike_the_sum(gradient, twins, point.logits, rounding):
        if not may_be_rounding(gap, own, rounding):
            return _different(_separates_not(name), trace=trace)
        in_doubt = in_doubt or name
    if in_doubt and not _agrees_in_double(engine, inputs, point, sorted(twins.of_rows), rounding, trace):
        return _different(_separates_not(in_doubt), trace=trace)
    twins.total.clear()  # as large as the model: it goes before the perturbed weights come
    try:
        if perturbed and not _agrees_when_perturbed(engine, inputs, point, gradient, sorted(twins.of_rows)):
            return _different("its outputs at perturbed weights are not those that the examples have alone")
    except (UnsupportedParameterUse, *FAILURES) as error:
        return _broken_off(error, "at perturbed weights")
    verdict = Verdict(True, guess=engine.guess, trace=trace, rewrites=rewrites, unheard=point.tape.unheard)
    return Comparison(verdict, heard, trace=trace)


def _unlike_the_sum(
    gradient: PerExampleGradient, twins: Twins, logits: Tensor, rounding: Rounding
) -> Iterator[tuple[str, float, float]]:
    """Yield the parameters whose weighted sums over the examples are not plain autograd's: name, distance and plain norm."""
    weights, largest = weights_of_rows(logits), max(map(float, map(whole_norm, twins.total.values())), default=0.0)
    for name, factor in gradient.factors.items():
        found, plain = factor.weighted_sum(weights), twins.total.get(name)
        own = 0.0 if plain is None else float(whole_norm(plain))
        if plain is not None:  # without a third tensor of this size, where there can be two
            found = found.sub_(plain) if found.dtype == plain.dtype else found - plain
        gap = float(whole_norm(found))
        if not gap <= rounding.allowed_difference(own, largest):
            yield name, gap, own


def _separates_not(name: str) -> str:
    return f"the gradient of {name!r} does not separate by example where it is used"


def _agrees_in_double(
    engine: FastEngine, inputs: Inputs, point: TapedPoint, rows: list[int], rounding: Rounding, trace: int
) -> bool:
    """Whether what is in doubt holds in float64, for the same examples, on the same way."""

    def compared(another: FastEngine, doubled: Inputs) -> Tensor | None:
        twins = twins_of(another, doubled, outputs_alone(another, doubled, rows)) if rows else total_alone(another, doubled)
        found = compare(another, doubled, twins, perturbed=False)
        if found is None or not found.verdict.fast or found.trace != trace:
            return None
        return evaluate(another.model, doubled).detach()

    return agrees_in_double(engine, inputs, point.logits, compared, rounding)


def _different(reason: str, *, noticed: bool = False, trace: int = 0) -> Comparison:
    return Comparison(Verdict(False, reason), {}, noticed, trace)


def _broken_off(error: Exception, where: str) -> Comparison:
    """Return the verdict on a model that the engine does not go through; what is no finding of its own is raised."""
    if isinstance(error, (InputError, torch.OutOfMemoryError)):
        raise error
    reason = (
        str(error) if isinstance(error, UnsupportedParameterUse) else f"it does not go through {where}: {first_line(error)}"
    )
    return _different(reason, noticed=True)


def _norm_in_double(factor: Factor, row: int) -> float:
    """Return the norm of one example's gradient, of which no copy in float64 is left."""
    return float(factor.of(slice(row, row + 1)).in_double().squared_norm()[0].sqrt())


def _agrees_when_perturbed(
    engine: FastEngine, inputs: Inputs, point: Point, gradient: PerExampleGradient, rows: list[int]
) -> bool:
    """Compare at w + eps_i in at least float32: sixteen bits round as much as a small perturbation changes."""
    kind = point.logits.device.type
    if not torch.is_autocast_enabled(kind):
        kinds = {point.logits.dtype}, {parameter.dtype for parameter in engine.parameters.values()}
        if any(kind and all(map(has_few_bits, kind)) for kind in kinds):
            return True
        return agrees_at_perturbed_weights(engine, inputs, point, gradient, rows)
    with torch.autocast(kind, enabled=False):
        try:
            point = engine.at(inputs)
        except RuntimeError:
            return True  # inputs of sixteen bits, which only autocast brings together with the weights
        gradient = point.per_example_gradient(fixed_cotangent(point.logits))
        return agrees_at_perturbed_weights(engine, inputs, point, gradient, rows)
