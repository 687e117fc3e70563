"""Which engine a published architecture runs on, as it is, and how far 1-SAM is there from a loop over examples.

Of every architecture one step of 1-SAM is taken twice: by `noisesam` with engine="auto", and by plain autograd, one example
alone with the model's own weights moved to w + eps_i and back. All parameters are drawn away from where they begin, so that no
gate of zero hides a use; dropout is off and BatchNorm frozen. What rounding alone does to such a model is measured beside: the
loop once more with every weight moved by a unit in the last place.
"""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.bench.architecture_members import Batch, Member, members
from noisesam.bench.suite import machine_kind
from noisesam.errors import InputError, first_line
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.batch import logits_of, take
from noisesam.gradients.engine import engine_for
from noisesam.gradients.frozen_batch_norm import written_out
from noisesam.gradients.losses import softmax_residual
from noisesam.runs.manifest import hardware, now, software_versions, without_places

RHO = 0.1
AWAY = 0.02
"""Standard deviation of what is added to every parameter."""
Document = dict[str, Any]


def run_architectures(chosen: Sequence[Member] | None = None, told: Callable[[str], None] = lambda _: None) -> Document:
    """Look at every architecture in turn.

    Args:
        chosen: The members, all by default.
        told: Called with the name of each before it is looked at.

    Returns:
        A plain document: machine, versions, options and one row per architecture.

    Raises:
        MissingExtraError: timm or transformers is not installed.
    """
    rows = []
    for member in members() if chosen is None else chosen:
        told(member.name)
        rows.append({"library": member.library, "family": member.family, "model": member.name} | look_at(member))
    versions = software_versions()
    for package in ("timm", "transformers", "torchvision"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    machine = hardware()
    return {
        "created": now(), "machine_kind": machine_kind(machine), "machine": machine, "versions": versions,
        "options": {"rho": RHO, "away": AWAY, "threads": torch.get_num_threads()}, "architectures": rows,
    }  # fmt: skip


def look_at(member: Member) -> dict[str, Any]:
    """Return the engine that the architecture runs on and the distance to the loop, or why it is refused."""
    torch.manual_seed(0)
    row: dict[str, Any] = {"dtype": str(member.dtype).removeprefix("torch."), "engine": None, "error": None, "rounding": None}
    try:
        model, batch = member.make()
        model, batch = prepared(model, member.dtype), _in_type(batch, member.dtype)
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        row["inputs"] = [list(value.shape) for value in (batch[0].values() if isinstance(batch[0], dict) else [batch[0]])]
    except Exception as error:  # whatever another library says is the row's reason
        return row | {"reason": without_places(f"not made: {first_line(error)}")}
    try:
        found, engine, reason = one_step(model, batch)
    except (InputError, RuntimeError, TypeError, ValueError, IndexError) as error:
        return row | {"engine": "refused", "reason": without_places(first_line(error))}
    expected = loop(model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.finfo(parameter.dtype).eps)
    row |= {"engine": engine, "reason": without_places(reason), "error": distance(found, expected)}
    return row | {"rounding": distance(loop(model, batch), expected)}


def prepared(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the model in training mode, without dropout, with BatchNorm frozen, all parameters away from where they begin."""
    model = model.to(dtype).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(AWAY * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for name in ("p", "drop_prob", "drop_rate", "drop", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def one_step(model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], str, str]:
    """Return the gradient of 1-SAM, the engine that computed it, and what was said of that."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = mixed_point_gradient(model, *batch, rho=RHO, jacobian_at="perturbed", residual_at="perturbed")
        engine = engine_for(model, batch[0])
        engine.at(batch[0])
    words = [str(one.message) for one in said if " runs " in str(one.message)]
    return found, engine.name, "" if engine.name == "fast" or not words else words[0].split(": ", 1)[-1].split(". engine=")[0]


def loop(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the gradient of 1-SAM by plain autograd, one example after the other; nothing of the engines is used."""
    inputs, labels = batch
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for row in range(len(labels)):
        rows = slice(row, row + 1)
        gradient = _gradient(model, take(inputs, rows), labels[rows], weights)
        length = math.hypot(*(_length(one) for one in gradient.values()))
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        with torch.no_grad():
            for name, one in gradient.items():
                weights[name].add_(one / length if length else one, alpha=RHO)
        moved = _gradient(model, take(inputs, rows), labels[rows], weights)
        with torch.no_grad():
            for name, value in kept.items():
                weights[name].copy_(value)
        for name, one in moved.items():
            total[name] += one / len(labels)
    return total


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference over the norm of what is expected, over all parameters."""
    gap = math.hypot(*(_length(found[name] - value if name in found else value) for name, value in expected.items()))
    return gap / (math.hypot(*map(_length, expected.values())) or 1.0)


def _gradient(model: nn.Module, inputs: Any, labels: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with written_out(model):  # torch's own kernel reads some memory orders wrongly for a batch of one
        output = logits_of(model(**inputs) if isinstance(inputs, dict) else model(inputs))
    # In closed form: of an example that is fitted beyond 1e-16 autograd's residual at the observed class is zero.
    residual = softmax_residual(output, labels).to(output.dtype)
    found = torch.autograd.grad(output, list(weights.values()), residual, allow_unused=True)
    return {name: one for name, one in zip(weights, found, strict=True) if one is not None}


def _length(gradient: Tensor) -> float:
    """Return the norm, scaled by the largest entry: squares of a fitted example's gradient underflow."""
    largest = float(gradient.abs().max()) if gradient.numel() else 0.0
    return largest * float((gradient / largest).double().norm()) if 0 < largest < math.inf else largest


def _in_type(batch: Batch, dtype: torch.dtype) -> Batch:
    inputs, labels = batch
    return (inputs.to(dtype), labels) if isinstance(inputs, Tensor) else batch
