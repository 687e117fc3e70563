"""Opacus, the established library for per-example gradients: materialised ones, and ghost norms without them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.bench.case import Case, Step
from noisesam.bench.readable import register_samplers, with_separate_attention, with_token_modules
from noisesam.errors import InputError, MissingExtraError


class ContenderNote(UserWarning):
    """What a contender does to the model before it is timed; written into the notes."""


def opacus_gradients(case: Case, *, functorch: bool = False) -> Step:
    """GradSampleModule: the gradient of every example in `grad_sample`, and from it the norms.

    `functorch` has Opacus compute by vmap also where it has a rule of its own for the layer.
    """
    wrapped = _wrapped(case, ghost=False, functorch=functorch)

    def step() -> Tensor:
        _backward(wrapped, case, "grad_sample")
        return torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in wrapped.parameters()]).norm(dim=0)

    return _cleaned(step, wrapped)


def opacus_ghost(case: Case, *, functorch: bool = False) -> Step:
    """GradSampleModuleFastGradientClipping: norms from activations and output gradients where a layer has a rule."""
    wrapped = _wrapped(case, ghost=True, functorch=functorch)

    def step() -> Tensor:
        _backward(wrapped, case, "_norm_sample")
        return wrapped.get_norm_sample()

    return _cleaned(step, wrapped)


def _wrapped(case: Case, *, ghost: bool, functorch: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from opacus.grad_sample import GradSampleModule
            from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
            from opacus.validators import ModuleValidator
        except ImportError as error:
            raise MissingExtraError(
                "Opacus is not installed",
                expected="Opacus, as an outside contender of the bench",
                remedy="pip install 'noisesam[test]', or leave its contenders out",
            ) from error
        register_samplers()
        model, notes = _readable(case, ModuleValidator.fix)
        wrapped = (GradSampleModuleFastGradientClipping if ghost else GradSampleModule)(model, force_functorch=functorch)
    for note in notes:
        warnings.warn(note, ContenderNote, stacklevel=2)
    return wrapped


def _readable(case: Case, fix: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, list[str]]:
    """Return a copy of the model in which Opacus sees every parameter, and what had to be exchanged for that."""
    model, notes = copy.deepcopy(case.model), []  # a copy: Opacus puts hooks on the model that it is handed
    if with_token_modules(model):
        notes.append("class token and positions are applied by modules: Opacus sees no parameter that a module only holds")
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        # Opacus 1.6.0's own attention mixes up heads and positions where the examples come first.
        own = fix(model).to(case.parameters[0])
        if _gives_the_same(own, case):
            return own, notes
        with_separate_attention(model)
        notes.append("attention as four nn.Linear: Opacus's own, in the place of nn.MultiheadAttention, gives other outputs")
    if notes and not _gives_the_same(model, case):
        raise InputError(
            "The modules that Opacus can read give other outputs than those in whose place they stand",
            expected="the outputs of the model that is timed",
        )
    return model, notes


def _gives_the_same(model: nn.Module, case: Case) -> bool:
    with torch.no_grad(), case.autocast():
        found, expected = model(case.inputs).double(), case.model(case.inputs).double()
    # float32 rounds in another order; what is wrong is of order one.
    bound = 0.05 if case.precision == "bfloat16" else 1e-4
    return bool((found - expected).norm() <= bound * expected.norm())


def _backward(wrapped: Any, case: Case, kept: str) -> None:
    with case.autocast():
        logits = wrapped(case.inputs)
    torch.nn.functional.cross_entropy(logits.float() if logits.dtype != torch.float64 else logits, case.targets).backward()
    missed = [name for name, p in wrapped._module.named_parameters() if getattr(p, kept, None) is None]
    if missed:
        raise InputError(f"Opacus does not see the gradients of {', '.join(missed)}", expected="every example's gradient")


def _cleaned(step: Step, wrapped: Any) -> Step:
    """Drop gradients before and after: a step must not add to those of the step before."""

    def whole() -> Tensor | None:
        found = step()
        for parameter in wrapped.parameters():
            parameter.grad = parameter.grad_sample = parameter._norm_sample = None
        return found

    return whole
