"""What plain autograd sees of a model and a call with other weights does not: there the weights themselves have to move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs, call_model, take
from noisesam.gradients.engine.terms import WithoutDropout, fixed_cotangent, rounding_tolerance
from noisesam.gradients.factors import Dense
from noisesam.gradients.moved_weights import MovedWeightsEngine
from noisesam.gradients.plain import named_plain_gradients, whole_norm
from noisesam.gradients.randomness import undisturbed
from noisesam.gradients.recomputation import RECOMPUTES, recomputes
from noisesam.gradients.reference import WithWeights

SHARES = (5e-2, 5e-3, 5e-4)
"""Lengths of the trial movements as shares of the weights': the shorter, the straighter; the longer, the less rounded."""
ALLOWED = 0.25
"""How far the change along a movement may be from its first order: a tensor that does not move with it is off by 1."""


def what_the_reference_misses(model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Inputs) -> str:
    """Return why a call with other weights is not enough for this model, "" where it is.

    An example is pulled back by plain autograd and through `torch.func.functional_call`. What only the first of them sees must
    follow when the memory of the weights moves, as a view does; a copy that was made before the step does not.

    Raises:
        InputError: The model holds a copy of a parameter, made before the step, which still would be that of w at w + eps_i.
    """
    one = take(inputs, slice(0, 1))
    recomputing = recomputes(model, one)

    @contextmanager
    def alike() -> Iterator[None]:
        """Every pass draws the same masks, and none where that can be had: a dropped unit hides what is behind it."""
        with undisturbed(model), torch.enable_grad(), nullcontext() if recomputing else WithoutDropout():
            yield

    with alike():
        output = call_model(model, one)
        if not output.requires_grad or not bool(output.isfinite().all()):
            return ""
        tolerance, cotangent = rounding_tolerance(output), fixed_cotangent(output.detach())
        plain = named_plain_gradients(model, parameters, output, cotangent)
    with alike():
        other = {name: parameter.detach().clone().requires_grad_() for name, parameter in parameters.items()}
        called = named_plain_gradients(model, other, call_model(WithWeights(model, other), one), cotangent)
    allowed = tolerance * max((float(whole_norm(g)) for g in plain.values() if g is not None), default=0.0)
    missed: dict[str, Tensor] = {}
    for name, gradient in plain.items():
        if gradient is not None:
            beyond = gradient if (seen := called[name]) is None else gradient - seen
            if not float(whole_norm(beyond)) <= allowed:
                missed[name] = beyond
    if not missed:
        return RECOMPUTES if recomputing else ""
    first = next(iter(missed))

    def along(eps: dict[str, Tensor]) -> float:
        with alike():
            engine = MovedWeightsEngine(model, parameters)
            return float((engine.at(one, {name: Dense(e[None]) for name, e in eps.items()}).logits * cotangent).sum())

    if not _moves_with_its_weights(parameters, missed, called, along):
        raise _kept_from_before(model, first)
    return RECOMPUTES if recomputing else f"it uses {first!r} by way of a view that was made before the step"


def _moves_with_its_weights(
    parameters: Mapping[str, Tensor],
    missed: Mapping[str, Tensor],
    called: Mapping[str, Tensor | None],
    along: Callable[[dict[str, Tensor]], float],
) -> bool:
    """Whether u^T f changes along the missed gradient d as the whole one says: by <d, d> more than the part that was seen."""
    squared = sum(float(whole_norm(d)) ** 2 for d in missed.values())
    seen = sum(float((d.double() * g.double()).sum()) for name, d in missed.items() if (g := called[name]) is not None)
    length = math.hypot(*(float(whole_norm(parameters[name].detach())) for name in missed))
    for share in SHARES:
        step = share * (length or 1.0) / math.sqrt(squared)
        ahead, behind = (along({name: sign * step * d for name, d in missed.items()}) for sign in (1.0, -1.0))
        if abs(((ahead - behind) / (2 * step) - seen) / squared - 1) <= ALLOWED:
            return True
    return False


def _kept_from_before(model: nn.Module, name: str) -> InputError:
    """Build the error for a model that holds a copy of a parameter, made before the step."""
    return InputError(
        f"{type(model).__name__} uses {name!r} by way of a copy that was made of it before the step",
        expected="a forward pass that starts from its parameters: at w + eps_i such a copy would still hold w",
        remedy="Form it inside forward, at every call, instead of keeping it.",
    )
