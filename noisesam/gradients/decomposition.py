"""Per-example gradients split into logit scale (residual) and network Jacobian, at w and at w + eps_i."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noisesam.errors import InputError, unknown_name
from noisesam.gradients.batch import Batch, ChunkSize, Inputs, check_chunk_size, devices_of, trainable
from noisesam.gradients.engine.selection import engine_for
from noisesam.gradients.factors import Dense, Factor, Shared
from noisesam.gradients.losses import Loss, PerExampleLoss, resolve, stable_norm
from noisesam.gradients.memory import check_memory_budget, chunk_for
from noisesam.gradients.mixed_point import check_rho, gradient_and_norm
from noisesam.gradients.module_state import modules_kept
from noisesam.gradients.points import Engine, begun_again
from noisesam.gradients.randomness import RandomState


@dataclass(frozen=True)
class GradientDecomposition:
    """The parts of the per-example gradients, one row per example, detached.

    gradient_norm = jacobian_gain * residual_norm. The fields from `perturbed_losses` on are None unless a perturbation
    was asked for. A residual of exactly zero makes the two weights NaN.
    """

    logits: Tensor
    losses: Float[Tensor, " n"]
    """l_i(w), nats."""
    residual: Tensor
    """r_i(w) = dl_i/df_i, of the logits' shape."""
    residual_norm: Float[Tensor, " n"]
    """||r_i(w)||, the logit scale."""
    gradient_norm: Float[Tensor, " n"]
    """||J_i(w)^T r_i(w)|| over all trainable parameters."""
    jacobian_gain: Float[Tensor, " n"]
    """gradient_norm / residual_norm."""
    perturbed_losses: Float[Tensor, " n"] | None = None
    """l_i(w + eps_i)."""
    perturbed_residual: Tensor | None = None
    """r_i(w + eps_i)."""
    perturbed_residual_norm: Float[Tensor, " n"] | None = None
    """||r_i(w + eps_i)||."""
    perturbed_gradient_norm: Float[Tensor, " n"] | None = None
    """||J_i(w + eps_i)^T r_i(w + eps_i)||: the step term of 1-SAM (or of SAM for a shared eps)."""
    logit_perturbed_gradient_norm: Float[Tensor, " n"] | None = None
    """||J_i(w)^T r_i(w + eps_i)||: the step term of L-SAM."""
    jacobian_perturbed_gradient_norm: Float[Tensor, " n"] | None = None
    """||J_i(w + eps_i)^T r_i(w)||: the step term of J-SAM."""
    logit_weight: Float[Tensor, " n"] | None = None
    """||r_i(w + eps_i)|| / ||r_i(w)||."""
    jacobian_weight: Float[Tensor, " n"] | None = None
    """||J_i(w + eps_i)^T r_i(w)|| / ||J_i(w)^T r_i(w)||."""


def decompose(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    loss: str | PerExampleLoss = "cross_entropy",
    rho: float | None = None,
    perturbation: Mapping[str, Tensor] | None = None,
    engine: str = "auto",
    chunk_size: ChunkSize = "auto",
    memory_budget: int | None = None,
) -> GradientDecomposition:
    """Split the gradient of every example into logit scale and Jacobian.

    At w: g_i = J_i(w)^T r_i(w), its norm and the norm of r_i. With `rho`, also at w + eps_i, eps_i = rho g_i/||g_i||; with
    `perturbation`, at w plus what is given. Nothing is averaged; norms are global l2 norms over all trainable parameters.

    Args:
        model: Any module whose examples do not mix; weights, buffers and gradients are not touched.
        inputs: (n, ...), or a tuple or dict of such tensors.
        targets: (n,) labels, or what the loss takes.
        loss: A name or a callable (logits, targets) -> losses (n,).
        rho: Radius of the per-example perturbation, in the units of the weights.
        perturbation: eps by parameter name, of the parameters' shapes (one for all examples) or (n, *shape) (one each).
        engine: "auto", "fast" or "reference"; all are exact.
        chunk_size: Examples per chunk, None for all at once, or "auto" for as many as fit into `memory_budget`; changes memory
            and speed, not the result beyond rounding.
        memory_budget: Bytes that "auto" may use; a stated number, so that bits repeat: without one, two GiB on a CPU and
            eight on an accelerator.

    Returns:
        One row per example; losses in nats.

    Raises:
        InputError: The arguments, the batch or the model do not fit.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> parts = decompose(model, torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), rho=0.1)
        >>> torch.allclose(parts.jacobian_weight, torch.ones(4))  # a linear model has the same Jacobian everywhere
        True

    References:
        Baek, Kolter, Raghunathan 2024, "Why is SAM Robust to Label Noise?", arXiv 2405.03676; docs/mechanism.md.
    """
    if rho is not None and perturbation is not None:
        raise InputError("Both rho and perturbation", expected="one of them", remedy="Leave one out.")
    radii = None if rho is None else dict.fromkeys(trainable(model), check_rho(rho))
    with modules_kept(model):
        return decompose_batch(
            model,
            Batch.of(inputs, targets),
            resolve(loss),
            radii,
            perturbation,
            engine=engine,
            chunk_size=check_chunk_size(chunk_size),
            memory_budget=check_memory_budget(memory_budget),
        )


