"""What the papers of the SAM family say their methods cost, as data, and whether it holds: ratios within one run alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HELD, NOT_HELD, OPEN = "held", "not held", "not measured"

OVERHEAD, STEP, RATE, SAVED = "overhead over SGD", "seconds / SGD", "steps per second / SAM", "share of SAM's time saved"
"""What a claim is about: s/s_SGD - 1, s/s_SGD, s_SAM/s or 1 - s/s_SAM, s the seconds of a step."""

AT_MOST, AT_LEAST, WITHIN = "at most", "at least", "within"

LOOKSAM_K, ESAM_BETA = 5, 0.6
"""k of LookSAM and beta of ESAM as they are timed, their defaults."""

_WEIGHTS = "norms of the gradient, weights moved and put back"


@dataclass(frozen=True)
class Claim:
    """A number that a paper states for a method, and the rule by which a measured one is held against it.

    `tolerance` is a share of the claimed number. "At most" and "at least" allow it on the worse side, "within" on both.
    """

    members: tuple[str, ...]
    statement: str
    citation: str
    quantity: str
    value: float
    sense: str
    tolerance: float
    reading: str
    """How the sentence became a rule."""
    beside: str
    """What a step does beside its passes."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest measured number with which the claim holds."""
        low, high = self.value * (1 - self.tolerance), self.value * (1 + self.tolerance)
        return (float("-inf") if self.sense == AT_MOST else low, float("inf") if self.sense == AT_LEAST else high)

    @property
    def rule(self) -> str:
        """The bounds as they are written.

        Example:
            >>> CLAIMS["looksam"].rule
            'seconds / SGD 1.08 to 1.32'
        """
        low, high = self.bounds
        bound = f"{low:g} to {high:g}" if self.sense == WITHIN else f"≤ {high:g}" if self.sense == AT_MOST else f"≥ {low:g}"
        return f"{self.quantity} {bound}"

    def measured(self, ratio: float, sam: float) -> float:
        """Return the quantity that is claimed, from seconds / SGD of the method and of SAM."""
        return {OVERHEAD: ratio - 1, STEP: ratio, RATE: sam / ratio, SAVED: 1 - ratio / sam}[self.quantity]

    def holds(self, measured: float) -> bool:
        """Say whether the measured number fits the claim."""
        low, high = self.bounds
        return low <= measured <= high

    def is_cheaper(self, measured: float) -> bool:
        """Say whether a number that does not fit misses the claim on the cheap side."""
        low, high = self.bounds
        return measured > high if self.quantity in (RATE, SAVED) else measured < low


_ESAM, _AUSAM = "Du et al. 2022, arXiv 2110.03141", "Deng et al. 2024, arXiv 2406.08001"
_HALF = f"work that half of the examples does not halve: {_WEIGHTS}, and the draw"

