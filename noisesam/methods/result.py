"""What a step returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """What `Method.backward` met on the way; everything is detached."""

    loss: Float[Tensor, ""]
    """Mean loss over the evaluated rows, at w, nats."""
    logits: Tensor
    """(b, ...), at w; NaN where not evaluated."""
    losses: Float[Tensor, " b"]
    """At w, nats; NaN where not evaluated."""
    evaluated: Bool[Tensor, " b"]
    """Which examples were evaluated at w."""
    gradient_norms: Float[Tensor, " b"] | None
    """||J_i(w)^T r_i(w)|| of every example where the method computes it, else None."""
    forward_examples: int
    """Examples summed over model evaluations."""
    backward_examples: int
    """Examples summed over reverse passes, weight gradients formed or not."""


@dataclass(frozen=True)
class StepTerms:
    """The method's own per-example terms J_i(theta_J)^T r_i(theta_L), one row per example."""

    residual_norm: Float[Tensor, " b"]
    """||r_i(theta_L)||."""
    gradient_norm: Float[Tensor, " b"]
    """||J_i(theta_J)^T r_i(theta_L)||."""


@dataclass(frozen=True)
class StepCall:
    """How a step is asked for: the factors on the final gradient, and whether it is a step of its own."""

    loss: float = 1.0
    """The GradScaler's scale: also multiplies what is differentiated for the ascent, and is divided out of eps."""
    final: float = 1.0
    """The caller's factor, for ragged micro-batches."""
    new_step: bool = True
    """False for every micro-batch after the first: what is drawn, counted or averaged by step holds still."""

    @property
    def total(self) -> float:
        """The factor on the final gradient."""
        return self.loss * self.final


@dataclass
class Outcome:
    """A step that has been computed but not yet taken: the weights, `.grad` and the method's state are as before."""

    gradient: dict[str, Tensor]
    """By parameter name, times `StepCall.total`."""
    logits: Tensor
    losses: Tensor
    forward_examples: int
    backward_examples: int
    gradient_norms: Tensor | None = None
    evaluated: Tensor | None = None
    further_losses: list[Tensor] = field(default_factory=list)
    """Losses at other weights, one for each row of the batch (0 where not evaluated): not returned, but they must be finite."""
    further_numbers: list[Tensor] = field(default_factory=list)
    """What else must be finite, such as the norm of the gradient that eps is taken along."""
    commit: Callable[[], None] = lambda: None
    """Advances the method's state by one step."""
    remember: Callable[[], None] = lambda: None
    """Writes what the method remembers of these examples, in every call that visits them."""