def decompose_batch(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    radii: Mapping[str, float] | None = None,
    perturbation: Mapping[str, Tensor] | None = None,
    *,
    engine: str = "auto",
    chunk_size: ChunkSize = None,
    memory_budget: int | None = None,
) -> GradientDecomposition:
    """Decompose a checked batch; each parameter may have its own radius."""
    given = None if perturbation is None else _check_perturbation(perturbation, trainable(model), batch.size)
    devices = devices_of(model)
    parts = []
    with torch.enable_grad():
        for rows, chunk in batch.chunks(chunk_for(model, batch.inputs, chunk_size, memory_budget)):
            chosen = engine_for(model, chunk.inputs, engine)
            state = RandomState.capture(devices)
            own = None if given is None else _rows(given, rows)
            parts.append(begun_again(state, partial(_decompose_chunk, chosen, chunk, loss, radii, own, state)))
    return GradientDecomposition(**{name: torch.cat([part[name].detach() for part in parts]) for name in parts[0]})


def _decompose_chunk(
    engine: Engine,
    chunk: Batch,
    loss: Loss,
    radii: Mapping[str, float] | None,
    given: Mapping[str, Factor] | None,
    state: RandomState,
) -> dict[str, Tensor]:
    """Return the columns of a decomposition: without a perturbation those at w alone."""
    perturbs = radii is not None or given is not None
    point = engine.at(chunk.inputs, perturbed_passes=2 if perturbs else 0)
    residual = loss.residual(point.logits, chunk.targets)
    residual_norm = stable_norm(residual)
    (gradient, gain), gradient_norm = gradient_and_norm(
        point, residual, keep=perturbs, perturbed_passes=0 if radii is None else 2
    )
    columns: dict[str, Tensor] = {
        "logits": point.logits,
        "losses": loss(point.logits, chunk.targets),
        "residual": residual,
        "residual_norm": residual_norm,
        "gradient_norm": gradient_norm,
        "jacobian_gain": torch.where(residual_norm > 0, gain, torch.nan),
    }
    if not perturbs:
        return columns
    eps = gradient.perturbation(radii, gain) if radii is not None else given
    after = RandomState.capture(state.of)
    state.restore()
    moved = engine.at(chunk.inputs, eps, previous=point)
    after.restore()
    perturbed = loss.residual(moved.logits, chunk.targets)
    perturbed_norm = stable_norm(perturbed)
    _, at_perturbed = gradient_and_norm(moved, perturbed, keep=True, perturbed_passes=0)
    _, jacobian_moved = gradient_and_norm(moved, residual, perturbed_passes=0)
    _, logit_moved = gradient_and_norm(point, perturbed, perturbed_passes=0)
    return columns | {
        "perturbed_losses": loss(moved.logits, chunk.targets),
        "perturbed_residual": perturbed,
        "perturbed_residual_norm": perturbed_norm,
        "perturbed_gradient_norm": at_perturbed,
        "logit_perturbed_gradient_norm": logit_moved,
        "jacobian_perturbed_gradient_norm": jacobian_moved,
        "logit_weight": _ratio(perturbed_norm, residual_norm),
        "jacobian_weight": _ratio(jacobian_moved, gradient_norm),
    }


def per_example_gradients(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    loss: str | PerExampleLoss = "cross_entropy",
    chunk_size: ChunkSize = None,
    memory_budget: int | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of every example's loss, materialised: row i is J_i(w)^T r_i(w) (no mean is taken).

    The memory is n times the parameters; for norms alone use `decompose`.

    Args:
        model: Any module whose examples do not mix.
        inputs: (n, ...), or a tuple or dict of such tensors.
        targets: (n,) labels, or what the loss takes.
        loss: A name or a callable (logits, targets) -> losses (n,).
        chunk_size: Examples per chunk, or "auto" for as many as fit into `memory_budget`; changes memory and speed, not the
            result beyond rounding.
        memory_budget: Bytes that "auto" may use; a stated number, so that bits repeat: without one, two GiB on a CPU and
            eight on an accelerator.

    Returns:
        (n, *shape) by parameter name; parameters that play no part are absent.

    Raises:
        InputError: The arguments, the batch or the model do not fit.

    Example:
        >>> import torch
        >>> gradients = per_example_gradients(torch.nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> gradients["weight"].shape
        torch.Size([4, 2, 3])
    """
    resolved = resolve(loss)
    batch = Batch.of(inputs, targets)
    found: dict[str, list[Tensor]] = {}
    with torch.enable_grad():
        for _, chunk in batch.chunks(
            chunk_for(model, batch.inputs, check_chunk_size(chunk_size), check_memory_budget(memory_budget))
        ):
            point = engine_for(model, chunk.inputs, "reference").at(chunk.inputs)
            gradient = point.per_example_gradient(resolved.residual(point.logits, chunk.targets))
            for name, factor in gradient.factors.items():
                found.setdefault(name, []).append(factor.dense())
    return {name: torch.cat(pieces) for name, pieces in found.items()}


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above / below, NaN where nothing stands below: a vanished residual has no weight."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1), torch.nan)


def _check_perturbation(
    perturbation: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], examples: int
) -> dict[str, Factor]:
    factors: dict[str, Factor] = {}
    for name, eps in perturbation.items():
        if name not in parameters:
            raise unknown_name("parameter", name, parameters)
        shape = parameters[name].shape
        if eps.shape == shape:
            factors[name] = Shared(eps.detach(), examples)
        elif eps.shape == (examples, *shape):
            factors[name] = Dense(eps.detach())
        else:
            raise InputError(
                f"A perturbation of shape {tuple(eps.shape)} for the parameter {name!r}",
                expected=f"{tuple(shape)} (shared) or {(examples, *shape)} (one per example)",
            )
    return factors


def _rows(given: Mapping[str, Factor], rows: slice) -> dict[str, Factor]:
    count = rows.stop - rows.start
    return {
        name: Shared(factor.tensor, count) if isinstance(factor, Shared) else Dense(factor.dense()[rows])
        for name, factor in given.items()
    }
