"""What a training step costs: passes and wall time since the last measurement."""

from __future__ import annotations

from typing import Any

import torch

from noisesam.methods import StepResult


class StepMeter:
    """Gather the cost of the steps between two measurements; its state is part of a checkpoint.

    Passes are counted in batches: examples summed over model evaluations (or reverse passes), divided by the batch size.
    """

    def __init__(self) -> None:
        self._forward = 0.0
        self._backward = 0.0
        self._seconds: list[float] = []

    def add(self, result: StepResult, batch_size: int, seconds: float) -> None:
        """Count one step."""
        self._forward += result.forward_examples / batch_size
        self._backward += result.backward_examples / batch_size
        self._seconds.append(seconds)

    def take(self) -> list[dict[str, Any]]:
        """Return the means (the median of the time) since the last call as rows, none if no step was taken, and start anew."""
        steps = len(self._seconds)
        if not steps:
            return []
        values = {
            "forward_passes": self._forward / steps,
            "backward_passes": self._backward / steps,
            "step_seconds": float(torch.tensor(self._seconds, dtype=torch.float64).quantile(0.5)),
        }
        self._forward, self._backward, self._seconds = 0.0, 0.0, []
        return [{"split": "train", "group": "all", "metric": name, "value": value} for name, value in values.items()]

    def state_dict(self) -> dict[str, Any]:
        """Return what has been gathered."""
        seconds = torch.tensor(self._seconds, dtype=torch.float64)
        return {"forward": self._forward, "backward": self._backward, "seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._forward, self._backward = state["forward"], state["backward"]
        self._seconds = state["seconds"].tolist()
