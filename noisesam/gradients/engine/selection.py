"""Which engine computes for this model and batch: the fast one where it is proven, else the reference where it sees all."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noisesam.errors import InputError, unknown_name
from noisesam.gradients.batch import Inputs, trainable
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.proof import Verdict, prove, refuse_batch_normalisation
from noisesam.gradients.engine.reference_proof import what_the_reference_misses
from noisesam.gradients.moved_weights import MovedWeightsEngine
from noisesam.gradients.points import Engine
from noisesam.gradients.reference import ReferenceEngine, Vectorisation
from noisesam.gradients.traversal import modules_of

ENGINES = ("auto", "fast", "reference")


class _Known:
    """What has been proven of one model."""

    def __init__(self) -> None:
        self.verdicts: dict[Hashable, Verdict] = {}
        self.vectorisation = Vectorisation()
        self.missed: dict[Hashable, str] = {}
        """What the reference engine misses, by signature; "" where it was compared with plain autograd and misses nothing."""
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
    verdict = known.verdicts.get(signature)
    fast = FastEngine(model, parameters)
    if verdict is None:
        # What is refused depends on nothing that the signature leaves out: once a signature is known, this is behind it.
        _refuse_compiled(model)
        _refuse_shared_memory(parameters)
        refuse_batch_normalisation(model)
        verdict = prove(fast, inputs)
        if verdict is None:
            return ReferenceEngine(model, parameters, known.vectorisation)  # not finite: nothing is known, nothing is lost
        known.verdicts[signature] = verdict
    if engine == "fast" and not verdict.fast:
        raise InputError(
            f"engine='fast' for {type(model).__name__}: {verdict.reason}",
            expected="a rule for every use of a trainable parameter",
            remedy="Use engine='auto', which falls back on an exact, slower engine.",
        )
    if verdict.fast and engine != "reference":
        fast.prefers_second = verdict.prefers_second
        return fast
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
            f"{type(model).__name__} runs on the exact reference engine, which is slower: {verdict.reason}. "
            "engine='reference' says so without this warning."
        )
    return ReferenceEngine(model, parameters, known.vectorisation)


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
    return shapes, modes, tuple(map(id, parameters.values())), torch.is_autocast_enabled(device)
