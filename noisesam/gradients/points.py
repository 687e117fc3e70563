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
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

from noisesam.errors import InputError, first_line

if TYPE_CHECKING:
    from noisesam.gradients.batch import Inputs
    from noisesam.gradients.factors import Factor
    from noisesam.gradients.per_example_gradient import PerExampleGradient
    from noisesam.gradients.randomness import RandomState

Result = TypeVar("Result")


class EngineChangedError(InputError):
    """In the middle of a step an engine has turned out not to be exact, and another has taken its place."""

    def __init__(self, model: nn.Module, reason: str) -> None:
        super().__init__(
            f"{type(model).__name__}: {reason}",
            expected="points of one engine",
            remedy="Begin again with `engine.at(inputs)`: the engine is exact now.",
        )


def begun_again(state: RandomState, compute: Callable[[], Result]) -> Result:
    """Return what this computes with one engine, from the beginning, and with the same draws, where the engine has changed."""
    while True:  # every change leaves less to be proven, and the slower engines do not change
        try:
            return compute()
        except EngineChangedError:
            state.restore()
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise InputError(
                f"One pass of the step has written to what another still needs: {first_line(error)}",
                expected="passes that leave each other's values alone: those at w and at w + eps_i are held at once",
                remedy="Let forward fill a new tensor in every call, or copy a workspace that it keeps with .clone().",
            ) from error


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
    proven_without_gradients = False
    """Whether the model is known to compute the same where torch.no_grad() says that no gradient is wanted."""

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
