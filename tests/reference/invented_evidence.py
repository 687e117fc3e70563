"""Invented evidence: for every claim a setting that supports it, one against it, one that is open, one that is no test."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from noisesam.reproduce.evidence import COLUMNS, DEEP, LINEAR, MAIN, NO_NOISE, NUMBERS, Evidence

SEEDS = (0, 1, 2, 3)
SHORT = {
    "early": "validation_test_accuracy",
    "validation": "validation_validation_accuracy",
    "oracle": "oracle_test_accuracy",
    "last": "last_test_accuracy",
    "fits_wrong": "last_noisy_fitted",
    "fits": "last_train_accuracy",
    "activation": "hidden_activation_norm",
    "layer": "last_layer_norm",
    "examples": "train_examples",
}
COMMON = {"fits_wrong": 0.9, "fits": 1.0, "examples": 1000.0, "parameters": 5000.0, "rho": 0.1, "tracked_rho": 0.1}

Values = Mapping[str, float | str]


def evidence(
    methods: Mapping[str, Values] | None = None,
    *,
    variants: Mapping[str, Mapping[str, Values]] | None = None,
    setting: str = "invented",
    kind: str = DEEP,
    seeds: tuple[int, ...] = SEEDS,
    noise: float = 0.002,
) -> Evidence:
    """Return invented runs: a number per method and column, moved by what the seed does to all methods and by noise of its own.

    Args:
        methods: Method -> column (or a short name of it) -> value; options stand behind a bar, "1-sam|rho=0.1".
        variants: Name of a variant -> methods.
        setting: Name of the setting.
        kind: Its kind.
        seeds: The seeds.
        noise: Size of a method's own deviations between seeds; what the seed does to all methods is ten times larger.
    """
    rows = []
    for variant, own in {MAIN: methods or {}, **(variants or {})}.items():
        for number, (name, values) in enumerate(own.items()):
            method, _, options = name.partition("|")
            for place, seed in enumerate(seeds):
                row = dict.fromkeys(NUMBERS, math.nan)
                row |= {"run": f"{variant}-{name}-{seed}", "variant": variant, "method": method, "options": options}
                row |= {"seed": seed, "excluded": ""}
                for key, value in {**COMMON, **values}.items():
                    column = SHORT.get(key, key)
                    moved = column.endswith("test_accuracy") or column in _MOVED
                    own_noise = (
                        noise * (_wiggle(number, variant, column, len(seeds))[place] + 10 * (seed % 3)) if moved else 0.0
                    )
                    row[column] = value + own_noise if isinstance(value, float) else value
                rows.append(row)
    frame = pd.DataFrame(rows, columns=[*COLUMNS])
    return Evidence(setting, kind, frame.astype(dict.fromkeys(NUMBERS, "float64")))


def _wiggle(number: int, variant: str, column: str, seeds: int) -> np.ndarray:
    """Return deviations that sum to zero, in another order for every method and column."""
    generator = np.random.default_rng([number, *variant.encode(), *column.encode()])
    return generator.permutation(seeds) - (seeds - 1) / 2


_MOVED = ("fitted_before_noise", "log_weight_ratio", "low_loss_factor", "sharpness", "batch_sharpness")


def accuracies(**early: float) -> dict[str, dict[str, float | str]]:
    """Return methods with their early-stopping accuracy; underscores for hyphens, `x1_sam` for 1-sam."""
    return {_name(name): {"early": value, "last": value - 0.1} for name, value in early.items()}


def _name(name: str) -> str:
    return name.removeprefix("x").replace("_", "-")


def with_column(methods: Mapping[str, Values], column: str, **values: float) -> dict[str, dict[str, float | str]]:
    """Return the methods with one more column."""
    added = {_name(name): value for name, value in values.items()}
    return {name: {**own, **({column: added[name]} if name in added else {})} for name, own in methods.items()}


GAIN = accuracies(sgd=0.7, x1_sam=0.8)
NO_GAIN = accuracies(sgd=0.7, x1_sam=0.7)
LOUD = 0.1


def _sizes(small_gain: float) -> dict[str, dict[str, Values]]:
    return {
        "size-100": {
            "sgd": {"early": 0.5, "examples": 100.0},
            "1-sam": {"early": 0.5 + small_gain, "examples": 100.0},
        }
    }


def _narrow(gain: float, weights: float = 300.0) -> dict[str, dict[str, Values]]:
    own = {"parameters": weights, "fits_wrong": 0.2, "fits": 0.6}
    return {"narrow": {"sgd": {"early": 0.5, **own}, "1-sam": {"early": 0.5 + gain, **own}}}


def _shares(j_sam: float, l_sam: float) -> dict[str, dict[str, float | str]]:
    return accuracies(sgd=0.7, x1_sam=0.8, j_sam=0.7 + 0.1 * j_sam, l_sam=0.7 + 0.1 * l_sam)


def _regularised(noisy: float, clean: float, noise: float = 0.002) -> Evidence:
    without = accuracies(sgd=0.9, x1_sam=0.98, reg_sgd=0.9 + 0.08 * clean)
    return evidence(accuracies(sgd=0.7, x1_sam=0.8, reg_sgd=0.7 + 0.1 * noisy), variants={NO_NOISE: without}, noise=noise)


def _converged(early: float, last: float, fits: float = 1.0) -> dict[str, Values]:
    return {"sgd": {"early": 0.7, "last": 0.5}, "1-sam": {"early": 0.7 + early, "last": 0.5 + last, "fits": fits}}


def _norms(factor: float, layer: float | None = None) -> dict[str, Values]:
    small = {"early": 0.8, "activation": 1.0, "layer": 1.0}
    plain = {"early": 0.7, "activation": factor, "layer": factor if layer is None else layer}
    return {"sgd": plain, "1-sam": small, "j-sam": small}


def _radii(*logs: float) -> dict[str, Values]:
    names = [f"1-sam|rho={rho}" for rho in (0.03, 0.1, 0.3)]
    own = [{"rho": rho, "log_weight_ratio": log, "early": 0.8} for rho, log in zip((0.03, 0.1, 0.3), logs, strict=False)]
    return {"sgd": {"early": 0.7, "log_weight_ratio": -0.4}, **dict(zip(names, own, strict=False))}


def _sharp(*sharpness: float, batch: tuple[float, ...] | None = None, **common: float) -> dict[str, Values]:
    names = ("sgd", "sam", "l-sam", "j-sam", "1-sam")
    forms = zip(sharpness, batch or sharpness, strict=True)
    return {
        name: {"early": 0.7, "last": 0.5 + 0.1 * place, "sharpness": own, "batch_sharpness": of_batch, **common}
        for place, (name, (own, of_batch)) in enumerate(zip(names, forms, strict=False))
    }


def _robust(one_sam: float) -> dict[str, Values]:
    return {
        "sgd": {"early": 0.7, "validation": 0.4},
        "1-sam": {"early": one_sam, "validation": 0.5},
        "sgd + gce": {"early": 0.78, "validation": 0.5},
        "sgd + mae": {"early": 0.6, "validation": 0.3},
    }


def _weighs(factor: float) -> dict[str, Values]:
    return {"sgd": {"early": 0.7, "low_loss_factor": math.log(factor)}}


def _clean_first(one_sam: float) -> dict[str, Values]:
    return {"sgd": {"early": 0.7, "fitted_before_noise": 0.6}, "1-sam": {"early": 0.8, "fitted_before_noise": one_sam}}


CASES: dict[tuple[str, str], Evidence] = {
    ("C1", "supported"): evidence(GAIN),
    ("C1", "not supported"): evidence(NO_GAIN),
    ("C1", "undecided"): evidence(GAIN, noise=LOUD),
    ("C1", "not tested"): evidence(accuracies(sgd=0.7)),
    ("C2", "supported"): evidence(accuracies(sgd=0.7, x1_sam=0.8, sam=0.75)),
    ("C2", "not supported"): evidence(accuracies(sgd=0.7, x1_sam=0.8, sam=0.8)),
    ("C2", "undecided"): evidence(accuracies(sgd=0.7, x1_sam=0.8, sam=0.75), noise=LOUD),
    ("C2", "not tested"): evidence(GAIN),
    ("C3", "supported"): evidence(_clean_first(0.8)),
    ("C3", "not supported"): evidence(_clean_first(0.5)),
    ("C3", "undecided"): evidence(_clean_first(0.8), noise=LOUD),
    ("C3", "not tested"): evidence(GAIN),
    ("C4", "supported"): evidence(_radii(-0.4, -0.3, -0.1), kind=LINEAR),
    ("C4", "not supported"): evidence(_radii(-0.1, -0.3, -0.4), kind=LINEAR),
    ("C4", "undecided"): evidence(_radii(-0.4, -0.3, -0.1), kind=LINEAR, noise=LOUD),
    ("C4", "not tested"): evidence(_radii(-0.4), kind=LINEAR),
    ("C5", "supported"): evidence(_weighs(1.5)),
    ("C5", "not supported"): evidence(_weighs(0.8)),
    ("C5", "undecided"): evidence(_weighs(1.5), noise=LOUD),
    ("C5", "not tested"): evidence(GAIN),
    ("C6", "supported"): evidence(_shares(0.95, 0.05)),
    ("C6", "not supported"): evidence(_shares(0.95, 0.6)),
    ("C6", "undecided"): evidence(_shares(0.7, 0.05), noise=0.01),
    ("C6", "not tested"): evidence(NO_GAIN | accuracies(j_sam=0.75, l_sam=0.7)),
    ("C7", "supported"): evidence(_norms(2.0)),
    ("C7", "not supported"): evidence(_norms(2.0, layer=0.9)),
    ("C7", "undecided"): evidence({name: own for name, own in _norms(2.0).items() if name != "j-sam"}),
    ("C7", "not tested"): evidence(GAIN),
    ("C8", "supported"): _regularised(0.5, 0.05),
    ("C8", "not supported"): _regularised(0.95, 0.05),
    ("C8", "undecided"): _regularised(0.5, 0.05, noise=0.02),
    ("C8", "not tested"): evidence(GAIN),
    ("C9", "supported"): evidence(GAIN, variants=_sizes(0.03)),
    ("C9", "not supported"): evidence(GAIN, variants=_sizes(0.2)),
    ("C9", "undecided"): evidence(GAIN, variants=_sizes(0.03), noise=LOUD),
    ("C9", "not tested"): evidence(GAIN),
    ("C10", "supported"): evidence(_converged(0.1, 0.0)),
    ("C10", "not supported"): evidence(_converged(0.1, 0.2)),
    ("C10", "undecided"): evidence(_converged(0.1, 0.0), noise=LOUD),
    ("C10", "not tested"): evidence(_converged(0.1, 0.0, fits=0.6)),
    ("C11", "supported"): evidence(GAIN, variants=_narrow(0.1)),
    ("C11", "not supported"): evidence(GAIN, variants=_narrow(0.0)),
    ("C11", "undecided"): evidence(GAIN, variants=_narrow(0.1), noise=LOUD),
    ("C11", "not tested"): evidence(GAIN, variants=_narrow(0.1, weights=2000.0)),
    ("C12", "supported"): evidence(_sharp(5.0, 4.0, 3.0, 2.0, 1.0)),
    ("C12", "not supported"): evidence(_sharp(5.0, 4.0, 3.0, 2.0, 1.0, batch=(1.0, 2.0, 3.0, 4.0, 5.0))),
    ("C12", "undecided"): evidence(_sharp(5.0, 4.0, 3.0, 2.0, 1.0), seeds=(0, 1)),
    ("C12", "not tested"): evidence(GAIN),
    ("C13", "supported"): evidence(_robust(0.8)),
    ("C13", "not supported"): evidence(_robust(0.7)),
    ("C13", "undecided"): evidence(_robust(0.78), noise=LOUD),
    ("C13", "not tested"): evidence(GAIN),
}
"""(claim, verdict) -> a setting in which the claim gets this verdict."""
