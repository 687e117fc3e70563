"""The training loop of one run: steps, measurements, parts and checkpoints, each a function of the configuration alone."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from noisesam.errors import NoisesamError, RunError
from noisesam.runs import RunWriter, tables
from noisesam.runs.files import remove
from noisesam.tracking import Tracker, every_epochs
from noisesam.training.checkpoint import load_state, save_state
from noisesam.training.evaluation import evaluate
from noisesam.training.learning_rate import learning_rate
from noisesam.training.meter import StepMeter
from noisesam.training.preparation import Prepared

Progress = Callable[[int, int, str], None]
"""Called with the steps taken, the steps in total and a line of text."""

CHANCE_STEPS = 100
"""Before this many steps nothing is said about a run that is still at chance."""


class Loop:
    """Train one prepared run into its writer, from the start or from a checkpoint.

    At a step that is both measured and flushed the order is: measure, flush the parts, write the checkpoint. So whatever a
    checkpoint stands for is on disk before it, and a run resumed from it measures nothing twice.
    """

    def __init__(self, prepared: Prepared, writer: RunWriter, progress: Progress | None = None) -> None:
        self.prepared = prepared
        self.config = prepared.config
        self.writer = writer
        self.step = 0
        self._saved = -1
        self._progress = progress
        self._meter = StepMeter()
        self._notes: list[str] = []
        self._tracker = self._make_tracker()

    def start(self) -> None:
        """Measure the initial weights and write the checkpoint of step 0."""
        self.prepared.method.start_epoch(0)
        self._after_step()

    def resume(self, payload: bytes, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        progress = load_state(self.prepared, payload, state)
        self.step = self._saved = progress["step"]
        self._notes = list(progress["notes"])
        self._meter.load_state_dict(progress["meter"])

    def run(self) -> None:
        """Take the steps that are left.

        Raises:
            RunError: the loss is no longer finite.
        """
        self._report()
        while self.step < self.prepared.total_steps:
            self._take_step()
            self._after_step()
            self._report()
        if self._notes:
            self.writer.manifest["notes"] = self._notes

    def keep_what_was_measured(self) -> None:
        """Flush what was measured since the last flush: for a run that fails here."""
        self._hand_over()
        self.writer.flush(self.step)

    def _take_step(self) -> None:
        """Take one optimizer step."""
        prepared, order = self.prepared, self.prepared.order
        if self.step > 0 and self.step % order.steps_per_epoch == 0:
            prepared.method.start_epoch(order.epoch_of(self.step))
        batch = prepared.batch(self.step)
        settings = self.config.optimizer
        rate = learning_rate(settings.schedule, settings.lr, self.step, prepared.total_steps)
        for group in prepared.optimizer.param_groups:
            group["lr"] = rate
        begin = time.perf_counter()
        prepared.optimizer.zero_grad()
        try:
            with prepared.arithmetic():
                result = prepared.method.backward(batch.inputs, batch.labels, index=batch.index)
        except FloatingPointError as error:
            raise self._diverged(error.given if isinstance(error, NoisesamError) else str(error)) from error
        # A method raises itself; one that evaluates only some rows may meet the others later.
        loss = float(result.loss)
        if not math.isfinite(loss) and bool(result.evaluated.any()):
            raise self._diverged(f"The loss of a batch is {loss}")
        prepared.optimizer.step()
        self._meter.add(result, len(batch.labels), time.perf_counter() - begin, batch.noisy)
        self.step += 1

    def _after_step(self) -> None:
        """Measure, flush and save what is due after `self.step` steps."""
        spe, last = self.prepared.order.steps_per_epoch, self.step == self.prepared.total_steps
        at_epoch_end = self.step % spe == 0
        epoch = self.step // spe
        if at_epoch_end and (last or epoch % self.config.tracking.evaluate_every == 0):
            self._evaluate()
        if at_epoch_end and self._tracker is not None:
            measured = self._tracker.observe(self.step, epoch)
            if last and not measured:
                self._tracker.measure(self.step, epoch)
        settings = self.config.checkpoint
        inside = settings.every_steps is not None and self.step % settings.every_steps == 0
        if last or inside or (at_epoch_end and epoch % settings.every == 0):
            self._save()

    def _evaluate(self) -> None:
        """Evaluate every split and hand the rows to the writer."""
        place = {"step": self.step, "epoch": self.step / self.prepared.order.steps_per_epoch}
        rows = []
        for split, dataset in self.prepared.splits.evaluated().items():
            rows += evaluate(self.prepared.model, dataset, split=split, loss=self.prepared.method.loss)
        values = {row["metric"]: row["value"] for row in rows if (row["split"], row["group"]) == ("train", "all")}
        self.writer.add_metrics([{**place, **row} for row in [*rows, *self._meter.take()]])
        if not math.isfinite(values["loss"]):
            raise self._diverged(f"The mean training loss is {values['loss']}")
        self._warn_at_chance(values["accuracy"])

    def _warn_at_chance(self, accuracy: float) -> None:
        """Say once, after half of the epochs, that nothing has been learnt."""
        epochs = self.config.training.epochs
        epoch = self.step / self.prepared.order.steps_per_epoch
        if self._notes or self.step < CHANCE_STEPS or epoch < epochs / 2:
            return
        labels = self.prepared.splits.train.labels.cpu().numpy()
        # A model that always answers with the most frequent label has learnt nothing either.
        chance = float(np.bincount(labels).max()) / len(labels)
        if accuracy > chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)):
            return
        remedy = "Lower method.rho" if getattr(self.prepared.method, "rho", None) else "Lower optimizer.lr"
        note = (
            f"Training accuracy is {accuracy:.3f} after {epoch:g} of {epochs} epochs, which is chance ({chance:.3f}): "
            f"nothing has been learnt. {remedy}, or check the model and its learning rate."
        )
        self._notes.append(note)
        warnings.warn(note, UserWarning, stacklevel=6)  # the caller of fit

    def _hand_over(self) -> None:
        """Give the writer what the tracker has measured."""
        if self._tracker is not None:
            rows, examples = self._tracker.take()
            if rows:
                self.writer.add_metrics(rows)
                self.writer.add_examples(examples)

    def _save(self) -> None:
        """Flush the parts, then write the checkpoint that stands for them."""
        self._hand_over()
        self.writer.flush(self.step)
        self._remove_parts_of_a_failure()
        progress = {"step": self.step, "notes": self._notes, "meter": self._meter.state_dict()}
        self.writer.write_checkpoint(self.step, *save_state(self.prepared, progress))
        self.writer.prune(self.config.checkpoint.keep)

    def _remove_parts_of_a_failure(self) -> None:
        """Remove what `keep_what_was_measured` wrote between the last two flush points: the part just written holds it too."""
        for table in tables.COLUMNS:
            for step, path in tables.parts(self.writer.path / table):
                if self._saved < step < self.step:
                    remove(path)
        self._saved = self.step

    def _make_tracker(self) -> Tracker | None:
        """Follow the probe, if there is one; to be built while the weights are still the initial ones."""
        probe, settings = self.prepared.splits.probe, self.config.tracking
        if probe is None:
            return None
        return Tracker(
            self.prepared.model,
            probe,
            method=self.prepared.method,
            loss=self.prepared.method.loss,
            rho=settings.rho,
            schedule=every_epochs(settings.probe_every, dense=settings.probe_dense),
            batch_size=self.config.training.batch_size,
        )

    def _report(self) -> None:
        """Tell the caller how far the run is."""
        if self._progress is not None:
            epoch, epochs = self.step // self.prepared.order.steps_per_epoch, self.config.training.epochs
            message = f"{self.config.method.name} seed {self.config.seed}: epoch {epoch} of {epochs}"
            self._progress(self.step, self.prepared.total_steps, message)

    def _diverged(self, reason: str) -> NoisesamError:
        epoch = self.step / self.prepared.order.steps_per_epoch
        return RunError(
            f"Training diverged after {self.step} {'step' if self.step == 1 else 'steps'} (epoch {epoch:.1f}): {reason}",
            expected="a finite loss",
            remedy="Lower optimizer.lr or method.rho; what was measured before stays readable.",
        )
