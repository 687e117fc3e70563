"""One model with one batch on one device: what every contender is handed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noisesam.bench.models import BenchModel

RHO = 0.01
"""Radius of every perturbation; it has no influence on what a step costs."""

Step = Callable[[], Tensor | None]
"""One step: leaves the gradient in `.grad`, or returns the norm of every example's gradient."""


@dataclass(frozen=True)
class Case:
    """Model, batch and precision. Contenders leave the weights as they find them."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    precision: str = "float32"

    @classmethod
    def of(cls, model: BenchModel, *, device: str = "cpu", precision: str = "float32", quick: bool = False) -> Case:
        """Build the model and its batch on the device."""
        inputs, targets = model.inputs(model.batch_on(device, quick=quick), quick=quick)
        return cls(model.build(quick).to(device), inputs.to(device), targets.to(device), precision)

    @property
    def size(self) -> int:
        """Number of examples."""
        return self.targets.shape[0]

    @property
    def device(self) -> str:
        """Kind of device."""
        return self.targets.device.type

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the model is evaluated."""
        return torch.autocast(self.device, dtype=torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def synchronise(self) -> None:
        """Wait until the device has done what it was asked to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()
