"""Data with labels that may be wrong: toy data, benchmark readers, a user's own files, and every kind of label noise.

Noise is drawn with numpy generators from an explicit seed; inputs and labels come out as torch tensors.
"""

from __future__ import annotations

from noisesam.data.dataset import NoisyDataset
from noisesam.data.loading import load, names
from noisesam.data.noise import add_label_noise, noise_kinds
from noisesam.data.record import NoiseRecord
from noisesam.data.standardisation import standardise
from noisesam.data.toy import gaussian, gaussian_test_accuracy
from noisesam.data.transitions import transition_matrix

__all__ = [
    "NoiseRecord",
    "NoisyDataset",
    "add_label_noise",
    "gaussian",
    "gaussian_test_accuracy",
    "load",
    "names",
    "noise_kinds",
    "standardise",
    "transition_matrix",
]
