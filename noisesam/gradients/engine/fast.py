"""The fast engine: evaluate once with all examples, pull back with per-example factors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Inputs, batch_size, devices_of
from noisesam.gradients.engine import rules
from noisesam.gradients.engine.constants import Constants
from noisesam.gradients.engine.guess import Guess
from noisesam.gradients.engine.interception import Interception
from noisesam.gradients.engine.tape import Tape
from noisesam.gradients.engine.unheard import Unheard
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.factors import Factor
from noisesam.gradients.per_example_gradient import PerExampleGradient
from noisesam.gradients.points import Engine, Point
from noisesam.gradients.randomness import RandomState
from noisesam.gradients.recomputation import evaluate
from noisesam.gradients.traversal import modules_of

__all__ = ["FastEngine", "rules"]


class FastEngine(Engine):
    """Evaluate the chunk as one batch; each layer's rule adds its low-rank perturbation and records its gradient factors."""

    name = "fast"
    proven_without_gradients = True

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], *, guess: Guess = Guess.EXAMPLES_FIRST) -> None:
        super().__init__(model, parameters)
        self.guess = guess
        self.constants_in_doubt = False
        """Whether a weight has met a constant of the model with as many rows as there were examples."""
        self.sized_by_data = ""
        """Why rows are not the examples' own wherever the data want them, of the last pass, also of one that broke off."""
        self.looks_for_unheard = False
        """Whether passes look at operations of which no function of torch tells."""

    def at(
        self,
        inputs: Inputs,
        perturbation: Mapping[str, Factor] | None = None,
        *,
        previous: Point | None = None,
        consume: bool = False,
        perturbed_passes: int = 2,
    ) -> TapedPoint:
        """Evaluate the model at w, or at w + eps_i."""
        before = previous.tape if isinstance(previous, TapedPoint) else None
        constants = Constants(self._held())
        tape = Tape(self.parameters, batch_size(inputs), perturbation, before, self.guess, consume, constants)
        tape.perturbed_passes = perturbed_passes
        devices = devices_of(self.model) if before is None else ()
        start = RandomState.capture(devices) if before is None else None
        try:
            with Unheard(tape) if self.looks_for_unheard else nullcontext():
                output = evaluate(self.model, inputs, under=Interception(tape))
        finally:
            self.constants_in_doubt |= tape.constants_in_doubt
            self.sized_by_data = tape.why_sized_by_data
        tape.draws = start is not None and not start.holds()
        return TapedPoint(tape, output, self.parameters)

    def _held(self) -> Iterator[Tensor]:
        """Yield what the model holds beside its trainable parameters."""
        trainable = {id(parameter) for parameter in self.parameters.values()}
        for module in modules_of(self.model):
            for own in itertools.chain(module._buffers.values(), module._parameters.values()):
                if own is not None and id(own) not in trainable:
                    yield own


class TapedPoint(Point):
    """The evaluation with its tape."""

    def __init__(self, tape: Tape, output: Tensor, parameters: dict[str, nn.Parameter]) -> None:
        self.tape = tape
        self.output = output
        self.parameters = parameters
        self.logits = output.detach()

    def per_example_gradient(self, cotangent: Tensor, *, keep: bool = False, perturbed_passes: int = 2) -> PerExampleGradient:
        """Pull back without forming any shared weight gradient."""
        with self.tape.mode(recording=True, sharing=False, perturbed_passes=perturbed_passes):
            found = self._pull_back(cotangent, keep)
            # No rule has returned one: what there is comes from a use that no rule has seen.
            unseen = [name for name, gradient in zip(self.parameters, found, strict=True) if gradient is not None]
            if unseen:
                raise UnsupportedParameterUse(f"{unseen[0]!r} is used by something that is no function of torch")
            self.tape.lead_back()
            return self.tape.take_gradient()

    def both_gradients(
        self, cotangent: Tensor, *, keep: bool = False, perturbed_passes: int = 2
    ) -> tuple[dict[str, Tensor], PerExampleGradient]:
        """Return the summed and the per-example gradients from one reverse pass."""
        with self.tape.mode(recording=True, sharing=True, perturbed_passes=perturbed_passes):
            summed = self.sum_gradient(cotangent, keep=keep)
            return summed, self.tape.take_gradient()

    def sum_gradient(self, cotangent: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        """Pull back to the shared weights."""
        gradients = self._pull_back(cotangent, keep)
        found = {name: g for name, g in zip(self.parameters, gradients, strict=True) if g is not None}
        for name, apart in self.tape.lead_back().items():
            found[name] = found[name] + apart if name in found else apart
        return found

    def _pull_back(self, cotangent: Tensor, keep: bool) -> tuple[Tensor | None, ...]:
        if not self.output.requires_grad:
            return (None,) * len(self.parameters)
        self.tape.rewrites = 0
        with torch.autocast(self.output.device.type, enabled=False):
            self.tape.forget_derived()
            return torch.autograd.grad(
                self.output,
                list(self.parameters.values()),
                cotangent.to(self.output.dtype),
                retain_graph=keep,
                allow_unused=True,
            )
