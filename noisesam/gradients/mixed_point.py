"""The one equation: the mean over examples of J_i(theta_J)^T r_i(theta_L), each theta at w or at w + eps_i."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.accumulation import add_part, joined
from noisesam.gradients.batch import Batch, ChunkSize, Inputs, check_chunk_size, devices_of, trainable
from noisesam.gradients.engine.selection import engine_for
from noisesam.gradients.factors import Factor
from noisesam.gradients.losses import Loss, PerExampleLoss, resolve, stable_norm
from noisesam.gradients.memory import check_memory_budget, chunk_for
from noisesam.gradients.module_state import buffers_kept
from noisesam.gradients.per_example_gradient import PerExampleGradient
from noisesam.gradients.points import Engine, Point, begun_again
from noisesam.gradients.randomness import RandomState

POINTS = ("w", "perturbed")
_Row = tuple[Tensor, Tensor, Tensor, Tensor]
"""Logits, losses and gradient norms at w, and losses at w + eps_i."""


@dataclass(frozen=True)
class MixedPointResult:
    """The step of a per-example method, with what was met on the way (one row per example, detached, at w)."""

    gradient: dict[str, Tensor]
    logits: Tensor
    losses: Float[Tensor, " n"]
    gradient_norms: Float[Tensor, " n"]
    perturbed_losses: Float[Tensor, " n"]
    forward_examples: int
    backward_examples: int


def mixed_point_gradient(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    rho: float,
    jacobian_at: str,
    residual_at: str,
    loss: str | PerExampleLoss = "cross_entropy",
    engine: str = "auto",
    chunk_size: ChunkSize = None,
    memory_budget: int | None = None,
) -> dict[str, Tensor]:
    """Return the mean over the batch of J_i(theta_J)^T r_i(theta_L).

    eps_i = rho grad l_i(w) / ||grad l_i(w)|| over all trainable parameters, held constant. With both thetas at w this is
    the gradient of SGD; both perturbed is 1-SAM; only the Jacobian is J-SAM; only the residual (logit scale) is L-SAM.

    Args:
        model: Any module whose examples do not mix; its weights are not touched.
        inputs: (n, ...), or a tuple or dict of such tensors.
        targets: (n,) labels, or what the loss takes.
        rho: Radius of the perturbation, in the units of the weights.
        jacobian_at: "w" or "perturbed": where the network Jacobian is taken.
        residual_at: "w" or "perturbed": where the residual is taken.
        loss: A name or a callable (logits, targets) -> losses (n,).
        engine: "auto", "fast" or "reference"; all are exact.
        chunk_size: Examples per chunk, or "auto" for as many as fit into `memory_budget`; changes memory and speed, not the
            result beyond rounding.
        memory_budget: Bytes that "auto" may use; a stated number, so that bits repeat: without one, two GiB on a CPU and
            eight on an accelerator.

    Returns:
        The gradient by parameter name, of the parameters' shapes; parameters that play no part are absent.

    Raises:
        InputError: The arguments, the batch or the model do not fit.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
        >>> gradient = mixed_point_gradient(model, x, y, rho=0.1, jacobian_at="perturbed", residual_at="w")
        >>> gradient["weight"].shape
        torch.Size([2, 3])

    References:
        Baek, Kolter, Raghunathan 2024, "Why is SAM Robust to Label Noise?", arXiv 2405.03676; docs/mechanism.md.
    """
    for name, value in (("jacobian_at", jacobian_at), ("residual_at", residual_at)):
        if value not in POINTS:
            raise InputError(f"{name}={value!r}", expected="'w' or 'perturbed'")
    parameters = trainable(model)
    batch = Batch.of(inputs, targets)
    result = mixed_point_step(
        model,
        batch,
        resolve(loss),
        dict.fromkeys(parameters, check_rho(rho)),
        jacobian_perturbed=jacobian_at == "perturbed",
        residual_perturbed=residual_at == "perturbed",
        engine=engine,
        chunk_size=check_chunk_size(chunk_size),
        memory_budget=check_memory_budget(memory_budget),
    )
    return result.gradient


def check_rho(rho: float) -> float:
    """Refuse a radius that is not a finite number of at least zero."""
    try:
        radius = float("nan") if isinstance(rho, bool) or not isinstance(rho, Real) else float(rho)
    except OverflowError:  # a whole number beyond any float
        radius = float("inf")
    if not 0 <= radius < float("inf"):
        remedy = "Type a small length, such as rho=0.05; rho=0 perturbs nothing."
        raise InputError(f"rho={rho!r}", expected="a finite radius of at least 0, in the units of the weights", remedy=remedy)
    return radius


@torch.enable_grad()
def mixed_point_step(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    radii: Mapping[str, float],
    *,
    jacobian_perturbed: bool,
    residual_perturbed: bool,
    engine: str = "auto",
    chunk_size: ChunkSize = None,
    memory_budget: int | None = None,
    scale: float = 1.0,
) -> MixedPointResult:
    """Compute the equation chunk by chunk; `scale` multiplies the gradient (loss scaling), never eps."""
    gradient: dict[str, Tensor] = {}
    rows: list[_Row] = []
    perturbs, repeated = jacobian_perturbed or residual_perturbed, 0
    devices = devices_of(model)
    for _, chunk in batch.chunks(chunk_for(model, batch.inputs, chunk_size, memory_budget)):
        chosen = engine_for(model, chunk.inputs, engine)
        state = RandomState.capture(devices)
        if perturbs:
            of_chunk = partial(
                _perturbed_step, radii=radii, jacobian=jacobian_perturbed, residual=residual_perturbed, state=state
            )
        else:
            of_chunk = _plain_step
        summed, row = begun_again(state, partial(of_chunk, chosen, chunk, loss, scale / batch.size))
        repeated += chunk.size * (2 if perturbs else 1) * chosen.forwards_per_pull_back
        rows.append(row)
        add_part(gradient, summed)
    logits, losses, norms, perturbed_losses = (joined(column) for column in zip(*rows, strict=True))
    passes = 2 * batch.size if perturbs else batch.size
    return MixedPointResult(gradient, logits, losses, norms, perturbed_losses, passes + repeated, passes)


def _plain_step(engine: Engine, chunk: Batch, loss: Loss, share: float) -> tuple[dict[str, Tensor], _Row]:
    """Return the gradient at w, summed and times the share, with what was met."""
    point = engine.at(chunk.inputs, perturbed_passes=0)
    losses = loss(point.logits, chunk.targets)
    summed, each = point.both_gradients(loss.residual(point.logits, chunk.targets) * share, perturbed_passes=0)
    norms = each.norm() / abs(share) if each.factors and share else torch.zeros_like(losses)
    return summed, (point.logits, losses, norms, losses)


def _perturbed_step(
    engine: Engine,
    chunk: Batch,
    loss: Loss,
    share: float,
    *,
    radii: Mapping[str, float],
    jacobian: bool,
    residual: bool,
    state: RandomState,
) -> tuple[dict[str, Tensor], _Row]:
    """Return the gradient with Jacobian, residual or both at w + eps_i, summed and times the share, with what was met."""
    perturbed_passes = 2 if jacobian else 1  # L-SAM's perturbed outputs are not pulled back
    point = engine.at(chunk.inputs, perturbed_passes=perturbed_passes)
    at_w = loss.residual(point.logits, chunk.targets)
    losses = loss(point.logits, chunk.targets)
    # L-SAM pulls the perturbed residual back through the graph at w, so that graph is kept.
    eps, norms = _perturbation_and_norm(point, at_w, radii, keep=not jacobian, perturbed_passes=perturbed_passes)
    state_after = RandomState.capture(state.of)
    state.restore()
    # Without a graph where only the residual is wanted and a model takes no notice of that.
    with buffers_kept(engine.model):
        with torch.set_grad_enabled(jacobian or not engine.proven_without_gradients):
            # The tensors of the gradient become those of w + eps_i: they have served.
            moved = engine.at(chunk.inputs, eps, previous=point, consume=True)
        del eps  # what is left of it goes as the reverse pass goes on
        state_after.restore()
        cotangent = loss.residual(moved.logits, chunk.targets) if residual else at_w
        summed = (moved if jacobian else point).sum_gradient(cotangent * share)
    return summed, (point.logits, losses, norms, loss(moved.logits, chunk.targets))


def gradient_and_norm(
    point: Point, residual: Tensor, *, keep: bool = False, perturbed_passes: int = 2
) -> tuple[tuple[PerExampleGradient, Tensor], Float[Tensor, " n"]]:
    """Return J_i^T r_i / ||r_i|| with its norm (the Jacobian gain), and ||J_i^T r_i||.

    The unit residual is pulled back, since the squares of a fitted example's gradient underflow in float32 where the
    direction, all that eps_i needs, is well determined.
    """
    size = stable_norm(residual)
    unit = residual / torch.where(size > 0, size, 1).view(-1, *[1] * (residual.dim() - 1))
    gradient = point.per_example_gradient(unit, keep=keep, perturbed_passes=perturbed_passes)
    gain = gradient.norm() if gradient.factors else torch.zeros_like(size)
    return (gradient, gain), gain * size


def _perturbation_and_norm(
    point: Point, residual: Tensor, radii: Mapping[str, float], *, keep: bool, perturbed_passes: int
) -> tuple[dict[str, Factor], Float[Tensor, " n"]]:
    """Return eps_i and ||g_i||; what of the gradient is copied into eps_i is gone with this call."""
    (gradient, gain), norms = gradient_and_norm(point, residual, keep=keep, perturbed_passes=perturbed_passes)
    return gradient.perturbation(radii, gain), norms
