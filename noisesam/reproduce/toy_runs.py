"""The runs of the toy: its models, trained together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.special import ndtr
from torch import Tensor

from noisesam import data, methods, models
from noisesam.data import NoisyDataset
from noisesam.methods.base import Method
from noisesam.reproduce.toy import (
    COLUMNS,
    LINEAR,
    METHODS,
    RATIO_STEPS,
    STEPS,
    TWO_LAYER,
    TWO_LAYER_METHODS,
    ZERO_START,
)
from noisesam.training.batches import BatchOrder
from noisesam.training.seeding import seed_for
from noisesam.training.stacked import Stack, train_stacked

EXAMPLES, DIMENSION = 500, 1000
SIGNAL, NOISE_STD, NOISE_RATE = 4.0, 1.0, 0.4
LR, INIT_STD = 0.02, 0.03
WIDTH, BATCH, TWO_LAYER_LR, EPOCHS = 64, 50, 0.01, 20


def train_set(seed: int) -> NoisyDataset:
    """Return the training examples of a seed, 40% of them with a flipped label."""
    clean = data.gaussian(EXAMPLES, DIMENSION, signal=SIGNAL, noise_std=NOISE_STD, seed=seed_for(seed, "data"))
    return data.add_label_noise(clean, "symmetric", NOISE_RATE, seed=seed_for(seed, "noise"))


def linear_method(name: str, rho: float, seed: int, *, init_std: float) -> Method:
    """Return a method with its linear model of this seed."""
    return _method(name, rho, "linear", seed_for(seed, "init"), init_std=init_std)


def two_layer_method(name: str, rho: float, seed: int) -> Method:
    """Return a method with its two-layer linear model of this seed."""
    return _method(name, rho, "two-layer-linear", seed_for(seed, "init"), width=WIDTH, init_std="fan_in")


def linear(seeds: Sequence[int], *, steps: int = STEPS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train the linear toy from both starts; the two share their data, so they are one stack.

    Returns:
        The tables `accuracy` and `ratios`.
    """
    starts = ((LINEAR, INIT_STD), (ZERO_START, 0.0))
    columns = [(setting, name, rho) for setting, _ in starts for name, rho in METHODS]
    stack = [[linear_method(name, rho, seed, init_std=std) for _, std in starts for name, rho in METHODS] for seed in seeds]
    measured = _Measured(
        columns, seeds, [train_set(seed) for seed in seeds], ratio_steps=[step for step in RATIO_STEPS if step <= steps]
    )
    with one_thread():
        train_stacked(stack, measured.data, steps=steps, lr=LR, observe=measured.observe)
    return measured.accuracy(steps_per_epoch=1), measured.ratios()


def two_layer(seeds: Sequence[int], *, epochs: int = EPOCHS) -> pd.DataFrame:
    """Train the two-layer linear toy and return its table `accuracy`."""
    columns = [(TWO_LAYER, name, rho) for name, rho in TWO_LAYER_METHODS]
    stack = [[two_layer_method(name, rho, seed) for name, rho in TWO_LAYER_METHODS] for seed in seeds]
    orders = [BatchOrder(EXAMPLES, BATCH, seed_for(seed, "batching")) for seed in seeds]
    each = orders[0].steps_per_epoch
    measured = _Measured(columns, seeds, [train_set(seed) for seed in seeds], every=each)
    with one_thread():
        train_stacked(stack, measured.data, steps=epochs * each, lr=TWO_LAYER_LR, orders=orders, observe=measured.observe)
    return measured.accuracy(steps_per_epoch=each)


