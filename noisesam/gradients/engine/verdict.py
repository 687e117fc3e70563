"""What a proof has found, and how much of the model it has heard."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from noisesam.gradients.engine.fast import TapedPoint
from noisesam.gradients.engine.guess import Guess
from noisesam.gradients.engine.rounding import rounding_of
from noisesam.gradients.engine.tape import Use
from noisesam.gradients.per_example_gradient import PerExampleGradient


@dataclass(frozen=True)
class Verdict:
    """Whether the fast engine may be used for this batch shape, and why not."""

    fast: bool
    reason: str = ""
    guess: Guess = Guess.EXAMPLES_FIRST
    """The one that holds where the shapes leave several."""
    trace: int = 0
    """What the model called while it was proven (`Tape.trace`): it holds for what goes the same way."""
    rewrites: int = 0
    """How many hooks on tensors put another gradient in the place of theirs."""
    unheard: bool = False
    """Whether there are operations of which no function of torch tells, so that every step is to look at them."""
    silent: frozenset[Use] = frozenset()
    """The uses of parameters whose gradient was next to nothing wherever it was compared."""
    mute: frozenset[Use] = frozenset()
    """Those of them whose gradient was zero, as behind a gate that is shut."""
    reused: frozenset[str] = frozenset()
    """The parameters with more than one use."""


class Everything:
    """What contains every use."""

    def __contains__(self, use: object) -> bool:
        return True


@dataclass(frozen=True)
class Comparison:
    """The verdict on some examples, with what every use of a parameter amounts to for all of them."""

    verdict: Verdict
    loudness: Mapping[Use, Tensor]
    """By use, (n,): above 1 a wrong one would have been seen."""
    noticed: bool = False
    """Whether every step on this batch comes upon the reason by itself, and falls back."""
    trace: int = 0
    """What the model called on this batch, whatever the verdict."""

    def silent(self, parameters: Iterable[str], rows: Iterable[int], *, above: float = 1.0) -> set[Use]:
        """Return the uses that are quiet for all these examples; a parameter without any use counts as one."""
        unused, chosen = {(name, 0) for name in parameters} - self.loudness.keys(), list(rows)
        return unused | {use for use, one in self.loudness.items() if not bool((one[chosen] > above).any())}

    def loudest(self, uses: Iterable[Use]) -> list[int]:
        """Return the examples for which these uses are loudest, where they are not quiet for all."""
        return sorted(set(loudest({use: self.loudness[use] for use in uses if use in self.loudness}).values()))


def loudness(
    point: TapedPoint, gradient: PerExampleGradient, reused: Container[str] | None = None
) -> dict[Use, Float[Tensor, " n"]]:
    """Return the norm of each use by that up to which it would not be seen that the use is wrong.

    Args:
        point: An evaluation whose last pull-back has told the norms of some uses.
        gradient: What that has found.
        reused: The parameters with more than one use; None where all are told of.
    """
    told = point.tape.use_norms
    if not told:
        return {}
    if reused is None:
        reused = {name for name, place in told if place > 0}
    whole, rounding = gradient.norm().double(), rounding_of(point.parameters.values(), point.logits)
    # A parameter's gradient is compared as a whole, and a small use beside a large one with that.
    bounds = [rounding.quiet(reused=name in reused) * whole for name, _ in told]
    ratios = torch.stack([norms.double().sqrt() / bound for norms, bound in zip(told.values(), bounds, strict=True)])
    return dict(zip(told, ratios.nan_to_num(0.0).cpu(), strict=True))  # asked for together: an accelerator is waited for once


def loudest(heard: Mapping[Use, Tensor]) -> dict[Use, int]:
    """Return the example for which each use is loudest, where it is not quiet for all."""
    return {use: int(one.argmax()) for use, one in heard.items() if bool((one > 1).any())}
