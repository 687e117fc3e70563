"""What the engine is to reach, as data, and whether it does: every number is a ratio within one run on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from noisesam.bench.contenders import BASE, BEST_VMAP, CONTENDERS, ONE_SAM, SAM

HELD, MISSED, OPEN = "held", "missed", "not measured"

_CLOSE = ("mlp", "resnet18-groupnorm", "resnet18-layernorm")
_RESNET18 = _CLOSE[1:]


@dataclass(frozen=True)
class Target:
    """`above` divided by `below` is at most, or at least, `bound` on these models (None: on all)."""

    name: str
    above: str
    below: str
    bound: float
    at_most: bool = True
    models: tuple[str, ...] | None = None
    quantity: str = "time"
    """"time" or "memory" (growth of the peak)."""

    def applies_to(self, model: str, models: tuple[str, ...]) -> bool:
        """Say whether the target is set for this model of these."""
        return model in (models if self.models is None else self.models)

    @property
    def words(self) -> str:
        """The bound as it is written: at most 1.15."""
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


_OTHERS = ("small-cnn", "resnet8", "vit", "text")

TARGETS: tuple[Target, ...] = (
    Target("1-SAM / batch SAM", ONE_SAM, SAM, 1.0, models=_CLOSE),
    Target("1-SAM / batch SAM", ONE_SAM, SAM, 1.15, models=_OTHERS),
    Target("best vmap / 1-SAM", BEST_VMAP, ONE_SAM, 100.0, at_most=False, models=("mlp",)),
    Target("best vmap / 1-SAM", BEST_VMAP, ONE_SAM, 4.0, at_most=False, models=_RESNET18),
    Target("norms / Opacus ghost norms", "norms", "opacus-ghost", 0.5),
    Target("norms / SGD", "norms", BASE, 1.0),
    Target("SGD with norms / SGD", "sgd-norms", BASE, 1.5),
    Target("memory of 1-SAM / SGD", ONE_SAM, BASE, 2.5, quantity="memory"),
)


@dataclass(frozen=True)
class Verdict:
    """A target on one model, with the number that decides it."""

    target: Target
    model: str
    measured: float | None
    verdict: str
    reason: str = ""
    """Why nothing was measured."""


def judge(
    model: str,
    values: Mapping[str, float],
    reasons: Mapping[str, str] | None = None,
    *,
    quantity: str = "time",
    models: tuple[str, ...] | None = None,
    targets: tuple[Target, ...] = TARGETS,
) -> list[Verdict]:
    """Compare measured values with the targets of one model.

    Args:
        model: Name of the model.
        values: Seconds or bytes by contender.
        reasons: Why a contender that was asked for has no value. One of noisesam's own without a value has missed its
            target; another's leaves it open. Contenders that were not asked for leave a target out.
        quantity: "time" or "memory".
        models: The models on which targets for all are set; by default this one.
        targets: What is to be reached.

    Returns:
        One verdict per target that is set for this model.

    Example:
        >>> [one.verdict for one in judge("mlp", {"1-sam": 1.2, "torch-sam": 2.0, "torch-sgd": 1.0, "norms": 1.1})]
        ['held', 'missed']
    """
    reasons = reasons or {}
    found = []
    for target in targets:
        if target.quantity != quantity or not target.applies_to(model, models or (model,)):
            continue
        absent = [name for name in (target.above, target.below) if name not in values]
        if any(name not in reasons for name in absent):
            continue
        if absent:
            ours = any(CONTENDERS[name].ours for name in absent if name in CONTENDERS)
            reason = "; ".join(f"{name}: {reasons[name]}" for name in absent)
            found.append(Verdict(target, model, None, MISSED if ours else OPEN, reason))
            continue
        below = values[target.below]
        if not below:
            found.append(Verdict(target, model, None, OPEN, f"{target.below}: nothing to divide by"))
            continue
        ratio = values[target.above] / below
        holds = ratio <= target.bound if target.at_most else ratio >= target.bound
        found.append(Verdict(target, model, ratio, HELD if holds else MISSED))
    return found
