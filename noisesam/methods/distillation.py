"""A pull towards earlier outputs: the Kullback-Leibler divergence from a teacher's softened distribution."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from noisesam.gradients.losses import accurate


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(z/tau) over classes, or sigmoid(z/tau) where there is one logit."""
    z = accurate(logits) / temperature
    return torch.sigmoid(z) if z.dim() == 1 or z.shape[1] == 1 else torch.softmax(z, 1)


def divergence_residual(
    logits: Tensor, teacher: Tensor, known: Bool[Tensor, " b"], *, lam: float, temperature: float, tau_squared: bool
) -> Tensor:
    """Return lam d/dz KL(p(teacher/tau) || p(z/tau)) for every example, times tau^2 if asked for; 0 without a teacher.

    The derivative is (p(z/tau) - p(teacher/tau))/tau.
    """
    factor = lam * (temperature if tau_squared else 1 / temperature)
    teacher = torch.where(known.view(-1, *[1] * (teacher.dim() - 1)), accurate(teacher), 0)
    difference = softened(logits, temperature) - softened(teacher.to(logits.device), temperature)
    return factor * difference * known.to(difference.dtype).view(-1, *[1] * (difference.dim() - 1))
