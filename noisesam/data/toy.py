"""Gaussian toy data on which the clean test accuracy of a linear classifier has a closed form."""

from __future__ import annotations

import math
from numbers import Integral, Real

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr
from torch import Tensor

from noisesam.data.dataset import NoisyDataset
from noisesam.errors import InputError


def gaussian(
    n: int,
    dim: int,
    *,
    signal: float | int,
    noise_std: float | int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> NoisyDataset:
    r"""Draw two classes that differ in the mean of the first coordinate only.

    With y uniform in {-1, +1} and z ~ N(0, I_{d-1}),

        x = y [B, gamma z],   label = (y + 1) / 2,

    so that t = 2 label - 1 is the target of a one-logit model. The labels are clean; add noise with `add_label_noise`.

    Args:
        n: Number of examples.
        dim: Input dimension d, at least 1.
        signal: B, the first coordinate's size.
        noise_std: gamma, the standard deviation of the other coordinates.
        seed: Seed of the draw; another seed gives an independent sample, for example a test set.
        dtype: Floating type of the inputs. The draw is the same for every type.

    Returns:
        A data set with inputs of shape (n, dim) and labels in {0, 1}.

    Raises:
        InputError: For sizes below 1, a negative noise_std or values that are not finite.

    Example:
        >>> data = gaussian(4, 3, signal=2.0, noise_std=1.0, seed=0)
        >>> bool(((2 * data.labels - 1) * data.inputs[:, 0] == 2.0).all())
        True

    References:
        Baek, Kolter, Raghunathan (2024). Why is SAM Robust to Label Noise? arXiv 2405.03676.
    """
    for field, value in (("n", n), ("dim", dim)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise InputError(
                f"{field} = {value!r}",
                expected="a whole number of at least 1",
                remedy=f"Use a positive {field}, without quotes",
            )
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed = {seed!r}", expected="a whole number of at least 0", remedy="Type for example seed=0")
    _check_parameters(signal, noise_std)
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, size=n)
    y = 2.0 * labels - 1.0
    z = generator.standard_normal((n, dim - 1))
    x = y[:, None] * np.concatenate([np.full((n, 1), float(signal)), noise_std * z], axis=1)
    observed = torch.from_numpy(labels)
    return NoisyDataset(
        torch.from_numpy(x).to(dtype), observed, clean_labels=observed.clone(), classes=("-1", "+1"), name="gaussian"
    )


def gaussian_test_accuracy(
    weight: Float[Tensor, " d"] | Float[Tensor, "1 d"] | Float[np.ndarray, " d"],
    *,
    signal: float | int,
    noise_std: float | int,
) -> float:
    r"""Return the exact accuracy of f(x) = <w, x> on fresh, clean `gaussian` data.

    y f(x) = B w_1 + gamma <w_{2:d}, z> is normal, and the prediction is right where it is positive:

        P(y f(x) > 0) = Phi( B w_1 / (gamma ||w_{2:d}||) ).

    Where the denominator is zero the sign of B w_1 decides: 1, 0, or 1/2 for a logit that is always zero.

    Args:
        weight: Weight vector w of shape (d,), or (1, d) as a linear layer holds it; no bias.
        signal: B of the data.
        noise_std: gamma of the data.

    Returns:
        The accuracy, a fraction in [0, 1].

    Raises:
        InputError: For parameters or weights that are not finite, or a negative noise_std.

    Example:
        >>> round(gaussian_test_accuracy(torch.tensor([1.0, 1.0]), signal=1.0, noise_std=1.0), 4)
        0.8413

    References:
        Baek, Kolter, Raghunathan (2024). Why is SAM Robust to Label Noise? arXiv 2405.03676 (the data; the formula follows
        from it directly).
    """
    _check_parameters(signal, noise_std)
    w = weight.detach().cpu().double().numpy() if isinstance(weight, Tensor) else np.asarray(weight, np.float64)
    w = w.reshape(-1)
    if not np.isfinite(w).all():
        raise InputError(
            "a weight with NaN or infinite entries", expected="finite entries", remedy="Check that training converged"
        )
    mean = signal * float(w[0])
    spread = noise_std * float(np.linalg.norm(w[1:]))
    if spread == 0.0:
        return 0.5 * (1.0 + (mean > 0) - (mean < 0))
    return float(ndtr(mean / spread))


def _check_parameters(signal: object, noise_std: object) -> None:
    """Check B and gamma."""
    if not isinstance(signal, Real) or not math.isfinite(signal):
        raise InputError(f"signal = {signal!r}", expected="a finite number", remedy="Use for example signal=4.0")
    if not isinstance(noise_std, Real) or not (math.isfinite(noise_std) and float(noise_std) >= 0):
        raise InputError(
            f"noise_std = {noise_std!r}", expected="a finite number of 0 or above", remedy="Use for example noise_std=1.0"
        )
