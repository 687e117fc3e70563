"""The tracker: a fixed probe set is measured by schedule while a model trains, and the training does not notice."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from noisesam.errors import InputError
from noisesam.runs.schema import EXAMPLES_COLUMNS, METRICS_COLUMNS
from noisesam.tracking.measurement import Measurement, trainable
from noisesam.tracking.quantities import QUANTITIES
from noisesam.tracking.schedule import Schedule, every_epochs
from noisesam.tracking.undisturbed import undisturbed

if TYPE_CHECKING:
    import pandas as pd

    from noisesam.data import NoisyDataset

DEFAULT_RHO = 0.1
"""Tracked radius where neither the tracker nor the method names one."""


class Tracker:
    """Follow gradient weights, logit and Jacobian weights, cosines, norms and sharpness on fixed examples.

    Measured is at fixed weights w, for every probe example i with eps_i = rho grad l_i / ||grad l_i||, what 1-SAM, L-SAM and
    J-SAM would give it, whatever the method that trains; the `step_` quantities are the method's own terms
    J_i(theta_J)^T r_i(theta_L) with the probe as one batch. Everything happens in evaluation mode (dropout off, BatchNorm on
    its running statistics), and weights, `.grad`, buffers, training flags and torch's generators are afterwards what they
    were.

    Args:
        model: the model in training; its weights at this moment count as the initialisation.
        probe: the tracked examples, at least one. Without `clean_labels` only the group `all` is written.
        method: the method that trains the model; None takes plain gradients for the `step_` quantities.
        loss: "cross_entropy", "logistic", "mse" or a callable (logits, targets) -> losses of shape (n,).
        rho: radius of the tracked perturbations; None takes the method's, or 0.1 if it has none.
        schedule: when to measure (see `noisesam.tracking.schedule`); None measures once per epoch.
        batch_size: probe examples per pass, for memory; None takes all at once. Changes no result.

    Raises:
        InputError: an empty probe, or a radius that is not positive.

    Example:
        >>> import torch, noisesam
        >>> probe = noisesam.data.gaussian(20, 5, signal=1.0, noise_std=1.0, seed=0)
        >>> probe = noisesam.data.add_label_noise(probe, "symmetric", 0.4, seed=0)
        >>> model = torch.nn.Linear(5, 1)
        >>> tracker = Tracker(model, probe, loss="logistic", rho=0.1)
        >>> tracker.observe(step=0, epoch=0), tracker.observe(step=1, epoch=0.5)
        (True, False)
        >>> tracker.metrics.query("metric == 'logit_weight'").group.tolist()
        ['all', 'clean', 'noisy']
    """

    def __init__(
        self,
        model: nn.Module,
        probe: NoisyDataset,
        *,
        method: Any = None,
        loss: Any = "cross_entropy",
        rho: float | int | None = None,
        schedule: Schedule | None = None,
        batch_size: int | None = None,
    ) -> None:
        from noisesam.data import NoisyDataset
        from noisesam.gradients import losses

        if not isinstance(model, nn.Module):
            raise InputError(
                f"A model of type {type(model).__name__}", expected="a torch.nn.Module", remedy="Pass the module itself."
            )
        if not isinstance(probe, NoisyDataset):
            raise InputError(
                f"A probe of type {type(probe).__name__}",
                expected="a noisesam.data.NoisyDataset",
                remedy="Wrap the tensors: NoisyDataset(inputs, labels, clean_labels=...).",
            )
        if len(probe) == 0:
            raise InputError("A probe without examples", expected="at least one example to follow")
        if rho is None:
            rho = float(getattr(method, "rho", None) or DEFAULT_RHO)
        if isinstance(rho, bool) or not isinstance(rho, Real) or not 0 < rho < float("inf"):
            raise InputError(f"rho = {rho!r}", expected="a positive, finite radius", remedy="Type for example rho=0.01.")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size = {batch_size}", expected="at least 1")
        parameters = trainable(model)
        self.model = model
        self.probe = probe.to(device=next(iter(parameters.values())).device)
        self.method = method
        self.loss = losses.resolve(loss)
        self.rho = float(rho)
        self.schedule = schedule or every_epochs()
        self.batch_size = batch_size or len(probe)
        # Frozen ones, too: they may be unfrozen later.
        self._initial = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._point: int | None = None
        self._rows: list[dict[str, Any]] = []
        self._examples: list[dict[str, np.ndarray]] = []
        self._taken = (0, 0)

    def observe(self, step: int, epoch: float | int) -> bool:
        """Measure if the schedule says so; call it as often as you like, once per step or once per epoch.

        Args:
            step: optimizer steps taken so far.
            epoch: passes over the training set so far.

        Returns:
            Whether a measurement was taken.
        """
        point = self.schedule(step, epoch)
        if point is None or point == self._point:
            return False
        self._point = point
        self.measure(step, epoch)
        return True

    def measure(self, step: int, epoch: float | int) -> None:
        """Measure now, whatever the schedule says.

        Args:
            step: optimizer steps taken so far.
            epoch: passes over the training set so far.
        """
        with undisturbed(self.model):
            measurement = Measurement(self.model, self.probe, self.loss, self.method, self.rho, self.batch_size, self._initial)
            rows = [
                {"step": step, "epoch": float(epoch), "split": "probe", "group": group, "metric": name, "value": value}
                for name, quantity in QUANTITIES.items()
                for group, value in sorted(quantity(measurement).items())
            ]
            examples = _example_columns(measurement, step, epoch)
        self._rows.extend(rows)
        self._examples.append(examples)

    @property
    def metrics(self) -> pd.DataFrame:
        """All group values so far, in the columns of `noisesam.runs.schema.METRICS_COLUMNS`."""
        import pandas as pd

        names = [column.name for column in METRICS_COLUMNS]
        frame = pd.DataFrame.from_records(self._rows, columns=names)
        return frame.astype({column.name: column.dtype for column in METRICS_COLUMNS})

    @property
    def examples(self) -> pd.DataFrame:
        """One row per probe example and measurement, in the columns of `noisesam.runs.schema.EXAMPLES_COLUMNS`."""
        import pandas as pd

        return pd.DataFrame(_stacked(self._examples))

    def take(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """Return what was measured since the last call, for a writer.

        Returns:
            The rows of the metrics table, and the columns of the examples table.
        """
        rows, examples = self._taken
        self._taken = (len(self._rows), len(self._examples))
        return self._rows[rows:], _stacked(self._examples[examples:])


def _example_columns(measurement: Measurement, step: int, epoch: float | int) -> dict[str, np.ndarray]:
    """Return the columns of the examples table for one measurement."""
    probe = measurement.probe
    count = len(probe)
    clean = probe.clean_labels
    known: dict[str, Any] = {
        "step": np.full(count, step),
        "epoch": np.full(count, epoch),
        "example": probe.index.cpu().numpy(),
        "label": probe.labels.cpu().numpy(),
        "clean_label": np.full(count, -1) if clean is None else clean.cpu().numpy(),
        **measurement.columns,
    }
    return {column.name: np.asarray(known[column.name]).astype(column.dtype) for column in EXAMPLES_COLUMNS}


def _stacked(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the columns of several measurements, one under the other."""
    empty = {column.name: np.empty(0, dtype=column.dtype) for column in EXAMPLES_COLUMNS}
    return {name: np.concatenate([start, *(part[name] for part in parts)]) for name, start in empty.items()}
