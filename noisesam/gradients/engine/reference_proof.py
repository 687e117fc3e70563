"""What a call with other weights misses of a model: there the weights themselves have to move."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs, batch_size, devices_of, take
from noisesam.gradients.engine.perturbed_proof import SHARE
from noisesam.gradients.engine.rounding import rounding_of
from noisesam.gradients.engine.terms import WithoutDropout, close, fixed_cotangent, tells
from noisesam.gradients.factors import Dense, Factor
from noisesam.gradients.module_state import modules_kept
from noisesam.gradients.moved_weights import MovedWeightsEngine, renumber
from noisesam.gradients.plain import whole_norm
from noisesam.gradients.points import Engine
from noisesam.gradients.randomness import RandomState, undisturbed
from noisesam.gradients.recomputation import evaluate
from noisesam.gradients.reference import ReferenceEngine, Vectorisation

ROWS = 4
"""Examples of a batch that are compared, evenly spaced."""


def what_the_reference_misses(model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Inputs) -> str | None:
    """Return why calls with other weights are not enough for this model, "" where they are, None where nothing can be told.

    Some examples are run alone, at w and at w + eps_i, with the model's own weights moved and by a call with other weights.
    Only the first way reaches views that the model keeps, and what a function of its own computes again in the reverse pass.

    Raises:
        InputError: The model does not repeat itself.
    """
    with modules_kept(model):
        return _missed(model, parameters, inputs)


def _missed(model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Inputs) -> str | None:
    moved = MovedWeightsEngine(model, parameters)
    asking = _AsksForMore()
    with asking:
        _found(moved, take(inputs, slice(0, 1)), None)
    if asking.found:
        _refuse_stale_outputs(moved, take(inputs, slice(0, 1)))
        return asking.found
    _refuse_buffers_that_are_read_and_updated(model, take(inputs, slice(0, 1)))
    called = ReferenceEngine(model, parameters, Vectorisation(possible=False))
    size = batch_size(inputs)
    told = False
    for row in _compared_rows(size):
        one = take(inputs, slice(row, row + 1))
        state = RandomState.capture(devices_of(model))
        output, gradients = _found(moved, one, None)
        if not tells(output):
            continue
        state.restore()
        if not close(output, _found(moved, one, None)[0], rounding_of(model.parameters(), output).tolerance):
            raise InputError(
                f"{type(model).__name__} gives other outputs when it is repeated with torch's random state put back",
                expected="a forward pass that repeats itself: its value at w + eps_i belongs with the one at w",
                remedy="Draw with torch's default generator, and take counters out of forward.",
            )
        size_of_all = math.hypot(*(float(whole_norm(g)) for g in gradients.values()))
        if not 0 < size_of_all < math.inf:
            continue
        told = True
        missed = _first_difference(parameters, (output, gradients), _found(called, one, None))
        if missed is None:
            length = math.hypot(*(float(whole_norm(parameter.detach())) for parameter in parameters.values()))
            eps = _perturbation(moved, one, SHARE * (length or 1.0))
            missed = _first_difference(parameters, _found(moved, one, eps), _found(called, one, eps))
        if missed is not None:
            return f"a call with other weights misses a use of {missed!r}" if missed else "a call with other weights differs"
    return "" if told else None


def _refuse_buffers_that_are_read_and_updated(model: nn.Module, one: Inputs) -> None:
    """Refuse a model whose buffers make a second forward pass another one: no two passes of a step would belong together.

    A buffer that has come to rest (the vector of a spectral norm, the largest activation so far) shows nothing in two passes
    at w, and moves at w + eps_i. So what a pass writes to is moved before a further pass.
    """
    devices = devices_of(model)
    with undisturbed(model, attributes=False), torch.enable_grad(), WithoutDropout():
        state, before = RandomState.capture(devices), _buffers(model)
        values = [buffer.clone() for _, buffer, _ in before]
        outputs, written = [], list[Tensor]()
        for further in range(3):
            state.restore()
            if further == 2:
                _move(written)
            outputs.append(evaluate(model, one).detach().clone())
            now = _buffers(model)
            if len(now) != len(before) or any(place != other for (place, *_), (other, *_) in zip(now, before, strict=True)):
                written = [buffer for _, buffer, _ in now]
            else:
                written = [
                    buffer
                    for (_, buffer, version), (_, kept, old), value in zip(now, before, values, strict=True)
                    if buffer is not kept or version != old or not torch.equal(buffer, value)
                ]
            if not written:
                return
    first, *others = outputs
    tolerance = rounding_of(model.parameters(), first).tolerance
    if not tells(first) or all(close(first, other, tolerance) for other in others):
        return
    raise InputError(
        f"{type(model).__name__} updates a buffer in its forward pass and reads it there",
        expected="passes that repeat themselves: each example would meet what the one before has left",
        remedy="Freeze that layer with .eval() (spectral normalisation, running means), or update it after the step.",
    )


def _buffers(model: nn.Module) -> list[tuple[str, Tensor, int]]:
    return [(name, buffer, buffer._version) for name, buffer in model.named_buffers()]


def _move(buffers: list[Tensor]) -> None:
    """Move every entry of these by another amount, and upwards."""
    with torch.no_grad():
        for buffer in buffers:
            if buffer.is_floating_point() and buffer.numel():
                largest = buffer.abs().max()
                steps = torch.cos(torch.arange(buffer.numel(), device=buffer.device, dtype=torch.float32)).to(buffer.dtype)
                scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
                buffer.add_((0.3 + 0.2 * steps).view(buffer.shape) * scale)


def vectorisation_differs(
    model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Inputs, vectorisation: Vectorisation
) -> bool:
    """Whether vmap finds something else for this batch than its examples give one at a time.

    It drops what a module's backward hooks do, tells a model that no tensor asks for a gradient, and meets some of torch's own
    kernels with strides that these read wrongly. Of a model that draws torch's random numbers beside dropout it cannot tell.
    """
    one_by_one = ReferenceEngine(model, parameters, Vectorisation(possible=False))
    with undisturbed(model, attributes=False), torch.enable_grad(), WithoutDropout():
        before = torch.get_rng_state()
        one_by_one.at(take(inputs, slice(0, 1)))
        if not torch.equal(before, torch.get_rng_state()):
            return False
    together = ReferenceEngine(model, parameters, vectorisation)
    try:
        found = _found(together, inputs, None)
    except RuntimeError:
        return True  # vmap has shown the model other memory, which it writes to
    if not vectorisation.possible:
        return False
    length = math.hypot(*(float(whole_norm(parameter.detach())) for parameter in parameters.values()))
    longest = max((float(whole_norm(gradient)) for gradient in found[1].values()), default=0.0)
    scale = SHARE * (length or 1.0) / longest if 0 < longest < math.inf else 0.0
    # At w + eps_i, too: the examples' weights lie otherwise in memory than copies of one weight.
    moves: list[dict[str, Factor] | None] = [None, {name: Dense(gradient * scale) for name, gradient in found[1].items()}]
    for eps in moves:
        try:
            output, gradients = found if eps is None else _found(together, inputs, eps)
        except RuntimeError:
            return True
        for row in _compared_rows(batch_size(inputs)):
            rows = slice(row, row + 1)
            of_row = output[rows], {name: gradient[rows] for name, gradient in gradients.items()}
            own_eps = None if eps is None else {name: factor.of(rows) for name, factor in eps.items()}
            own = _found(one_by_one, take(inputs, rows), own_eps, fixed_cotangent(output)[rows])
            if tells(own[0]) and _first_difference(parameters, own, of_row) is not None:
                return True
    return False


def _compared_rows(size: int) -> list[int]:
    return sorted({round(k * (size - 1) / (ROWS - 1)) for k in range(ROWS)})


def _refuse_stale_outputs(moved: MovedWeightsEngine, one: Inputs) -> None:
    """Refuse a model that, once its weights have been elsewhere and are back, still gives outputs of where they were."""
    at_w = _found(moved, one, None)[0]
    if not tells(at_w):
        return  # nothing can be told
    _found(moved, one, _perturbation(moved, one, SHARE))
    if close(at_w, _found(moved, one, None)[0], rounding_of(moved.model.parameters(), at_w).tolerance):
        return
    renumber(moved.parameters.values())  # so that the model is as it was
    raise InputError(
        f"{type(moved.model).__name__} keeps what it has computed of weights that are no longer there",
        expected="a forward pass that notices every change of a parameter",
        remedy="Compare versions with `!=`, not with `>`, or compute it at every call.",
    )


_READS_PLACES = "as_strided reads memory by its place, where a call has all examples' weights side by side"
_MORE_THAN_VALUES: dict[object, str] = {
    torch.as_strided: _READS_PLACES,
    torch.Tensor.as_strided: _READS_PLACES,
    vars(torch._C.TensorBase)["_version"].__get__: "it asks for a version, and weights that a call brings along have none",
}


class _AsksForMore(TorchFunctionMode):
    """Whether the model asks for more of a tensor than its values, and what."""

    found = ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Remember whether this is such a function."""
        self.found = self.found or _MORE_THAN_VALUES.get(func, "")
        return func(*args, **(kwargs or {}))


