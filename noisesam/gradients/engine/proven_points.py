"""Evaluations by a proven engine, whose reverse passes tell it of what the proof has not heard or seen otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from noisesam.gradients.batch import Inputs
from noisesam.gradients.engine.fast import TapedPoint
from noisesam.gradients.engine.tape import Use
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.per_example_gradient import PerExampleGradient

if TYPE_CHECKING:
    from noisesam.gradients.engine.proven import ProvenEngine


class ListeningPoint(TapedPoint):
    """An evaluation at w whose pull-backs tell of what the proof has not heard: a silent use, a hook, a use without a rule."""

    def __init__(self, point: TapedPoint, engine: ProvenEngine, inputs: Inputs, silent: frozenset[Use]) -> None:
        super().__init__(point.tape, point.output, point.parameters)
        self._engine, self._inputs = engine, inputs
        self.tape.heard_of = silent

    def per_example_gradient(self, cotangent: Tensor, *, keep: bool = False, perturbed_passes: int = 2) -> PerExampleGradient:
        """Pull back without forming any shared weight gradient."""
        try:
            gradient = super().per_example_gradient(cotangent, keep=keep, perturbed_passes=perturbed_passes)
        except UnsupportedParameterUse as unsupported:
            self._engine.unsupported(self._inputs, self, str(unsupported))
            raise
        self._engine.heed(self, self._inputs, gradient)
        return gradient

    def both_gradients(
        self, cotangent: Tensor, *, keep: bool = False, perturbed_passes: int = 2
    ) -> tuple[dict[str, Tensor], PerExampleGradient]:
        """Return the summed and the per-example gradients from one reverse pass."""
        found = super().both_gradients(cotangent, keep=keep, perturbed_passes=perturbed_passes)
        self._engine.heed(self, self._inputs, found[1])
        return found

    def sum_gradient(self, cotangent: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        """Pull back to the shared weights."""
        found = super().sum_gradient(cotangent, keep=keep)
        if not self.tape.recording:  # else `heed` looks, which proves once more before it refuses
            self._engine.refuse_other_rewrites(self)
        return found


class MovedPoint(TapedPoint):
    """An evaluation at w + eps_i whose hooks have to do what they do in the proof."""

    def __init__(self, point: TapedPoint, engine: ProvenEngine) -> None:
        super().__init__(point.tape, point.output, point.parameters)
        self._engine = engine

    def sum_gradient(self, cotangent: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        """Pull back to the shared weights."""
        found = super().sum_gradient(cotangent, keep=keep)
        self._engine.refuse_other_rewrites(self)
        return found

    def per_example_gradient(self, cotangent: Tensor, *, keep: bool = False, perturbed_passes: int = 2) -> PerExampleGradient:
        """Pull back without forming any shared weight gradient."""
        found = super().per_example_gradient(cotangent, keep=keep, perturbed_passes=perturbed_passes)
        self._engine.refuse_other_rewrites(self)
        return found
