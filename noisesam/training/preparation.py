"""From a configuration to what a run is made of: data, model, method, optimizer and the order of the batches."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from noisesam.data import NoisyDataset, add_label_noise, load, standardise
from noisesam.data.loading import own_path
from noisesam.data.validation import MissingSplitError
from noisesam.errors import ConfigurationError
from noisesam.training.augmentation import CropFlip, refuse_no_images
from noisesam.training.batches import BatchOrder
from noisesam.training.config import Config, OptimizerConfig
from noisesam.training.precision import refuse_missing_precision, step_arithmetic
from noisesam.training.seeding import seed_for


@dataclass(frozen=True)
class Splits:
    """The examples of one run. `probe` are training examples; `validation` is as noisy as the training set.

    `validation` is None if none is held out, `test` if the user's own data has none.
    """

    train: NoisyDataset
    validation: NoisyDataset | None
    test: NoisyDataset | None
    probe: NoisyDataset | None

    def evaluated(self) -> dict[str, NoisyDataset]:
        """Return the splits that are evaluated, by name."""
        splits = {"train": self.train, "val": self.validation, "test": self.test}
        return {name: dataset for name, dataset in splits.items() if dataset is not None}


@dataclass(frozen=True)
class StepBatch:
    """What one training step is taken on."""

    inputs: Tensor
    """As this epoch shows them: augmented where the configuration says so."""
    labels: Tensor
    index: Tensor
    noisy: Tensor | None
    """Which labels are wrong, None where the true ones are unknown."""


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs before its first step."""

    config: Config
    splits: Splits
    model: nn.Module
    method: Any
    optimizer: torch.optim.Optimizer
    order: BatchOrder
    augmentation: CropFlip | None = None

    def batch(self, step: int) -> StepBatch:
        """Return what a step is taken on, a function of the configuration and the step alone.

        Args:
            step: Step, counted from 0 over the whole run.

        Returns:
            The examples on the device of the training set. All passes that a method makes in this step are made on it.

        Example:
            >>> from noisesam.training import load_config
            >>> prepared = prepare(load_config({"data": {"train_size": 10}, "training": {"augmentation": "crop-flip"}}))
            >>> batch, plain = prepared.batch(0), prepared.splits.train
            >>> rows = prepared.order.batch(0)
            >>> torch.equal(batch.index, plain.index[rows]), torch.equal(batch.inputs, plain.inputs[rows])
            (True, False)
        """
        train = self.splits.train
        rows = torch.from_numpy(self.order.batch(step)).to(train.labels.device)
        inputs = train.inputs[rows]
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, rows, self.order.epoch_of(step))
        return StepBatch(
            inputs, train.labels[rows], train.index[rows], None if train.is_noisy is None else train.is_noisy[rows]
        )

    def arithmetic(self) -> AbstractContextManager[None]:
        """Return the block in which a step's gradient is computed: `training.precision`, see `step_arithmetic`."""
        return step_arithmetic(self.config.training.precision, self.splits.train.inputs.device)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.training.epochs * self.order.steps_per_epoch


def prepare(config: Config, *, data_root: str | Path | None = None) -> Prepared:
    """Build data, model, method, optimizer and batch order of a configuration; each from its own seed.

    Args:
        config: a configuration from `load_config`, whose names have been checked by `validate`.
        data_root: folder that holds the data set, see `noisesam.data.load`.

    Returns:
        What `fit` trains; equal configurations give equal weights, labels and batches.

    Raises:
        ConfigurationError: sizes that the data set does not have, a device or a precision that this machine does not have, or
            an augmentation of what is no image.
        InputError: what data, models or methods refuse.

    Example:
        >>> from noisesam.training import load_config
        >>> prepared = prepare(load_config({"data": {"train_size": 100, "validation_size": 20}}, ["training.batch_size=32"]))
        >>> len(prepared.splits.train), len(prepared.splits.validation), prepared.order.steps_per_epoch
        (80, 20, 3)
    """
    splits = prepare_data(config, data_root=data_root)
    augmentation = None
    if config.training.augmentation != "none":
        refuse_no_images(splits.train)
        augmentation = CropFlip(splits.train.index, seed_for(config.seed, "augmentation"))
    model = make_model(config, tuple(splits.train.inputs.shape[1:]), splits.train.num_classes)
    return Prepared(
        config=config,
        splits=splits,
        model=model,
        method=_make_method(config, model),
        optimizer=_make_optimizer(config.optimizer, model),
        order=BatchOrder(len(splits.train), config.training.batch_size, seed_for(config.seed, "batching")),
        augmentation=augmentation,
    )