def _found(
    engine: Engine, inputs: Inputs, eps: dict[str, Factor] | None, cotangent: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return outputs and gradients, (n, ...); every call draws the same random numbers, and no dropout."""
    with undisturbed(engine.model, attributes=False), torch.enable_grad(), WithoutDropout():
        point = engine.at(inputs, eps)
        gradient = point.per_example_gradient(fixed_cotangent(point.logits) if cotangent is None else cotangent)
    return point.logits, {name: factor.dense() for name, factor in gradient.factors.items()}


def _perturbation(engine: Engine, one: Inputs, radius: float) -> dict[str, Factor]:
    with undisturbed(engine.model, attributes=False), torch.enable_grad(), WithoutDropout():
        point = engine.at(one)
        gradient = point.per_example_gradient(fixed_cotangent(point.logits))
    return gradient.perturbation(dict.fromkeys(engine.parameters, radius), gradient.norm())


def _first_difference(
    parameters: dict[str, nn.Parameter],
    moved: tuple[Tensor, dict[str, Tensor]],
    called: tuple[Tensor, dict[str, Tensor]],
) -> str | None:
    """Return the parameter whose gradients differ most, "" where only the outputs do, None where nothing does."""
    tolerance = rounding_of(parameters.values(), moved[0]).tolerance
    gaps: dict[str, float] = {}
    largest = max((float(whole_norm(g)) for g in moved[1].values()), default=0.0)
    for name in parameters:
        first, second = moved[1].get(name), called[1].get(name)
        if first is not None or second is not None:
            gap = first if second is None else second if first is None else first - second
            gaps[name] = 0.0 if gap is None else float(whole_norm(gap))
    worst = max(gaps, key=lambda name: gaps[name], default=None)
    if worst is not None and not gaps[worst] <= tolerance * largest:
        return worst
    return None if close(moved[0], called[0], tolerance) else ""
