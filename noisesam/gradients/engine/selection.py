"""Which engine computes for this model and batch: the fast one where it is proven, else the reference where it sees all."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noisesam.errors import InputError, unknown_name
from noisesam.gradients.batch import Inputs, devices_of, trainable
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.proof import Verdict, prove, refuse_batch_normalisation
from noisesam.gradients.engine.reference_proof import vectorisation_differs, what_the_reference_misses
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.factors import Factor
from noisesam.gradients.moved_weights import MovedWeightsEngine
from noisesam.gradients.points import Engine, Point
from noisesam.gradients.randomness import RandomState
from noisesam.gradients.reference import ReferenceEngine, Vectorisation
from noisesam.gradients.traversal import modules_of

ENGINES = ("auto", "fast", "reference")


class _Known:
    """What has been proven of one model."""

    def __init__(self) -> None:
        self.verdicts: dict[Hashable, dict[int, Verdict]] = {}
        """By signature, and then by the way the model went."""
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


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def check_engine(engine: str) -> str:
    """Refuse an unknown engine name."""
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    return engine


def engine_for(model: nn.Module, inputs: Inputs, engine: str = "auto") -> Engine:
    """Return an exact engine for this model and this batch.

    Args:
        model: Any module whose examples do not mix.
        inputs: The batch, (n, ...), on which the fast engine is proven if this model and shape are new.
        engine: "auto", "fast" (an error where it cannot be used) or "reference".

    Raises:
        InputError: The model mixes examples, has BatchNorm in training mode, or engine="fast" has no rule for it.
    """
    check_engine(engine)
    _refuse_cached_weights(model)
    parameters = trainable(model)
    known = _KNOWN.setdefault(model, _Known())
    signature = _signature(model, parameters, inputs)
    verdicts = known.verdicts.setdefault(signature, {})
    if not verdicts:
        # What is refused depends on nothing that the signature leaves out: once a signature is known, this is behind it.
        _refuse_compiled(model)
        _refuse_shared_memory(parameters)
        refuse_batch_normalisation(model)
        verdict = prove(FastEngine(model, parameters), inputs)
        if verdict is None:
            return ReferenceEngine(model, parameters, known.vectorisation)  # not finite: nothing is known, nothing is lost
        verdicts[verdict.trace] = verdict
    verdict = next(iter(verdicts.values()))
    if verdict.fast and engine != "reference":
        return _ProvenEngine(model, parameters, known, signature, engine)
    return _slower(model, parameters, inputs, known, signature, engine, verdict.reason)


def _slower(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    inputs: Inputs,
    known: _Known,
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
    missed = known.missed.get(signature)
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
        if vectorisation_differs(model, parameters, inputs, known.vectorisation):
            known.vectorisation.possible = False
            known.say_once(
                f"{type(model).__name__} gives other numbers when it is vectorised over its examples (as hooks and some of "
                "torch's kernels do); noisesam runs them one at a time: exact, but slow."
            )
    return ReferenceEngine(model, parameters, known.vectorisation)


class _ProvenEngine(Engine):
    """The fast engine for a model that was proven; one that goes another way than then is proven again for that way.

    Batches of one shape may be computed otherwise: a branch that the data decide, an attribute that was switched, tokens cut
    off. Each way has a verdict of its own.
    """

    def __init__(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], known: _Known, signature: Hashable, engine: str
    ) -> None:
        self._known, self._signature, self._asked = known, signature, engine
        self._verdicts = known.verdicts[signature]
        self._other: Engine | None = None
        self._fast = FastEngine(model, parameters, prefers_second=next(iter(self._verdicts.values())).prefers_second)
        super().__init__(model, parameters)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the engine that has computed."""
        return self._fast.name if self._other is None else self._other.name

    @property
    def forwards_per_pull_back(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the engine that has computed."""
        return 0 if self._other is None else self._other.forwards_per_pull_back

    def at(
        self,
        inputs: Inputs,
        perturbation: Mapping[str, Factor] | None = None,
        *,
        previous: Point | None = None,
        consume: bool = False,
        perturbed_passes: int = 2,
    ) -> Point:
        """Evaluate the model at w, or at w + eps_i, by the engine that is exact for the way it goes."""
        if self._other is not None:
            return self._other.at(inputs, perturbation, previous=previous, consume=consume)
        if previous is not None:
            return self._fast.at(inputs, perturbation, previous=previous, consume=consume, perturbed_passes=perturbed_passes)
        state, reason = RandomState.capture(devices_of(self.model)), ""
        for _ in range(2):
            point, trace = None, None
            try:
                point = self._fast.at(inputs, perturbation, consume=consume, perturbed_passes=perturbed_passes)
                trace = point.tape.trace
            except UnsupportedParameterUse as unsupported:
                reason = str(unsupported)
            verdict = self._verdict(inputs, trace)
            if point is not None and verdict is not None and verdict.fast and trace == verdict.trace:
                if verdict.prefers_second == self._fast.prefers_second:
                    return point
                self._fast.prefers_second = verdict.prefers_second
                state.restore()
                continue
            reason = reason or (verdict.reason if verdict is not None else "") or "it goes another way at every call"
            break
        state.restore()
        self._other = _slower(self.model, self.parameters, inputs, self._known, self._signature, self._asked, reason)
        return self._other.at(inputs, perturbation, consume=consume)

    def _verdict(self, inputs: Inputs, trace: int | None) -> Verdict | None:
        """Return the verdict on this way, proven anew if it is new; None where nothing can be told of it."""
        if trace is None:
            return None
        if trace not in self._verdicts:
            verdict = prove(FastEngine(self.model, self.parameters), inputs)
            if verdict is None:
                return None
            self._verdicts[trace] = verdict
        return self._verdicts[trace]


def _refuse_compiled(model: nn.Module) -> None:
    """Refuse compiled modules: their graphs hide the functions that receive a parameter."""
    for module in model.modules():
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(
                f"A module compiled by torch.compile ({type(getattr(module, '_orig_mod', module)).__name__})",
                expected="the module itself: per-example passes look at its layers",
                remedy="Pass the original module to the method; compiled and original share their weights.",
            )


def _refuse_cached_weights(model: nn.Module) -> None:
    """Refuse a step inside torch's cache of reparametrised weights: they would stay at w."""
    if parametrize._cache_enabled and any(parametrize.is_parametrized(module) for module in model.modules()):
        raise InputError(
            "A per-example pass inside torch.nn.utils.parametrize.cached()",
            expected="weights that are computed anew from the parameters: at w + eps_i they are others",
            remedy="Leave the block for the step; evaluation may stay inside.",
        )


def _refuse_shared_memory(parameters: dict[str, nn.Parameter]) -> None:
    """Refuse parameters that cannot have an eps of their own: each is a variable of the loss."""
    places: dict[int, str] = {}
    for name, parameter in parameters.items():
        if parameter.numel() == 0:
            continue
        other = places.setdefault(parameter.data_ptr(), name)
        repeats = any(step == 0 and size > 1 for step, size in zip(parameter.stride(), parameter.shape, strict=True))
        if other != name or repeats:
            raise InputError(
                f"The parameter {name!r} has entries in one place of memory" if repeats else
                f"The parameters {other!r} and {name!r} lie in the same memory",
                expected="memory of its own for every entry of every parameter",
                remedy="Make it contiguous with .clone()." if repeats else f"Tie them as one parameter, or clone {name!r}.",
            )  # fmt: skip


def _signature(model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Inputs) -> Hashable:
    values = [inputs] if isinstance(inputs, Tensor) else inputs.values() if isinstance(inputs, dict) else inputs
    shapes = tuple((tuple(value.shape), value.dtype) if isinstance(value, Tensor) else repr(value) for value in values)
    modes = tuple((type(module), module.training, module._compiled_call_impl is None) for module in modules_of(model))
    device = next(iter(parameters.values())).device.type
    own = tuple((id(parameter), bool(parameter._backward_hooks)) for parameter in parameters.values())
    return shapes, modes, own, torch.is_autocast_enabled(device)