def exact_test_accuracy(weight: Float[Tensor, "*axes d"]) -> Float[np.ndarray, "*axes"]:
    """Return Phi(B w_1 / (gamma ||w_{2:d}||)) of many linear models; 1/2 for the zero model, whose logit is always zero."""
    signal = SIGNAL * weight[..., 0].double().numpy()
    spread = NOISE_STD * torch.linalg.vector_norm(weight[..., 1:].double(), dim=-1).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, ndtr(signal / spread), 0.5 * (1 + np.sign(signal)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: sums are then formed in one order, whatever the machine does besides."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Measured:
    """What is written down along a stack's way."""

    def __init__(
        self,
        columns: Sequence[tuple[str, str, float]],
        seeds: Sequence[int],
        datasets: list[NoisyDataset],
        *,
        every: int = 1,
        ratio_steps: Sequence[int] = (),
    ) -> None:
        self.columns, self.seeds, self.data = columns, seeds, datasets
        self._every, self._ratio_steps = every, ratio_steps
        self._labels = torch.stack([dataset.labels for dataset in datasets]).bool()[:, None]
        noisy = [dataset.is_noisy for dataset in datasets]
        assert all(mask is not None for mask in noisy)
        self._noisy = torch.stack([mask for mask in noisy if mask is not None])[:, None].double()
        self._steps: list[int] = []
        self._accuracy: list[np.ndarray] = []
        self._norms: list[np.ndarray] = []

    def observe(self, step: int, stack: Stack) -> None:
        """Write down accuracies, and at the steps asked for the group means of both kinds of norms."""
        if step % self._every == 0:
            right = ((stack.logits()[..., 0] > 0) == self._labels).double()
            clean, noisy = self._means(right)
            self._steps.append(step)
            self._accuracy.append(np.stack([exact_test_accuracy(_slope(stack)), right.mean(-1).numpy(), clean, noisy]))
        if step in self._ratio_steps:
            norms = (stack.step_gradient_norm(), stack.gradient_norm())
            self._norms.append(np.stack([group for kind in norms for group in self._means(kind.double())]))

    def accuracy(self, *, steps_per_epoch: int) -> pd.DataFrame:
        """Return the table `accuracy`, run after run."""
        frame = self._table(
            self._steps, np.stack(self._accuracy), ["test_accuracy", "train_accuracy", "clean_fitted", "noisy_fitted"]
        )
        frame["epoch"] = frame["step"] / steps_per_epoch
        return frame[[*COLUMNS["accuracy"]]]

    def ratios(self) -> pd.DataFrame:
        """Return the table `ratios`."""
        names = [f"{kind}_{group}" for kind in ("step_term", "plain_gradient") for group in ("clean", "noisy")]
        frame = self._table(self._ratio_steps, np.stack(self._norms), names)
        for kind in ("step_term", "plain_gradient"):
            frame[f"{kind}_ratio"] = frame[f"{kind}_clean"] / frame[f"{kind}_noisy"]
        return frame[[*COLUMNS["ratios"]]]

    def _means(self, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the means over the clean and over the noisy examples, (groups, members)."""
        clean = 1 - self._noisy
        return (values * clean).sum(-1).div(clean.sum(-1)).numpy(), (values * self._noisy).sum(-1).div(
            self._noisy.sum(-1)
        ).numpy()

    def _table(self, steps: Sequence[int], values: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
        """Lay values of shape (steps, names, groups, members) out as rows, sorted by member, group and step."""
        rows = values.transpose(3, 2, 0, 1).reshape(-1, len(names))
        frame = pd.DataFrame(
            [(*column, seed, step) for column in self.columns for seed in self.seeds for step in steps],
            columns=["setting", "method", "rho", "seed", "step"],
        )
        return pd.concat([frame, pd.DataFrame(rows, columns=[*names])], axis=1)


def _slope(stack: Stack) -> Float[Tensor, "groups members d"]:
    """Return w of the linear function that every model is."""
    first, *rest = stack.weights.values()
    return (rest[0] @ first if rest else first).squeeze(2)


def _method(name: str, rho: float, model: str, seed: int, **options: object) -> Method:
    network = models.make(model, input_shape=(DIMENSION,), classes=1, bias=False, seed=seed, **options)
    return methods.make(name, network, loss="logistic", **({} if math.isnan(rho) else {"rho": rho}))
