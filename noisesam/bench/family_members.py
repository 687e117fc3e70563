"""Who of the family is timed, with which options, over how many steps, and the passes that each documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from noisesam.bench.family_claims import ESAM_BETA, LOOKSAM_K
from noisesam.errors import unknown_name
from noisesam.methods import describe, names

EPOCH = 32
"""Steps of an epoch, as of 2,000 images in batches of 64: what a method does once per epoch is spread over so many."""

_SAF = {"start_epoch": 5, "lag": 3}
_MESA = {"start_epoch": 5}


@dataclass(frozen=True)
class Cycle:
    """The steps that are timed together, and where the clock starts."""

    steps: int = 1
    reason: str = "every step costs the same"
    first_epoch: int = 0
    warm_up: int = 2
    """Steps before the clock runs; a new epoch starts after them."""


_LOOK = Cycle(LOOKSAM_K, f"one step of k = {LOOKSAM_K} takes two passes, the others one")
_MASK = Cycle(EPOCH, f"the mask moves once per epoch, here of {EPOCH} steps; longer epochs pay less")

CYCLES: dict[str, Cycle] = {
    "looksam": _LOOK,
    "looklayersam": _LOOK,
    "esam-tensor": Cycle(8, "the tensors drawn, and with them the cost, differ from step to step; eight draws"),
    "saf": Cycle(
        1, "every step costs the same once every example has the logits that it had lag epochs ago; timed after the epoch "
        "start_epoch + lag", _SAF["start_epoch"] + 1, _SAF["lag"] * EPOCH,
    ),
    "mesa": Cycle(1, "every step costs the same once the divergence counts; timed after start_epoch", _MESA["start_epoch"] + 1),
    "ausam": Cycle(1, "the share drawn is fixed; timed after an epoch that fills the history", warm_up=EPOCH),
    "ssam-f": Cycle(EPOCH, f"the Fisher diagonal is gathered once per epoch, here of {EPOCH} steps; longer epochs pay less"),
    "ssam-d": _MASK,
    "ssam-d-structured": _MASK,
}  # fmt: skip
"""By member; who is not here has steps that all cost the same from the first on."""

_ESAM = {"beta": ESAM_BETA, "gamma": 0.5}

OPTIONS: dict[str, dict[str, Any]] = {
    "looksam": {"k": LOOKSAM_K},
    "looklayersam": {"k": LOOKSAM_K},
    "esam": {**_ESAM, "mask": "element"},
    "saf": _SAF,
    "mesa": _MESA,
    "ausam": {"fraction": 0.5, "sampling": "fixed"},
    "ssam-f": {"update_freq": 1, "num_samples": 128},
}
"""Options on which the cost depends, as they are timed; the others are the methods' defaults."""

_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "esam": {"esam-tensor": {**_ESAM, "mask": "tensor"}},
    "ssam-d": {"ssam-d-structured": {"pattern": "structured"}},
}


@dataclass(frozen=True)
class Member:
    """A method, or a variant of it, as it is timed."""

    name: str
    method: str
    options: Mapping[str, Any]
    cycle: Cycle

    @property
    def long(self) -> bool:
        """Whether its cycle is an epoch: it then runs fewer rounds."""
        return self.cycle.steps >= EPOCH


def members(wanted: Sequence[str] | None = None) -> list[Member]:
    """Return every registered method with its variants, or those of these names; SAM is always among them.

    Raises:
        InputError: There is no such member.

    Example:
        >>> [one.name for one in members(["esam-tensor"])]
        ['sam', 'esam-tensor']
    """
    found: dict[str, Member] = {}
    for method in names():
        for name, options in {method: OPTIONS.get(method, {}), **_VARIANTS.get(method, {})}.items():
            found[name] = Member(name, method, options, CYCLES.get(name, Cycle()))
    for name in wanted or []:
        if name not in found:
            raise unknown_name("member of the family", name, found)
    return [one for one in found.values() if wanted is None or one.name in ("sam", *wanted)]


def documented_passes(member: Member, batch: int) -> tuple[float, float]:
    """Return forward and backward passes per step as the registry states them, the Fisher passes of an epoch spread over it.

    Args:
        member: From `members`.
        batch: Examples of a step.

    Example:
        >>> documented_passes(members(["looksam"])[1], 64)
        (1.2, 1.2)
    """
    described = describe(member.method)
    known = {name: default for name, (default, _) in described.hyperparameters.items()} | dict(member.options)
    examples = EPOCH * batch
    further = min(known["num_samples"], examples) / examples if "Fisher" in described.cost else 0.0
    forward, backward = (_value(words, known) + further for words in described.passes)
    return forward, backward


def _value(words: str, known: Mapping[str, Any]) -> float:
    """Return the number that words like "2+gamma", "1+1/k" or "2 fraction" state."""
    total = 0.0
    for term in words.split("+"):
        product = 1.0
        for factor in term.split():
            above, _, below = factor.partition("/")
            product *= _number(above, known) / (_number(below, known) if below else 1.0)
        total += product
    return total


def _number(word: str, known: Mapping[str, Any]) -> float:
    return float(known.get(word, word))
