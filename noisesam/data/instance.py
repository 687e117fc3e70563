"""Instance-dependent label noise: which wrong label an example gets depends on its input."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.special import softmax
from scipy.stats import truncnorm

from noisesam.data.dataset import NoisyDataset
from noisesam.data.standardisation import standardise

FLIP_RATE_STD = 0.1


def label_probabilities(
    dataset: NoisyDataset, rate: float | int, generator: np.random.Generator
) -> Float64[np.ndarray, "n classes"]:
    r"""Return each example's own law of the observed label.

    With x_i the standardised, flattened input of an example of true class y,

        q_i ~ N(rate, 0.1^2) truncated to [0, 1],    W_y ~ N(0, 1)^{d x K},
        p_i[y] = 1 - q_i,    p_i[j] = q_i softmax_{j != y}(x_i W_y)_j.

    The mean of q_i is the rate only where the truncation is symmetric about it, and the labels are drawn, so the realised rate
    differs from the requested one (about 0.08 above it near 0, and below it near 1). A rate of exactly 0 is no noise.
    Projections are drawn for all classes in turn, present or not.

    Args:
        dataset: The examples with their true labels; images or features.
        rate: Mean of the flip rates before truncation.
        generator: Source of the flip rates and projections.

    Returns:
        Probabilities of shape (n, K), each row summing to 1.

    Raises:
        InputError: For inputs that cannot be standardised.

    References:
        Xia, Liu, Han, Wang, Gong, Liu, Niu, Tao, Sugiyama (2020). Part-dependent Label Noise: Towards Instance-dependent Label
        Noise. arXiv 2006.07836.
    """
    assert dataset.clean_labels is not None
    clean, classes = dataset.clean_labels.cpu().numpy(), dataset.num_classes
    if rate == 0 or len(clean) == 0:
        return np.eye(classes)[clean]
    inputs = standardise(dataset)[0].inputs.flatten(1).cpu().double().numpy()
    flip = _flip_rates(len(clean), rate, generator)
    probabilities = np.zeros((len(clean), classes))
    for label in range(classes):
        projection = generator.standard_normal((inputs.shape[1], classes))
        rows = np.flatnonzero(clean == label)
        probabilities[rows] = _rows(inputs[rows] @ projection, label, flip[rows])
    return probabilities


def mean_matrix(
    probabilities: Float64[np.ndarray, "n classes"], clean: Int64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, "classes classes"], Float64[np.ndarray, " classes"]]:
    """Return the sum of the rows of each true class, and how many there are."""
    classes = probabilities.shape[1]
    sums = np.zeros((classes, classes))
    np.add.at(sums, clean, probabilities)
    return sums, np.bincount(clean, minlength=classes).astype(np.float64)


def _flip_rates(n: int, rate: float | int, generator: np.random.Generator) -> Float64[np.ndarray, " n"]:
    """Draw q_i from the truncated normal."""
    low, high = -rate / FLIP_RATE_STD, (1.0 - rate) / FLIP_RATE_STD
    return np.asarray(truncnorm.rvs(low, high, loc=rate, scale=FLIP_RATE_STD, size=n, random_state=generator))


def _rows(
    scores: Float[np.ndarray, "m classes"], label: int, flip: Float[np.ndarray, " m"]
) -> Float64[np.ndarray, "m classes"]:
    """Spread each flip rate over the other classes by a softmax of the scores."""
    scores[:, label] = -np.inf
    rows = flip[:, None] * softmax(scores, axis=1)
    rows[:, label] = 1.0 - flip
    return rows
