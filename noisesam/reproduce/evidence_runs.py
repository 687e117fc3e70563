"""From saved runs to the evidence of a setting: which runs are the setting itself, and which are variants of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from noisesam.analysis.inputs import Runs
from noisesam.errors import InputError
from noisesam.reproduce.evidence import DEEP, LINEAR, MAIN, NO_NOISE, TWO_LAYER, Evidence, nothing
from noisesam.reproduce.evidence_measures import measure, method_of, parameters_of
from noisesam.runs import Run, RunCollection

_KINDS = {"linear": LINEAR, "two-layer-linear": TWO_LAYER}
_NOT_THE_SETTING = ("method", "seed", "tracking", "checkpoint")
_NO_MATTER = ("training.threads", "training.device")
_SIZES = ("data.train_size", "data.validation_size")
_NOISE = ("noise.kind", "noise.rate", "noise.source")
_FREE = ("training.epochs",)
"""May change along, so that fewer examples are trained on for as many steps."""


def evidence_of(runs: RunCollection, *, setting: str) -> Evidence:
    """Return the evidence of one setting, its variants told by the runs' configurations.

    The setting itself are the runs with wrong labels in which most methods were run (of equally many those with more training
    examples, then with more weights). Runs that differ from it in the noise, which they lack, in the number of training
    examples, or in the options of the model are its variants; others are kept under the keys in which they differ, and no claim
    reads them. The kind of setting follows from the model: linear, two-layer linear, everything else deep.

    Args:
        runs: Saved runs of one setting and its variants, several methods and seeds.
        setting: Its name.

    Returns:
        The evidence, one row per run. Runs that stayed at chance or did not finish are marked, not dropped.

    Raises:
        InputError: No runs, no runs with wrong labels, or two groups of runs that could both be the setting.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    noisy = {text: own for text, own in groups.items() if _is_noisy(own[0])}
    if not noisy:
        raise InputError(f"No run of {setting} has wrong labels", expected="saved runs of a setting with label noise")
    sizes = {text: (len({method_of(run) for run in own}), *_size(own[0])) for text, own in noisy.items()}
    main = max(sizes, key=lambda text: sizes[text])
    rivals = [text for text in sizes if text != main and sizes[text] == sizes[main]]
    if rivals:
        raise InputError(
            f"The runs of {setting} differ in {', '.join(_differing(rivals[0], main))}",
            expected="one setting, with variants of it in which fewer methods were run",
            remedy="Hand in the runs of each setting by themselves, or name the variants with combine(...)",
        )
    variants: dict[str, list[Run]] = {MAIN: []}
    for text, own in groups.items():
        variants.setdefault(_variant(text, main, own[0], noisy[main][0]), []).extend(own)
    model = (noisy[main][0].config.get("model") or {}).get("name", "")
    return combine(setting, _KINDS.get(model, DEEP), {name: RunCollection(own) for name, own in variants.items()})


def combine(setting: str, kind: str, variants: Mapping[str, Runs]) -> Evidence:
    """Return the evidence of a setting whose variants are named by the caller.

    Args:
        setting: Its name.
        kind: One of `evidence.KINDS`.
        variants: "main" for the setting itself, "no-noise", "size-..." (another number of training examples), "narrow..." and
            "wide..." (another width), or any other name, which no claim reads -> its runs. An empty collection is left out.

    Returns:
        The evidence of the setting.
    """
    parts = []
    for variant, runs in variants.items():
        if isinstance(runs, Run | pd.DataFrame) or len(runs):
            own = measure(runs)
            widths = len(own["parameters"].dropna().unique()) > 1
            own["variant"] = [f"{variant}-{size:.0f}" if widths and variant != MAIN else variant for size in own["parameters"]]
            parts.append(own)
    return Evidence(setting, kind, pd.concat(parts, ignore_index=True) if parts else nothing())


def _identity(run: Run) -> str:
    """Return what the setting of a run is, as text: its configuration without the method, the seed and what only looks on."""
    config = {key: value for key, value in run.config.items() if key not in _NOT_THE_SETTING}
    leaves = {key: value for key, value in _leaves(config) if key not in _NO_MATTER}
    file = run.manifest.get("data_file")
    if isinstance(file, dict):
        leaves["data.sha256"] = str(file.get("sha256"))
    if not _is_noisy(run):
        leaves |= dict.fromkeys(_NOISE)
    return json.dumps(leaves, sort_keys=True)


def _leaves(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys of two levels with their values; the options of a model are one value."""
    for section, content in config.items():
        if isinstance(content, Mapping):
            yield from ((f"{section}.{key}", value) for key, value in content.items())
        else:
            yield section, content


def _is_noisy(run: Run) -> bool:
    noise = run.config.get("noise") or {}
    return noise.get("kind", "none") != "none" and (noise.get("kind") == "human" or float(noise.get("rate") or 0) > 0)


def _differing(text: str, other: str) -> list[str]:
    ours, theirs = json.loads(text), json.loads(other)
    return sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))


def _variant(text: str, main: str, run: Run, reference: Run) -> str:
    """Name what sets a group of runs apart from the setting itself."""
    if text == main:
        return MAIN
    different = {key for key in _differing(text, main) if key not in _FREE}
    if different and different <= {*_NOISE} and not _is_noisy(run):
        return NO_NOISE
    examples, whole = (float(one.manifest["data"].get("train") or math.nan) for one in (run, reference))
    if different and different <= {*_SIZES} and examples != whole:
        return f"size-{examples:.0f}"
    if different == {"model.options"}:
        return "narrow" if (parameters_of(run) or 0) < (parameters_of(reference) or 0) else "wide"
    ours = json.loads(text)
    return ", ".join(f"{key}={ours.get(key)}" for key in _differing(text, main))


def _size(run: Run) -> tuple[float, int]:
    return float(run.manifest["data"].get("train") or 0), parameters_of(run) or 0
