"""The handwritten digits that come with scikit-learn: real images without a download."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from noisesam.data.dataset import NoisyDataset

TRAIN_SIZE = 1200
"""The other 597 of the 1,797 images are the test split."""

_SPLIT_SEED = 0


def load_digits(split: str) -> NoisyDataset:
    """Return 8 x 8 images of the digits 0 to 9 with pixels in [0, 1].

    scikit-learn's order runs through writers, so the split is one fixed permutation and does not depend on any run's seed.

    Args:
        split: "train" (1,200 images) or "test" (597 images).

    Returns:
        A data set with inputs of shape (n, 1, 8, 8), float32; `index` is the position in scikit-learn's array.

    Example:
        >>> tuple(load_digits("test").inputs.shape)
        (597, 1, 8, 8)

    References:
        Alpaydin, Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning Repository.
    """
    from sklearn import datasets

    bunch = cast("Any", datasets.load_digits())
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(bunch.target))
    rows = np.sort(order[:TRAIN_SIZE] if split == "train" else order[TRAIN_SIZE:])
    images = torch.from_numpy((bunch.images[rows] / 16.0).astype(np.float32)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target[rows].astype(np.int64))
    return NoisyDataset(
        images,
        labels,
        clean_labels=labels.clone(),
        index=torch.from_numpy(rows.astype(np.int64)),
        classes=tuple(str(k) for k in range(10)),
        name="digits",
    )
