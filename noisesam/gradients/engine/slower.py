"""What is exact where the fast engine is not: the reference engine where it sees all, else the one that moves the weights."""

from __future__ import annotations

import warnings
from collections.abc import Hashable

from torch import nn

from noisesam.errors import InputError
from noisesam.gradients.batch import Inputs
from noisesam.gradients.engine.reference_proof import vectorisation_differs, what_the_reference_misses
from noisesam.gradients.engine.verdict import Verdict
from noisesam.gradients.module_state import modules_kept
from noisesam.gradients.moved_weights import MovedWeightsEngine
from noisesam.gradients.points import Engine
from noisesam.gradients.reference import ReferenceEngine, Vectorisation


class Known:
    """What has been proven of one model."""

    def __init__(self) -> None:
        self.verdicts: dict[Hashable, dict[int, Verdict]] = {}
        """By signature, and then by the way the model went."""
        self.batches: dict[Hashable, int] = {}
        """How many batches of each signature there have been; the first was proven."""
        self.vectorisation = Vectorisation()
        self.missed: dict[Hashable, str] = {}
        """What the reference engine misses, by signature; "" where it was compared with plain autograd and misses nothing."""
        self.vectorised: set[Hashable] = set()
        """Signatures for which vmap was compared with a loop."""
        self._said: set[str] = set()

    def say_once(self, what: str) -> None:
        """Warn, but not at every step."""
        if what not in self._said:
            self._said.add(what)
            warnings.warn(what, stacklevel=3)


def slower(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    inputs: Inputs,
    known: Known,
    signature: Hashable,
    engine: str,
    reason: str,
) -> Engine:
    """Return the reference engine where it sees all that a model does with its weights, else the one that moves them."""
    if engine == "fast":
        raise InputError(
            f"engine='fast' for {type(model).__name__}: {reason}",
            expected="a rule for every use of a trainable parameter",
            remedy="Use engine='auto', which falls back on an exact, slower engine.",
        )
    hooked = [name for name, parameter in parameters.items() if parameter._backward_hooks]
    missed = f"a call with other weights misses the hook of {hooked[0]!r}" if hooked else known.missed.get(signature)
    if missed is None:
        missed = what_the_reference_misses(model, parameters, inputs)
        if missed is not None:
            known.missed[signature] = missed
    if missed:
        known.say_once(
            f"{type(model).__name__} runs with its own weights moved for one example after the other, "
            f"which is exact, but slow: {missed}."
        )
        return MovedWeightsEngine(model, parameters)
    if engine == "auto":
        known.say_once(
            f"{type(model).__name__} runs on the exact reference engine, which is slower: {reason}. "
            "engine='reference' says so without this warning."
        )
    if known.vectorisation.possible and signature not in known.vectorised:
        known.vectorised.add(signature)
        with modules_kept(model):
            differs = vectorisation_differs(model, parameters, inputs, known.vectorisation)
        if differs:
            known.vectorisation.possible = False
            known.say_once(
                f"{type(model).__name__} gives other numbers when it is vectorised over its examples (as hooks and some of "
                "torch's kernels do); noisesam runs them one at a time: exact, but slow."
            )
    return ReferenceEngine(model, parameters, known.vectorisation)
