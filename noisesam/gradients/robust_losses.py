"""Losses that resist wrong labels by themselves, with closed-form residuals: what a method is to be compared with.

Each is written through the cross-entropy c = -log p_y, which is accurate at any margin, and its residual r = p - onehot(y),
whose entry of the observed class is minus the sum of the others. p_y = exp(-c) then loses no digit where an example is
fitted, and none where it is far from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from noisesam.errors import InputError
from noisesam.gradients.losses import Loss, accurate, check_class_logits, softmax_cross_entropy, softmax_residual


class RobustLoss(Loss):
    """A loss of class logits (n, classes) with integer labels (n,), named with its parameters."""

    parameters: ClassVar[Mapping[str, str]] = {}
    """What each parameter means; the defaults stand in the signature."""

    def check(self, logits: Tensor, targets: Tensor) -> None:
        """Refuse anything but (n, classes) logits with class labels of shape (n,)."""
        check_class_logits(logits, targets, self.name)


class GeneralisedCrossEntropy(RobustLoss):
    """Generalised cross-entropy l = (1 - p_y^q) / q with residual p_y^q (p - onehot(y)).

    The residual is that of cross-entropy, weighted by p_y^q: an example that the model disagrees with counts less. q -> 0
    gives cross-entropy; q = 1 is half the mean absolute error. The truncated form of the paper is not included.

    Args:
        q: In (0, 1]; 0.7 is the paper's.

    Raises:
        InputError: q outside its range.

    Example:
        >>> loss = GeneralisedCrossEntropy(q=0.5)
        >>> loss(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))  # p_y = 1/4
        tensor([1.])

    References:
        Zhang, Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
        arXiv 1805.07836.
    """

    name = "generalised_cross_entropy"
    parameters = {"q": "exponent in (0, 1]: towards 0 cross-entropy, 1 half the mean absolute error"}  # noqa: RUF012

    def __init__(self, q: float = 0.7) -> None:
        self.q = _checked("q", q, lambda value: 0 < value <= 1, "a number above 0 and at most 1")

    def __call__(self, logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss of every example."""
        self.check(logits, targets)
        return _one_minus_power(softmax_cross_entropy(logits, targets), self.q) / self.q

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return p_y^q (p - onehot(y)), accurate at any margin at which p_y^q is a number of the precision."""
        self.check(logits, targets)
        weight = torch.exp(-self.q * softmax_cross_entropy(logits.detach(), targets))
        return weight.unsqueeze(1) * softmax_residual(logits, targets)


class MeanAbsoluteError(RobustLoss):
    """Mean absolute error of the probabilities l = ||onehot(y) - p||_1 = 2 (1 - p_y), residual 2 p_y (p - onehot(y)).

    The sum over all classes of the loss is the same for every output, which makes its minimiser the same with symmetric
    noise below (K - 1)/K as without. It trains slowly: an example that the model disagrees with has next to no gradient.

    Example:
        >>> MeanAbsoluteError()(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([2]))
        tensor([1.5000])

    References:
        Ghosh, Kumar, Sastry 2017, "Robust Loss Functions under Label Noise for Deep Neural Networks", arXiv 1712.09482.
    """

    name = "mean_absolute_error"

    def __call__(self, logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss of every example, between 0 and 2."""
        self.check(logits, targets)
        return 2 * _one_minus_power(softmax_cross_entropy(logits, targets), 1.0)

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return 2 p_y (p - onehot(y)), accurate at any margin at which p_y is a number of the precision."""
        self.check(logits, targets)
        weight = 2 * torch.exp(-softmax_cross_entropy(logits.detach(), targets))
        return weight.unsqueeze(1) * softmax_residual(logits, targets)


class LabelSmoothing(RobustLoss):
    """Cross-entropy against the label mixed with the uniform distribution over all K classes.

    l = -sum_k t_k log p_k with t = (1 - epsilon) onehot(y) + epsilon / K, and residual p - t. It is smallest at a finite
    margin, log(1 + K (1 - epsilon)/epsilon), where the residual is zero.

    Args:
        epsilon: In [0, 1); 0.1 is the paper's, 0 is cross-entropy.

    Raises:
        InputError: epsilon outside its range.

    Example:
        >>> LabelSmoothing(epsilon=0.2).residual(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
        tensor([[-0.4000,  0.4000]])

    References:
        Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016, "Rethinking the Inception Architecture for Computer Vision",
        arXiv 1512.00567; under label noise: Lukasik, Bhojanapalli, Menon, Kumar 2020, "Does label smoothing mitigate label
        noise?", arXiv 2003.02819.
    """

    name = "label_smoothing"
    parameters = {"epsilon": "share of the uniform distribution in the target, in [0, 1)"}  # noqa: RUF012

    def __init__(self, epsilon: float = 0.1) -> None:
        self.epsilon = _checked("epsilon", epsilon, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")

    def __call__(self, logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss of every example, in nats."""
        self.check(logits, targets)
        cross_entropy = softmax_cross_entropy(logits, targets)
        # -log p_k = -log p_y + f_y - f_k: only the observed class needs a logarithm, and that one is accurate.
        logits = accurate(logits)
        margins = logits.gather(1, targets.unsqueeze(1)) - logits
        return cross_entropy + self.epsilon * margins.mean(1)

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return p - t, its entry of the observed class as minus the sum of the others."""
        self.check(logits, targets)
        logits = accurate(logits.detach())
        observed = targets.unsqueeze(1)
        others = (logits.softmax(1) - self.epsilon / logits.shape[1]).scatter(1, observed, 0.0)
        return others.scatter(1, observed, -others.sum(1, keepdim=True))


class LogitNormPenalty(RobustLoss):
    """Cross-entropy with a penalty on the logits' norm: l = -log p_y + lam ||f||^2, residual p - onehot(y) + 2 lam f.

    Another way to keep the outputs small than by the last layer and its input, as `reg-sgd` does. Dividing the logits by
    their norm (Wei et al. 2022) and clipping that norm (Wei et al. 2023) are other means to the same end.

    Args:
        lam: Coefficient, at least 0; 0 is cross-entropy. The default is this project's own.

    Raises:
        InputError: lam outside its range.

    Example:
        >>> LogitNormPenalty(lam=0.5).residual(torch.tensor([[1.0, 1.0]]), torch.tensor([0]))
        tensor([[0.5000, 1.5000]])

    References:
        Shafahi, Ghiasi, Huang, Goldstein 2019, "Label Smoothing and Logit Squeezing: A Replacement for Adversarial
        Training?", arXiv 1910.11585; Wei et al. 2022, "Mitigating Neural Network Overconfidence with Logit Normalization",
        arXiv 2205.09310; Wei et al. 2023, "Mitigating Memorization of Noisy Labels by Clipping the Model Prediction",
        arXiv 2212.04055.
    """

    name = "logit_norm_penalty"
    parameters = {"lam": "coefficient of the squared norm of the logits, at least 0"}  # noqa: RUF012

    def __init__(self, lam: float = 0.01) -> None:
        self.lam = _checked("lam", lam, lambda value: value >= 0, "a finite number of at least 0")

    def __call__(self, logits: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """Return the loss of every example, in nats."""
        self.check(logits, targets)
        return softmax_cross_entropy(logits, targets) + self.lam * accurate(logits).square().sum(1)

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return p - onehot(y) + 2 lam f; its entries do not sum to zero."""
        self.check(logits, targets)
        return softmax_residual(logits, targets) + 2 * self.lam * accurate(logits.detach())


ROBUST: tuple[type[RobustLoss], ...] = (GeneralisedCrossEntropy, MeanAbsoluteError, LabelSmoothing, LogitNormPenalty)


def _one_minus_power(cross_entropy: Tensor, q: float) -> Tensor:
    """Return 1 - p_y^q; infinite where the cross-entropy is, so that a model that diverges is not taken for a bounded loss."""
    return torch.where(cross_entropy.isfinite(), -torch.expm1(-q * cross_entropy), cross_entropy)


def _checked(name: str, value: object, allowed: Callable[[float], bool], expected: str) -> float:
    """Return the parameter as a number, or refuse it."""
    number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    if not math.isfinite(number) or not allowed(number):
        raise InputError(f"{name}={value!r}", expected=expected)
    return number
