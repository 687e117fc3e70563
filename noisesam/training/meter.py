"""What the training steps since the last measurement gave: their cost, and the gradient norms that came with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noisesam.methods import StepResult


class StepMeter:
    """Gather the cost of the steps between two measurements; its state is part of a checkpoint.

    Passes are counted in batches: examples summed over model evaluations (or reverse passes), divided by the batch size.
    The time is a mean too: a method that makes its second pass every k-th step has a median that never sees it.
    Where a step returns per-example gradient norms (1-SAM, L-SAM and J-SAM always do, SGD with gradient_norms=True), their
    mean over the visits is kept by group: every example at the weights at which it was visited, as it was shown and in the
    precision of the step, at no further pass.
    """

    def __init__(self) -> None:
        self._forward = 0.0
        self._backward = 0.0
        self._seconds: list[float] = []
        self._norms: dict[str, float] = {}
        self._visits: dict[str, int] = {}

    def add(self, result: StepResult, batch_size: int, seconds: float, noisy: Tensor | None = None) -> None:
        """Count one step; `noisy` marks the wrong labels of its examples, None where the true ones are unknown."""
        if result.gradient_norms is not None:
            norms = result.gradient_norms.double()
            columns = [norms] if noisy is None else [norms, noisy.to(norms)]
            norms, *marks = torch.stack(columns).cpu()  # together: on an accelerator every look waits for the device
            groups = {"all": torch.ones_like(norms, dtype=torch.bool)}
            for mark in marks:
                groups |= {"clean": mark == 0, "noisy": mark != 0}
            for group, mask in groups.items():
                self._norms[group] = self._norms.get(group, 0.0) + float(norms[mask].sum())
                self._visits[group] = self._visits.get(group, 0) + int(mask.sum())
        self._forward += result.forward_examples / batch_size
        self._backward += result.backward_examples / batch_size
        self._seconds.append(seconds)

    def take(self) -> list[dict[str, Any]]:
        """Return the means since the last call as rows, none if no step was taken, and start anew."""
        steps = len(self._seconds)
        if not steps:
            return []
        values = {
            "forward_passes": self._forward / steps,
            "backward_passes": self._backward / steps,
            "step_seconds": float(torch.tensor(self._seconds, dtype=torch.float64).mean()),
        }
        rows: list[dict[str, Any]] = [
            {"split": "train", "group": "all", "metric": name, "value": value} for name, value in values.items()
        ]
        for group, visits in self._visits.items():
            mean = self._norms[group] / visits if visits else float("nan")
            rows.append({"split": "train", "group": group, "metric": "visited_gradient_norm", "value": mean})
        self._forward, self._backward, self._seconds, self._norms, self._visits = 0.0, 0.0, [], {}, {}
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return what has been gathered."""
        seconds = torch.tensor(self._seconds, dtype=torch.float64)
        gathered = {"norms": dict(self._norms), "visits": dict(self._visits)}
        return {"forward": self._forward, "backward": self._backward, "seconds": seconds, **gathered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._forward, self._backward = state["forward"], state["backward"]
        self._seconds = state["seconds"].tolist()
        self._norms, self._visits = dict(state["norms"]), dict(state["visits"])
