"""Which engine computes for this model and batch: the fast one where it is proven, else the reference where it sees all."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noisesam.errors import InputError, unknown_name
from noisesam.gradients.batch import Inputs, trainable
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.mixing import refuse_batch_normalisation
from noisesam.gradients.engine.proof import prove
from noisesam.gradients.engine.proven import ProvenEngine
from noisesam.gradients.engine.recheck import is_due
from noisesam.gradients.engine.slower import Known, slower
from noisesam.gradients.points import Engine
from noisesam.gradients.reference import ReferenceEngine
from noisesam.gradients.traversal import modules_of

ENGINES = ("auto", "fast", "reference")

_KNOWN: weakref.WeakKeyDictionary[nn.Module, Known] = weakref.WeakKeyDictionary()


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
    known = _KNOWN.setdefault(model, Known())
    signature = _signature(model, parameters, inputs)
    verdicts = known.verdicts.setdefault(signature, {})
    batch = known.batches[signature] = known.batches.get(signature, 0) + 1
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
        return ProvenEngine(model, parameters, known, signature, engine)
    if is_due(batch):
        prove(FastEngine(model, parameters), inputs)  # which refuses a model that mixes the examples of this batch
    return slower(model, parameters, inputs, known, signature, engine, verdict.reason)


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
    modes = tuple(
        (
            type(module),
            module.training,
            module._compiled_call_impl is None,
            *module._backward_hooks,  # each has a number that none has had before
            "before",
            *module._backward_pre_hooks,
        )
        for module in modules_of(model)
    )
    device = next(iter(parameters.values())).device.type
    own = tuple((id(parameter), parameter.dtype, *(parameter._backward_hooks or ())) for parameter in parameters.values())
    return shapes, modes, own, torch.is_autocast_enabled(device)


def _backward_hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    return module._backward_hooks, module._backward_pre_hooks
