"""What an engine offers: the model at w or at w + eps_i, ready to be pulled back.

Every quantity of the project is built from these few operations:

    point  = engine.at(inputs)                       logits f_i(w)
    g      = point.per_example_gradient(u)           J_i(w)^T u_i of every example
    eps    = g.perturbation(radii, g.norm())         rho g_i / ||g_i||
    moved  = engine.at(inputs, eps)                  logits f_i(w + eps_i)
    moved.sum_gradient(r)                            sum_i J_i(w + eps_i)^T r_i
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from noisesam.gradients.batch import Inputs
    from noisesam.gradients.factors import Factor
    from noisesam.gradients.per_example_gradient import PerExampleGradient


class Point(ABC):
    """One chunk of examples, evaluated at w or at w + eps_i, with its graph."""

    logits: Tensor
    """Detached logits (n, ...)."""

    @abstractmethod
    def per_example_gradient(self, cotangent: Tensor, *, keep: bool = False, perturbed_passes: int = 2) -> PerExampleGradient:
        """Return J_i^T u_i for every example; `keep` leaves the graph for another pull-back.

        `perturbed_passes` says how many passes at w + eps_i follow, on which the cheapest form depends: none where only norms
        are asked for, one forward, or two, forward and back.
        """

    def both_gradients(
        self, cotangent: Tensor, *, keep: bool = False, perturbed_passes: int = 2
    ) -> tuple[dict[str, Tensor], PerExampleGradient]:
        """Return the summed and the per-example gradients of the same pull-back."""
        gradient = self.per_example_gradient(cotangent, keep=keep, perturbed_passes=perturbed_passes)
        return {name: factor.dense().sum(0) for name, factor in gradient.factors.items()}, gradient

    @abstractmethod
    def sum_gradient(self, cotangent: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        """Return sum_i J_i^T u_i by parameter; parameters that play no part are absent."""


class Engine(ABC):
    """Exact per-example arithmetic for one model."""

    name: str
    forwards_per_pull_back = 0
    """Forward passes that a pull-back takes beside the one that `at` has counted."""

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
        self.model = model
        self.parameters = parameters

    @abstractmethod
    def at(
        self,
        inputs: Inputs,
        perturbation: Mapping[str, Factor] | None = None,
        *,
        previous: Point | None = None,
        consume: bool = False,
        perturbed_passes: int = 2,
    ) -> Point:
        """Evaluate the model at w, or at w + eps_i; `previous`, a point of the same inputs at w, may be re-used.

        `consume` says that the caller has no more use for the perturbation: its memory may become that of w + eps_i.
        `perturbed_passes` says how many passes at w + eps_i follow this one at w: none, one forward, or two, forward and back.
        """