CLAIMS: dict[str, Claim] = {
    "sam": Claim(
        ("sam",), "SAM's overhead over the base optimizer is 100%", _ESAM, OVERHEAD, 1.0, WITHIN, 0.1,
        "the 100% from which ESAM's claim starts; within 10% of it", _WEIGHTS,
    ),
    "esam": Claim(
        ("esam", "esam-tensor"), "ESAM lowers the overhead over the base optimizer from 100% to 40%", _ESAM, OVERHEAD, 0.4,
        AT_MOST, 0.1, "at most 40%, and a tenth of it; at the published beta 0.6 and gamma 0.5, with either mask",
        f"{_WEIGHTS}, masks, and the selection",
    ),
    "looksam": Claim(
        ("looksam",), f"LookSAM costs about (1 + 1/k) of the base optimizer, k = {LOOKSAM_K}",
        "Liu et al. 2022, arXiv 2203.02714", STEP, 1 + 1 / LOOKSAM_K, WITHIN, 0.1, "within 10% of 1 + 1/k",
        f"{_WEIGHTS} every k-th step, two norms and the kept direction added in the others",
    ),
    "saf": Claim(
        ("saf",), "SAF costs about as much as the base optimizer", "Du et al. 2022, arXiv 2205.14083", STEP, 1.0, AT_MOST, 0.1,
        "at most 1.1 times the base optimizer", "the divergence, and logits read from the store and written to it",
    ),
    "ausam": Claim(
        ("ausam",), "AUSAM is over 70% faster than SAM", _AUSAM, RATE, 1.7, AT_LEAST, 0.0,
        "first reading, that of a rate: at least 1.7 times SAM's steps per second, 41% of its time saved. No tolerance, since "
        "'over' is a bound already; at our default, half of the batch", _HALF,
    ),
    "ausam-time": Claim(
        ("ausam",), "AUSAM is over 70% faster than SAM", _AUSAM, SAVED, 0.7, AT_LEAST, 0.0,
        "second reading, that of time: at least 70% of SAM's time saved, 3.3 times its steps per second. Half of the batch in "
        "both passes saves 50% at the most", _HALF,
    ),
}  # fmt: skip
"""By name. Rules and tolerances are fixed here, before anything is measured."""


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim about one method on one model."""

    claim: str
    member: str
    measured: float | None
    from_passes: float | None
    """What the counted passes alone would make it."""
    verdict: str
    reason: str = ""
    """Why it does not hold, or was not measured."""


def cost_of_passes(member: str, passes: tuple[float, float]) -> float:
    """Return passes in units of SGD's one forward and one backward pass, a backward pass counted as two forward ones.

    Half of a backward pass is the weights' gradients; ESAM with a mask by tensor does not form those of unperturbed tensors
    in its first one.

    Args:
        member: Name of the member.
        passes: Forward and backward passes over the batch per step.

    Example:
        >>> round(cost_of_passes("esam", (2.5, 1.5)), 2), round(cost_of_passes("esam-tensor", (2.5, 1.5)), 2)
        (1.83, 1.7)
    """
    forward, backward = passes
    unformed = (1 - ESAM_BETA) / 2 if member == "esam-tensor" else 0.0
    return (forward + 2 * (backward - unformed)) / 3


def judge_claims(
    ratios: Mapping[str, float],
    reasons: Mapping[str, str] | None = None,
    *,
    passes: Mapping[str, tuple[float, float]] | None = None,
    claims: Mapping[str, Claim] | None = None,
) -> list[ClaimVerdict]:
    """Hold measured ratios of one model against the claims.

    Args:
        ratios: Seconds of a step divided by SGD's, by member.
        reasons: Why a member that was asked for has no ratio; its claims stay open. Members that were not asked for leave
            their claims out.
        passes: Counted forward and backward passes per step, by member; they say how much of a cost is passes.
        claims: By name; `CLAIMS` by default.

    Returns:
        One verdict per claim and member.

    Example:
        >>> [one.verdict for one in judge_claims({"sam": 2.0, "looksam": 1.25, "ausam": 1.1})]
        ['held', 'held', 'held', 'not held']
    """
    reasons, passes = reasons or {}, passes or {}
    found = []
    for name, claim in (CLAIMS if claims is None else claims).items():
        for member in claim.members:
            needed = (member, "sam") if claim.quantity in (RATE, SAVED) else (member,)
            absent = [one for one in needed if one not in ratios]
            if any(one not in reasons for one in absent):
                continue
            if absent:
                why = "; ".join(f"{one}: {reasons[one]}" for one in absent)
                found.append(ClaimVerdict(name, member, None, None, OPEN, why))
                continue
            measured = claim.measured(ratios[member], ratios.get("sam", float("nan")))
            alone = None
            if all(one in passes for one in needed):
                costs = {one: cost_of_passes(one, passes[one]) for one in needed}
                alone = claim.measured(costs[member], costs.get("sam", float("nan")))
            if claim.holds(measured):
                found.append(ClaimVerdict(name, member, measured, alone, HELD))
            else:
                found.append(
                    ClaimVerdict(name, member, measured, alone, NOT_HELD, _why(claim, measured, alone, ratios.get("sgd")))
                )
    return found


def _why(claim: Claim, measured: float, alone: float | None, sgd: float | None) -> str:
    """Say in a sentence what keeps the number from fitting, where the counted passes tell."""
    if claim.is_cheaper(measured):
        return "It is cheaper than claimed."
    if alone is None:
        return ""
    if not claim.holds(alone):
        return f"Its passes alone, B counted as 2F, make it {alone:.2f}."
    own = "" if sgd is None else f"; noisesam's own SGD step is at {sgd:.2f} of torch's"
    return f"Passes alone would make it {alone:.2f}; on top comes what is no pass: {claim.beside}{own}."
