"""Invented runs whose every number is known, and the slow twins of the analyses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from noisesam.runs import EXAMPLES_COLUMNS, RunCollection, RunWriter, open_runs

EPOCHS = 20
STEPS_PER_EPOCH = 10
PROBE = 30
GROUP_NORMS = (
    "residual_norm",
    "gradient_norm",
    "step_residual_norm",
    "step_gradient_norm",
    "sam_gradient_norm",
    "one_sam_gradient_norm",
    "l_sam_gradient_norm",
    "j_sam_gradient_norm",
)


def invent(
    path: Path,
    method: str = "sgd",
    seed: int = 0,
    *,
    peak: float = 0.9,
    last: float = 0.7,
    memorised: float = 0.8,
    rule_gain: dict[str, float] | None = None,
    activation: float = 2.0,
    true_labels: bool = True,
    validation: bool = True,
    probe: bool = True,
    finish: bool = True,
    flush_every: int = EPOCHS,
    rho: float | None = None,
    sections: dict[str, Any] | None = None,
) -> None:
    """Test accuracy rises to `peak` at half time and falls to `last`; the rest follows the arguments, with noise by seed."""
    generator = np.random.default_rng([seed, *method.encode()])
    config = {
        "data": {"name": "digits"},
        "noise": {"kind": "symmetric", "rate": 0.4},
        "model": {"name": "mlp"},
        "method": {"name": method} | ({} if rho is None else {"rho": rho}),
        "optimizer": {"lr": 0.1},
        "training": {"epochs": EPOCHS},
        "seed": seed,
    } | (sections or {})
    writer = RunWriter.create(path, config=config, seeds={"init": seed}, noise={"kind": "symmetric"}, data={"classes": 10})
    jitter = generator.normal(0, 0.002)
    for epoch in range(EPOCHS + 1):
        step = epoch * STEPS_PER_EPOCH
        front = {"step": step, "epoch": float(epoch)}
        half = EPOCHS // 2
        test = 0.1 + (peak - 0.1) * epoch / half if epoch <= half else peak + (last - peak) * (epoch - half) / half
        fraction = epoch / EPOCHS
        values: dict[tuple[str, str, str], float] = {
            ("test", "all", "accuracy"): test + jitter,
            ("train", "all", "accuracy"): 0.1 + 0.8 * fraction,
            ("train", "all", "forward_passes"): 2.0,
            ("train", "all", "backward_passes"): 2.0,
            ("train", "all", "step_seconds"): 0.01 * (seed + 1),
        }
        if validation:
            values["val", "all", "accuracy"] = 0.6 * test + (0.1 if epoch == half - 1 else 0.0) * (seed % 2)
        if true_labels:
            values |= {
                ("train", "clean", "accuracy"): min(1.0, 0.1 + 1.2 * fraction),
                ("train", "noisy", "predicts_observed"): memorised * fraction,
                ("train", "noisy", "predicts_true"): 0.9 * (1 - memorised * fraction),
                ("train", "noisy", "predicts_other"): 0.1 * (1 - memorised * fraction),
                ("train", "noisy", "count"): 400.0,
            }
        if probe and (epoch < 3 or epoch % 5 == 0):
            columns = examples(generator, step, epoch, rule_gain or {}, true_labels)
            writer.add_examples(columns)
            values |= group_means(columns, true_labels)
            values["probe", "all", "hidden_activation_norm"] = 1.0 + activation * fraction
            values["probe", "all", "last_layer_norm"] = 1.0 + activation * fraction
        keys = [{"split": split, "group": group, "metric": metric} for split, group, metric in values]
        writer.add_metrics([front | key | {"value": value} for key, value in zip(keys, values.values(), strict=True)])
        if epoch % flush_every == 0:
            writer.flush(step)
    if finish:
        writer.finish()


def examples(
    generator: np.random.Generator, step: int, epoch: int, rule_gain: dict[str, float], true_labels: bool
) -> dict[str, np.ndarray]:
    columns = {column.name: generator.uniform(0.5, 1.5, PROBE) for column in EXAMPLES_COLUMNS}
    label = np.arange(PROBE) % 10
    noisy = np.arange(PROBE) % 3 == 0
    columns |= {
        "step": np.full(PROBE, step),
        "epoch": np.full(PROBE, float(epoch)),
        "example": np.arange(PROBE),
        "label": label,
        "clean_label": np.where(noisy, (label + 1) % 10, label) if true_labels else np.full(PROBE, -1),
        "predicted": label,
    }
    columns["residual_norm"] = np.where(np.arange(PROBE) == 7, 0.0, columns["residual_norm"])
    columns["gradient_norm"] = columns["residual_norm"] * generator.uniform(1, 3, PROBE)
    columns["logit_weight"] = np.where(columns["residual_norm"] > 0, columns["logit_weight"], np.nan)
    columns["jacobian_weight"] = np.where(columns["gradient_norm"] > 0, columns["jacobian_weight"], np.nan)
    for rule in ("sam", "one_sam", "l_sam", "j_sam"):
        # The rule multiplies the norm of clean examples by its gain: that is its relative ratio.
        gain = np.where(noisy, 1.0, rule_gain.get(rule, 1.0))
        columns[f"{rule}_gradient_norm"] = columns["gradient_norm"] * gain
    columns["jacobian_weight"] = np.divide(
        columns["j_sam_gradient_norm"], columns["gradient_norm"], out=np.full(PROBE, np.nan), where=columns["gradient_norm"] > 0
    )
    columns["step_gradient_norm"] = columns["gradient_norm"] * 1.1
    return columns


def group_means(columns: dict[str, np.ndarray], true_labels: bool) -> dict[tuple[str, str, str], float]:
    masks = {"all": np.ones(PROBE, dtype=bool)}
    if true_labels:
        masks |= {
            "clean": columns["label"] == columns["clean_label"],
            "noisy": columns["label"] != columns["clean_label"],
        }
    return {("probe", group, name): float(columns[name][mask].mean()) for group, mask in masks.items() for name in GROUP_NORMS}


@pytest.fixture(scope="session")
def vault(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """Every invented run is written once per session: runs are only read."""
    return tmp_path_factory.mktemp("invented"), {}


@pytest.fixture
def study(vault):
    """Invented runs over seeds: `study({"sgd": {...}, "any": {"method": "1-sam", ...}})` -> RunCollection."""
    root, written = vault

    def write(methods: dict[str, dict[str, Any]], seeds: tuple[int, ...] = (0, 1, 2)) -> RunCollection:
        paths = []
        for name, arguments in methods.items():
            for seed in seeds:
                full = {"method": name} | arguments | {"seed": seed}
                key = json.dumps(full, sort_keys=True)
                if key not in written:
                    written[key] = root / str(len(written))
                    invent(written[key], **full)
                paths.append(written[key])
        return open_runs(paths)

    return write


@pytest.fixture
def invented():
    return invent


@pytest.fixture(scope="session")
def twin() -> ModuleType:
    path = Path(__file__).parents[1] / "reference" / "analysis_twin.py"
    spec = importlib.util.spec_from_file_location("analysis_twin", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
