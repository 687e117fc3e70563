"""Opacus, the established library for per-example gradients: materialised ones, and ghost norms without them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.bench.case import Case, Step
from noisesam.errors import InputError, MissingExtraError


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
        # Opacus puts hooks on the model it is handed, and replaces attention, which it cannot read, by its own.
        model = copy.deepcopy(case.model)
        if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
            model = ModuleValidator.fix(model).to(case.inputs.device)
            _check_replaced(model, case)
        return (GradSampleModuleFastGradientClipping if ghost else GradSampleModule)(model, force_functorch=functorch)


def _check_replaced(model: nn.Module, case: Case) -> None:
    with torch.no_grad(), case.autocast():
        found, expected = model(case.inputs), case.model(case.inputs)
    if not torch.allclose(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max())):
        raise InputError(
            "Opacus's own attention, in the place of nn.MultiheadAttention, gives other outputs",
            expected="the outputs of the model that is timed",
        )


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