def prepare_data(config: Config, *, data_root: str | Path | None = None) -> Splits:
    """Load the examples, put the noise on the training labels, and only then hold out the validation examples.

    So the validation labels are as noisy as the training labels, and no selection sees a true label.

    Args:
        config: a configuration from `load_config`.
        data_root: folder that holds the data set, see `noisesam.data.load`.

    Returns:
        The splits, on the configuration's device and in its dtype.

    Raises:
        ConfigurationError: sizes that the data set does not have.
        InputError: what the data set's reader or the label noise refuses.

    Example:
        >>> from noisesam.training import load_config
        >>> splits = prepare_data(load_config({"noise": {"kind": "symmetric", "rate": 0.4}, "data": {"validation_size": 200}}))
        >>> len(splits.train), len(splits.validation), int(splits.train.is_noisy.sum() + splits.validation.is_noisy.sum())
        (1000, 200, 480)
    """
    data, noise = config.data, config.noise
    name, device = data.name, _device(config.training.device)
    refuse_missing_precision(config.training.precision, device)
    train = _first(load(name, split="train", root=data_root), data.train_size, config.seed, "data.train_size")
    test = _test(config, data_root)
    if noise.kind != "none":
        seed, rate = seed_for(config.seed, "noise"), None if noise.kind == "human" else noise.rate
        train = add_label_noise(train, noise.kind, rate, seed=seed, source=noise.source, root=data_root)
    validation = None
    if data.validation_size:
        if data.validation_size >= len(train):
            raise ConfigurationError(
                f"data.validation_size = {data.validation_size} with {len(train)} training examples in {name!r}",
                expected="a validation hold-out smaller than the training set it is taken from",
            )
        train, validation = train.split(data.validation_size, seed=seed_for(config.seed, "validation"))
    sets = {"train": train, "test": test, "validation": validation}
    present = {split: dataset for split, dataset in sets.items() if dataset is not None}
    if data.standardise:
        present = dict(zip(present, standardise(*present.values()), strict=True))
    dtype = getattr(torch, config.training.dtype)
    present = {split: dataset.to(device=device, dtype=dtype) for split, dataset in present.items()}
    train = present["train"]
    probe_size = min(config.tracking.probe_size, len(train))
    probe = train.subset(_draw(len(train), probe_size, seed_for(config.seed, "probe"))) if probe_size else None
    return Splits(train=train, test=present.get("test"), validation=present.get("validation"), probe=probe)


def _test(config: Config, data_root: str | Path | None) -> NoisyDataset | None:
    """Return the test examples; None, which is said, for a user's own data without any."""
    data = config.data
    try:
        test = load(data.name, split="test", root=data_root)
    except MissingSplitError as error:
        if own_path(data.name) is None or data.test_size is not None:
            raise
        warnings.warn(f"{error.given}: nothing is tested, and the run has no test accuracy.", UserWarning, stacklevel=4)
        return None
    return _first(test, data.test_size, config.seed, "data.test_size")


def make_model(config: Config, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the configuration's model with its initial weights; the logistic loss asks for one logit.

    Args:
        config: a configuration from `load_config`.
        input_shape: shape of one example.
        classes: classes of the data set.

    Returns:
        The model on the configuration's device, in its dtype.

    Raises:
        ConfigurationError: the logistic loss with more than two classes, or an absent device.
        InputError: what `noisesam.models.make` refuses.
    """
    from noisesam import models

    if config.method.loss == "logistic":
        if classes != 2:
            raise ConfigurationError(
                f'method.loss = "logistic" with {classes} classes in {config.data.name!r}',
                expected="two classes",
                remedy='Use method.loss = "cross_entropy".',
            )
        classes = 1
    seed = seed_for(config.seed, "init")
    model = models.make(config.model.name, input_shape=input_shape, classes=classes, seed=seed, **config.model.options)
    return model.to(device=_device(config.training.device), dtype=getattr(torch, config.training.dtype))


def _make_method(config: Config, model: nn.Module) -> Any:
    """Build the method; one that draws gets its seed from the root seed unless the configuration names one."""
    from noisesam import methods

    hyperparameters = dict(config.method.hyperparameters)
    if "seed" in methods.describe(config.method.name).hyperparameters:
        hyperparameters.setdefault("seed", seed_for(config.seed, "method"))
    for name in methods.registry.method_class(config.method.name).spans_training:
        hyperparameters.setdefault(name, config.training.epochs)
    return methods.make(config.method.name, model, loss=config.method.loss, **hyperparameters)


def _make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the base optimizer."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
    )


def _first(dataset: NoisyDataset, size: int | None, seed: int, key: str) -> NoisyDataset:
    """Return a seeded random subset of a split, or all of it."""
    if size is None:
        return dataset
    if size > len(dataset):
        raise ConfigurationError(
            f"{key} = {size} with {len(dataset)} examples in {dataset.name!r}",
            expected=f"at most {len(dataset)}",
            remedy=f"Leave {key} out to take all of them.",
        )
    return dataset.subset(_draw(len(dataset), size, seed_for(seed, "data")))


def _draw(size: int, count: int, seed: int) -> np.ndarray:
    """Draw positions without replacement, in ascending order; of two counts the smaller draw is part of the larger."""
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])


def _device(name: str) -> torch.device:
    """Return the device, if this machine has it."""
    device = torch.device(name)
    if device.type != "cpu":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ConfigurationError(
                f"training.device = {name!r}, but torch {torch.__version__} finds no such device here",
                expected="a device of this machine",
                remedy='Use training.device = "cpu".',
            ) from error
    return device
