"""What each method would do to clean and wrong labels at one and the same weights: those of a saved run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from noisesam import methods
from noisesam.errors import RunError
from noisesam.gradients import decompose
from noisesam.runs import Run
from noisesam.training.load import load_config
from noisesam.training.preparation import Prepared, prepare

COLUMNS = ["method", "epoch", "group", "examples", "logit_weight", "jacobian_weight"]


def mechanism_at_equal_weights(
    run: Run,
    chosen: Mapping[str, tuple[str, Mapping[str, Any]]],
    *,
    epoch: float | None = None,
    data_root: str | Path | None = None,
) -> pd.DataFrame:
    """Return the logit weight and the Jacobian weight of methods on clean and on wrong labels, at a saved run's weights.

    logit weight: mean_i ||r_i(w + eps)|| / mean_i ||r_i(w)||; Jacobian weight: mean_i ||J_i(w+eps)^T r_i(w)|| /
    mean_i ||J_i(w)^T r_i(w)||, over the training examples of a group, with eps from `Method.perturbation` of the batches of
    the run's size in the order of the epoch. Averages over steps are filled by one epoch of steps at the same weights first.

    Args:
        run: A run with checkpoints and known clean labels.
        chosen: Label -> (method's name, hyper-parameters).
        epoch: The checkpoint nearest to it is taken; the last one by default.
        data_root: Folder of the data sets.

    Returns:
        One row per label and group (all, clean, noisy); NaN where the rule has no perturbation.

    Raises:
        RunError: The run has no checkpoint.
    """
    config = load_config(run.config)
    prepared = prepare(config, data_root=data_root)
    steps = run.checkpoint_steps
    if not steps:
        raise RunError(f"No checkpoint in {run.path.name}", expected="a run with checkpoints", remedy="Set checkpoint.every.")
    wanted = steps[-1] if epoch is None else min(steps, key=lambda s: abs(s / prepared.order.steps_per_epoch - epoch))
    tensors = run.checkpoint(wanted).tensors
    prepared.model.load_state_dict(
        {name: tensors[f"model.{name}"] for name in prepared.model.state_dict()}  # the checkpoint was checked by its hash
    )
    prepared.model.eval()
    present = wanted // prepared.order.steps_per_epoch
    rows: list[dict[str, Any]] = []
    for label, (name, hyperparameters) in chosen.items():
        method = methods.make(name, prepared.model, loss=config.method.loss, **dict(hyperparameters))
        for group, values in _weights(prepared, method, present).items():
            rows.append({"method": label, "epoch": present, "group": group, **values})
    return pd.DataFrame(rows, columns=COLUMNS)


def _weights(prepared: Prepared, method: methods.Method, epoch: int) -> dict[str, dict[str, float | int]]:
    train, order = prepared.splits.train, prepared.order
    batches = [torch.from_numpy(order.batch(epoch * order.steps_per_epoch + i)) for i in range(order.steps_per_epoch)]
    method.start_epoch(0)
    for rows in batches:
        method.backward(train.inputs[rows], train.labels[rows], index=train.index[rows])
    prepared.model.zero_grad(set_to_none=True)
    method.start_epoch(1)
    parts: list[dict[str, Tensor]] = []
    for rows in batches:
        x, y, index = train.inputs[rows], train.labels[rows], train.index[rows]
        eps = method.perturbation(x, y, index)
        if eps is None:
            break
        found = decompose(prepared.model, x, y, loss=prepared.config.method.loss, perturbation=eps, chunk_size="auto")
        fields = ("residual_norm", "perturbed_residual_norm", "gradient_norm", "jacobian_perturbed_gradient_norm")
        noisy = train.is_noisy
        part = {field: getattr(found, field).double() for field in fields}
        part["noisy"] = torch.zeros(len(rows), dtype=torch.bool) if noisy is None else noisy[rows]
        parts.append(part)
    count = len(train.labels)
    if not parts:
        return {group: {"examples": count, "logit_weight": float("nan"), "jacobian_weight": float("nan")}
                for group in ("all", "clean", "noisy")}  # fmt: skip
    whole = {field: torch.cat([part[field] for part in parts]) for field in parts[0]}
    groups = {"all": torch.ones_like(whole["noisy"]), "clean": ~whole["noisy"], "noisy": whole["noisy"]}
    return {
        group: {
            "examples": int(mask.sum()),
            "logit_weight": _ratio(whole["perturbed_residual_norm"][mask], whole["residual_norm"][mask]),
            "jacobian_weight": _ratio(whole["jacobian_perturbed_gradient_norm"][mask], whole["gradient_norm"][mask]),
        }
        for group, mask in groups.items()
    }


def _ratio(above: Tensor, below: Tensor) -> float:
    return float(above.mean() / below.mean()) if len(below) and float(below.mean()) > 0 else float("nan")
