"""The fast engine on a model that was proven: a proof holds for the way that it saw, and for what it heard there.

Batches of one shape may be computed otherwise: a branch that the data decide, an attribute that was switched, tokens cut off.
Each way has a verdict of its own. And a use of a parameter that was silent in the proof, its gradient zero for every example
that was looked at (an input of zeros, a gate that was shut), was compared with nothing: as soon as it speaks, its examples
are compared. So they are when a hook on an activation begins to change its gradient, or ceases to.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace

import torch
from torch import nn

from noisesam.errors import InputError, first_line
from noisesam.gradients.batch import Inputs, devices_of
from noisesam.gradients.engine.fast import FastEngine, TapedPoint
from noisesam.gradients.engine.perturbed_proof import agrees_for_all_examples
from noisesam.gradients.engine.proof import prove
from noisesam.gradients.engine.proven_points import ListeningPoint, MovedPoint
from noisesam.gradients.engine.recheck import is_due, last_due, still_agrees
from noisesam.gradients.engine.slower import Known, slower
from noisesam.gradients.engine.unsupported import FAILURES, UnsupportedParameterUse, is_of_a_function
from noisesam.gradients.engine.verdict import Verdict, loudest, loudness
from noisesam.gradients.factors import Factor
from noisesam.gradients.module_state import ModuleState
from noisesam.gradients.per_example_gradient import AlongOwnGradient, PerExampleGradient
from noisesam.gradients.points import Engine, EngineChangedError, Point
from noisesam.gradients.randomness import RandomState

MOST_WAYS = 32
"""Ways that are proven for one shape of the batch: a proof takes longer than a step of the slower engine."""

ATTEMPTS = 5
"""Passes at w until way, layout and what is looked at are as proven, each known only after one, and compared again."""


class ProvenEngine(Engine):
    """The fast engine where it is proven; elsewhere the slower one that is exact there.

    Where that shows only in the middle of a step, the step has to begin again (`EngineChangedError`).
    """

    def __init__(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], known: Known, signature: Hashable, engine: str
    ) -> None:
        self._known, self._signature, self._asked = known, signature, engine
        self._verdicts = known.verdicts[signature]
        self._other: Engine | None = None
        self._due = is_due(known.batches[signature])
        self._fast = FastEngine(model, parameters, guess=next(iter(self._verdicts.values())).guess)
        self._fast.looks_for_unheard = any(verdict.unheard for verdict in self._verdicts.values())
        super().__init__(model, parameters)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the engine that has computed."""
        return self._fast.name if self._other is None else self._other.name

    @property
    def forwards_per_pull_back(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the engine that has computed."""
        return 0 if self._other is None else self._other.forwards_per_pull_back

    @property
    def proven_without_gradients(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the engine that has computed."""
        return (self._other or self._fast).proven_without_gradients

    def at(
        self,
        inputs: Inputs,
        perturbation: Mapping[str, Factor] | None = None,
        *,
        previous: Point | None = None,
        consume: bool = False,
        perturbed_passes: int = 2,
    ) -> Point:
        """Evaluate the model at w, or at w + eps_i, by the engine that is exact for the way it goes.

        Raises:
            EngineChangedError: At w + eps_i the model goes another way than at w.
        """
        if self._other is not None:
            return self._other.at(inputs, perturbation, previous=previous, consume=consume)
        if isinstance(previous, TapedPoint):
            return self._moved(inputs, perturbation or {}, previous, consume, perturbed_passes)
        state, reason = RandomState.capture(devices_of(self.model)), ""
        for attempt in range(ATTEMPTS):
            before = ModuleState(self.model) if self._due else None
            point, reason = self._at_w(inputs, perturbation, consume, perturbed_passes)
            trace = None if point is None else point.tape.trace
            was_proven = trace in self._verdicts
            verdict = self._verdict(inputs, trace)
            if verdict is not None and verdict.unheard and not self._fast.looks_for_unheard:
                self._fast.looks_for_unheard = True
                state.restore()
                continue
            if point is not None and verdict is not None and verdict.fast and trace == verdict.trace:
                reason = point.tape.why_sized_by_data or self._unlike_alone(inputs, verdict, perturbation or {})
                if reason:
                    break
                if verdict.guess == self._fast.guess and before is None:
                    return ListeningPoint(point, self, inputs, verdict.silent)
                if before is not None:
                    del point  # one graph at a time is held
                    before.restore()
                    reason = self._otherwise_now(inputs, verdict) if was_proven else ""
                    self._due = False
                    if reason:
                        break
                self._fast.guess = verdict.guess
                state.restore()
                continue
            if point is not None and verdict is not None and verdict.fast and attempt == 0:
                state.restore()  # this pass has filled a table, which the next one finds
                continue
            reason = reason or (verdict.reason if verdict is not None else "") or "it goes another way at every call"
            break
        state.restore()
        return self._fall_back(inputs, reason).at(inputs, perturbation, consume=consume)

    def _at_w(
        self, inputs: Inputs, perturbation: Mapping[str, Factor] | None, consume: bool, perturbed_passes: int
    ) -> tuple[TapedPoint | None, str]:
        """Return the fast engine's evaluation, or why there is none."""
        try:
            return self._fast.at(inputs, perturbation, consume=consume, perturbed_passes=perturbed_passes), ""
        except UnsupportedParameterUse as unsupported:
            return None, str(unsupported)
        except (InputError, torch.OutOfMemoryError):
            raise
        except FAILURES as error:
            if not is_of_a_function(error):
                raise
            # The model may run all the same: it is a row for every example that it does not take on this way.
            return None, f"it does not go through with a row for every example: {first_line(error)}"

    def _moved(
        self, inputs: Inputs, perturbation: Mapping[str, Factor], previous: TapedPoint, consume: bool, perturbed_passes: int
    ) -> Point:
        """Evaluate at w + eps_i what was evaluated at w before."""
        verdict = self._verdicts.get(previous.tape.trace)
        reason = "" if verdict is None else self._unlike_alone(inputs, verdict, perturbation)
        if not reason:
            try:
                moved = self._fast.at(
                    inputs, perturbation, previous=previous, consume=consume, perturbed_passes=perturbed_passes
                )
                reason = moved.tape.why_sized_by_data
                if not reason and moved.tape.trace == previous.tape.trace:
                    return MovedPoint(moved, self)
                reason = reason or "it goes another way at w + eps than at w"
            except UnsupportedParameterUse as unsupported:
                reason = str(unsupported)
        self._fall_back(inputs, reason)
        raise EngineChangedError(self.model, reason)

    def heed(self, point: TapedPoint, inputs: Inputs, gradient: PerExampleGradient) -> None:
        """Prove the model again on the examples of which a use speaks that was silent before, or with a hook at work.

        Raises:
            EngineChangedError: The proof fails there.
        """
        speaking = loudest(loudness(point, gradient, self._verdicts[point.tape.trace].reused))
        if not speaking and point.tape.rewrites == self._verdicts[point.tape.trace].rewrites:
            return
        verdict, trace = prove(FastEngine(self.model, self.parameters), inputs, speaking.values()), point.tape.trace
        if verdict is not None and verdict.trace == trace and verdict.fast:
            self.refuse_other_rewrites(point, verdict)
        if verdict is None or verdict.trace != trace or not verdict.fast:
            self.unsupported(
                inputs, point, (verdict.reason if verdict is not None else "") or "it goes another way at every call"
            )
            return
        # What was asked for is settled, also where the proof, which drops nothing, does not hear it.
        before, settled = self._verdicts[trace], set(speaking)
        silent, mute = before.silent & verdict.silent - settled, before.mute & verdict.mute - settled
        self._verdicts[trace] = replace(verdict, silent=silent, mute=mute)
        point.tape.heard_of = silent
        if verdict.guess != self._fast.guess:
            self._fast.guess = verdict.guess
            raise EngineChangedError(self.model, "its layout has shown itself")

    def refuse_other_rewrites(self, point: TapedPoint, verdict: Verdict | None = None) -> None:
        """Refuse hooks that change the gradients of this reverse pass, and not those of the proof, or the other way round."""
        verdict = verdict or self._verdicts.get(point.tape.trace)
        proven = 0 if verdict is None else verdict.rewrites
        if point.tape.rewrites != proven:
            raise InputError(
                f"Hooks on activations of {type(self.model).__name__} change the gradients of some reverse passes alone: "
                f"{point.tape.rewrites} in this one, {proven} where the model was proven",
                expected="a reverse pass that is linear in the gradient that it is given",
                remedy="Clip the gradient of the step in place of those on the way back.",
            )

    def unsupported(self, inputs: Inputs, point: TapedPoint, reason: str) -> None:
        """Have the slower engine take over in the middle of a step.

        Raises:
            EngineChangedError: Always.
        """
        self._verdicts[point.tape.trace] = Verdict(False, reason, trace=point.tape.trace)
        self._fall_back(inputs, reason)
        raise EngineChangedError(self.model, reason)

    def _unlike_alone(self, inputs: Inputs, verdict: Verdict, perturbation: Mapping[str, Factor]) -> str:
        """Return why a perturbation is not the fast engine's; every example is run alone where the proof knows too little."""
        if not _not_compared(verdict, perturbation) or agrees_for_all_examples(self._fast, inputs, perturbation):
            return ""
        return "its outputs at these perturbed weights are not those that the examples have alone"

    def _otherwise_now(self, inputs: Inputs, verdict: Verdict) -> str:
        """Compare once more what was proven on another batch; return why it is not the fast engine's any more."""
        batch = self._known.batches[self._signature]
        if still_agrees(FastEngine(self.model, self.parameters, guess=verdict.guess), inputs, batch):
            return ""
        found = prove(FastEngine(self.model, self.parameters), inputs)  # which refuses a model that mixes
        if found is None or found.fast:
            return ""
        self._verdicts[verdict.trace] = Verdict(False, found.reason, trace=verdict.trace)
        self._known.say_once(
            f"{type(self.model).__name__} treats the examples of batch {batch} otherwise than those before: {found.reason}. "
            f"The steps since batch {last_due(batch)} may have been computed wrongly; with engine='reference' none is."
        )
        return found.reason

    def _fall_back(self, inputs: Inputs, reason: str) -> Engine:
        self._other = slower(self.model, self.parameters, inputs, self._known, self._signature, self._asked, reason)
        return self._other

    def _verdict(self, inputs: Inputs, trace: int | None) -> Verdict | None:
        """Return the verdict on this way, proven anew if it is new; None where nothing can be told of it."""
        if trace is None:
            return None
        if trace not in self._verdicts:
            if len(self._verdicts) >= MOST_WAYS:
                return Verdict(False, f"it has gone {MOST_WAYS} ways for one shape of the batch, and goes another", trace=trace)
            verdict = prove(FastEngine(self.model, self.parameters), inputs)
            if verdict is None:
                return None
            self._verdicts[trace] = verdict
        return self._verdicts[trace]


def _not_compared(verdict: Verdict, perturbation: Mapping[str, Factor]) -> bool:
    """Whether a use of a parameter is perturbed of which the proof has heard nothing.

    A parameter with another use besides moves there, too. One without moves next to nothing along its own gradient, to which
    this step has listened; a perturbation from outside may move it anywhere.
    """
    if not verdict.silent:
        return False
    along = isinstance(perturbation, AlongOwnGradient)
    names = {name for name, _ in verdict.mute if name in verdict.reused} if along else {name for name, _ in verdict.silent}
    return any(bool(perturbation[name].squared_norm().any()) for name in sorted(names & perturbation.keys()))
