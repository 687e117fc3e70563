"""The configuration of a training run: frozen dataclasses, one section each, no torch import."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """Which examples: `name` as in `noisesam.data.load`, or a path to an .npz file, a .csv file or a folder."""

    name: str = "digits"
    train_size: int | None = None
    """Seeded random subset of the training split; None keeps all."""
    test_size: int | None = None
    validation_size: int = 0
    """Seeded hold-out of the (noisy) training examples, used for every selection."""
    standardise: bool = False
    """Subtract the channel mean and divide by the channel standard deviation of the training images."""


@dataclass(frozen=True)
class NoiseConfig:
    """Label noise on the training split; kinds as in `noisesam.data.add_label_noise`, or "none"."""

    kind: str = "none"
    rate: float = 0.0
    source: str | None = None
    """For kind "human": aggregate, random1, random2, random3 or worst (CIFAR-10N), noisy (CIFAR-100N); None takes the last."""


@dataclass(frozen=True)
class ModelConfig:
    """`name` and `options` as in `noisesam.models.make`."""

    name: str = "mlp"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodConfig:
    """`name`, `loss` and hyper-parameters as in `noisesam.methods.make`; in TOML they stand flat beside the name."""

    name: str = "sgd"
    loss: str = "cross_entropy"
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerConfig:
    """The base optimizer that takes the method's gradient. Weight decay is decoupled from the perturbation."""

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    schedule: str = "constant"
    """"constant" or "cosine" (to zero at the last step)."""


@dataclass(frozen=True)
class TrainingConfig:
    """Length, batches and arithmetic of the run."""

    epochs: int = 10
    batch_size: int = 64
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    """CPU threads of this run; None leaves torch's own setting."""
    augmentation: str = "none"
    """"none", or "crop-flip": every image of a training step is cut at random out of itself with 4 pixels of zeros around, and
    mirrored with probability 1/2. Every method sees one and the same image in all passes of its step; evaluation, probes and
    everything else that is tracked at fixed weights see the plain images (`noisesam.training.augmentation`)."""
    precision: str = "float32"
    """Arithmetic of the training steps: "float32", "tf32" (products on NVIDIA's tensor cores) or "bfloat16" (torch.autocast).
    Weights, optimizer and checkpoints keep `dtype`; evaluation and tracking are always computed in it, without TF32
    (`noisesam.training.precision`)."""


@dataclass(frozen=True)
class TrackingConfig:
    """What is measured and when; tracking never changes the run."""

    evaluate_every: int = 1
    """Epochs between evaluations of accuracy and loss on train, validation and test."""
    probe_size: int = 256
    """Seeded training examples whose per-example quantities are followed (all, if there are fewer); 0 switches them off."""
    probe_every: int = 5
    """Epochs between probes, after the first `probe_dense` epochs, in which every epoch is probed."""
    probe_dense: int = 5
    rho: float | None = None
    """Radius of the probe's logit and Jacobian weights; None takes the method's rho, or 0.1 if it has none."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints are the points from which a killed run resumes; parts of the tables are flushed with them."""

    every: int = 10
    """Epochs between checkpoints; the first (step 0) and the last are always written."""
    every_steps: int | None = None
    """Steps between checkpoints, inside an epoch too; None uses `every` alone."""
    keep: int = 2
    """How many of the newest checkpoints are kept; 0 keeps all."""


@dataclass(frozen=True)
class Config:
    """A whole run. Two runs with equal `Config` are the same run; `seed` is the root of every generator."""

    data: DataConfig = field(default_factory=DataConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 0
