"""What must be true of the manifests before anything is judged: noise rates, split sizes, labels in order, equal seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from noisesam.errors import RunError
from noisesam.runs import Run

CIFAR10N_WORST = 0.40208
"""Fraction of wrong labels in CIFAR-10N's set `worst` over all 50,000 training images (Wei et al. 2022, arXiv 2110.12088)."""

STANDARD_ERRORS = 5.0
"""How far the rate of a random part may lie from the rate of the whole: five standard errors, one part in a million."""

_SHOWN = 3
_PAIRED = ("data", "validation", "noise", "init", "batching")


def check_manifests(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Compare what every run realised with what its configuration asked for, and the runs of one seed with each other.

    Checked are: the run is finished; training, validation and test examples are as many as configured; the realised rate of
    wrong labels is the requested one (exactly where nothing was held out, within five standard errors of drawing without
    replacement in a part of the examples; for the human labels of CIFAR-10N, within five of the published rate); every class is
    most often labelled as itself under human noise, which a file in another order would break; runs that share data, noise and
    seed have drawn the same images, labels, weights and batches, so that their differences are paired.

    Args:
        runs: Saved runs.

    Returns:
        Their manifests, in order.

    Raises:
        RunError: A manifest contradicts its configuration or another run; the first three are named.

    References:
        Wei, Zhu, Cheng, Liu, Niu, Liu (2022). Learning with Noisy Labels Revisited. arXiv 2110.12088.
    """
    manifests = [run.manifest for run in runs]
    wrong = [f"{manifest['id']}: {what}" for manifest in manifests for what in contradictions(manifest)]
    wrong += _unpaired(manifests)
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise RunError(
            "The manifests contradict what was asked for: " + "; ".join(wrong[:_SHOWN]) + more,
            expected="the configured split sizes and noise rate, and the same labels for every method of a seed",
            remedy="Delete the runs that are named and make them again; check the data set's files",
        )
    return manifests


def contradictions(manifest: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one manifest, in words; nothing if it is as configured.

    Example:
        >>> sizes = {"train": 80, "validation": 20, "test": 50, "classes": 10}
        >>> config = {"data": {"train_size": 100, "validation_size": 20}, "noise": {"kind": "symmetric", "rate": 0.3}}
        >>> noise = {"kind": "symmetric", "requested_rate": 0.3, "realised_rate": 0.7, "transition_matrix": None}
        >>> contradictions({"status": "finished", "configuration": config, "data": sizes, "noise": noise})
        ['realised noise rate 0.7000, requested 0.3000']
    """
    if manifest["status"] != "finished":
        return [f"status {manifest['status']}"]
    data, noise = manifest["configuration"]["data"], manifest["configuration"].get("noise", {})
    return [*_sizes(manifest["data"], data), *_rate(manifest, noise)]


def _sizes(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    wanted = {"validation": asked.get("validation_size", 0)}
    if asked.get("train_size") is not None:
        wanted["train"] = asked["train_size"] - wanted["validation"]
    if asked.get("test_size") is not None:
        wanted["test"] = asked["test_size"]
    return [f"{found.get(name)} {name} examples, configured {size}" for name, size in wanted.items() if found.get(name) != size]


def _rate(manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Compare the realised rate of wrong labels with the requested one."""
    record, data = manifest.get("noise"), manifest["configuration"]["data"]
    kind = asked.get("kind", "none")
    if kind == "none":
        return [] if not record else [f"label noise of kind {record.get('kind')}, configured none"]
    if not record:
        return [f"no record of label noise, configured {kind}"]
    if record.get("kind") != kind:
        return [f"label noise of kind {record.get('kind')}, configured {kind}"]
    realised = record.get("realised_rate")
    if realised is None:
        return ["no realised noise rate"]
    if kind == "human":
        return [*_human(float(realised), record, manifest), *_order(record)]
    train, held_out = manifest["data"]["train"], data.get("validation_size", 0)
    whole, rate = train + held_out, float(asked["rate"])
    if kind == "symmetric":  # floor(rate n) examples of the whole, of which the training part is a draw
        rate = math.floor(rate * whole + 1e-9) / whole
    allowed = _allowed(rate, train, whole) if kind == "symmetric" else _allowed(rate, train, None)
    off = abs(realised - rate) > allowed + 1e-9
    return [f"realised noise rate {realised:.4f}, requested {float(asked['rate']):.4f}"] if off else []


def _human(realised: float, record: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    configuration = manifest["configuration"]
    if configuration["data"].get("name") != "cifar10" or record.get("source") != "worst":
        return []
    train = manifest["data"]["train"]
    off = abs(realised - CIFAR10N_WORST) > _allowed(CIFAR10N_WORST, train, 50_000) + 1e-9
    return [f"realised noise rate {realised:.5f}, CIFAR-10N worst has {CIFAR10N_WORST}"] if off else []


def _order(record: Mapping[str, Any]) -> list[str]:
    """Every class is most often labelled as itself; labels in another order are labels at random."""
    matrix = record.get("transition_matrix") or []
    lost = [row for row, entries in enumerate(matrix) if entries[row] < max(entries)]
    return [f"class {lost[0]} is most often labelled as another: labels in another order than the images"] if lost else []


def _allowed(rate: float, part: int, whole: int | None) -> float:
    """Five standard errors of the rate in a part, drawn from a whole of this size or from a law (None)."""
    correction = 1.0 if whole is None else max(whole - part, 0) / max(whole - 1, 1)
    return STANDARD_ERRORS * math.sqrt(rate * (1 - rate) / max(part, 1) * correction)


def _unpaired(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Runs of one seed on one task must have drawn the same everything but the method's own numbers."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for manifest in manifests:
        own = manifest["configuration"]
        groups[repr((own["data"], own.get("noise"), own.get("seed", 0)))].append(manifest)
    wrong = []
    for own in groups.values():
        for what in ("noise", "data"):
            differ = next((one for one in own if _facts(one, what) != _facts(own[0], what)), None)
            if differ is not None:
                wrong.append(f"{differ['id']}: another {what} than {own[0]['id']}, with the same seed")
        other = next((one for one in own if _seeds(one) != _seeds(own[0])), None)
        if other is not None:
            wrong.append(f"{other['id']}: other generators than {own[0]['id']}, with the same seed")
    return wrong


def _facts(manifest: Mapping[str, Any], what: str) -> Any:
    """The noise record, or the sizes of the splits; the probe is the tracker's own."""
    facts = manifest.get(what)
    return {key: value for key, value in facts.items() if key != "probe"} if isinstance(facts, Mapping) else facts


def _seeds(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {purpose: manifest["seeds"].get(purpose) for purpose in _PAIRED}
