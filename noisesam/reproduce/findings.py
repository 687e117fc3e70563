"""What one setting says on one claim, and the conditions that every setting has to meet before it says anything."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from noisesam.reproduce.decisions import UNTESTED, Part, above, together, untested
from noisesam.reproduce.evidence import EARLY, MAIN, Evidence

GAIN = 0.01
"""The smallest difference in accuracy that counts: one percentage point."""
FACTOR = math.log(1.05)
"""The smallest ratio that counts, as a logarithm: five per cent more."""
FITTED = 0.5
"""The share of the wrong labels that SGD has to reproduce at the end of training."""

SGD, SAM, ONE_SAM, L_SAM, J_SAM, REG_SGD = "sgd", "sam", "1-sam", "l-sam", "j-sam", "reg-sgd"


@dataclass(frozen=True)
class Finding:
    """What one setting says on one claim.

    Attributes:
        verdict: One of SUPPORTED, REFUTED, UNDECIDED, UNTESTED.
        parts: The comparisons, those that decide first.
        reason: Why the verdict is not SUPPORTED; empty where the numbers say it all.
    """

    verdict: str
    parts: tuple[Part, ...] = ()
    reason: str = ""

    @property
    def estimate(self) -> str:
        """The numbers with their intervals: those that decide, then those beside."""
        deciding = [str(part) for part in self.parts if part.verdict and part.found.n]
        beside = [str(part) for part in self.parts if not part.verdict and part.found.n]
        said = "; ".join(deciding)
        if beside:
            said += ("; " if said else "") + "beside: " + "; ".join(beside)
        return said

    @property
    def seeds(self) -> int:
        """The smallest number of seeds, or pairs, behind a number that decides; 0 if there is none."""
        return min((part.found.n for part in self.parts if part.verdict and part.found.n), default=0)


@dataclass(frozen=True)
class Claim:
    """One claim of docs/mechanism.md with the rule by which it is decided.

    Attributes:
        name: C1 to C13.
        statement: The claim, in our words.
        tested: Where it is tested.
        rule: The decision rule, stated before any run.
        kinds: The kinds of setting that the claim is on; in others the numbers are given and nothing is decided.
        decide: The rule as a function of a setting that meets the conditions.
    """

    name: str
    statement: str
    tested: str
    rule: str
    kinds: tuple[str, ...]
    decide: Callable[[Evidence], Finding]

    def judge(self, evidence: Evidence) -> Finding:
        """Return what a setting says on the claim."""
        reason = shows_nothing(evidence)
        if reason:
            return Finding(UNTESTED, (), reason)
        found = self.decide(evidence)
        if evidence.kind in self.kinds:
            return found
        return dataclasses.replace(found, verdict=UNTESTED, reason=f"a claim on {' and '.join(self.kinds)} models")


def shows_nothing(evidence: Evidence, variant: str = MAIN) -> str:
    """Say why a setting, or a variant of it, shows nothing on label noise; empty if it can."""
    lacking = evidence.lacking([SGD], variant)
    if lacking:
        return lacking
    fitted = evidence.mean(SGD, "last_noisy_fitted", variant)
    if not fitted.n:
        return "it is not known which labels are wrong"
    if fitted.mean < FITTED:
        share = f"{100 * fitted.mean:.0f}% of them at the end, at least {100 * FITTED:.0f}% needed"
        return f"SGD did not fit the wrong labels ({share})"
    return ""


def conclude(*parts: Part) -> Finding:
    """Return the finding of a claim that holds only if all of its deciding parts do."""
    verdict, reason = together(parts)
    ordered = sorted(parts, key=lambda part: not part.verdict)
    return Finding(verdict, tuple(ordered), reason)


def open_because(reason: str, *parts: Part) -> Finding:
    """Return that nothing was tested, and why; numbers may stand beside."""
    return Finding(UNTESTED, parts, reason)


def gain_above(
    evidence: Evidence,
    method: str,
    over: str,
    *,
    column: str = "early_test_accuracy",
    variant: str = MAIN,
    margin: float = GAIN,
) -> Part:
    """Decide whether a method's accuracy is above another's, or say which of them was not run."""
    what = f"{method} over {over}" + (f" {evidence.early}" if column.startswith("early_") else "")
    what += "" if variant == MAIN else f", {variant}"
    lacking = evidence.lacking([method, over], variant)
    return untested(what, lacking) if lacking else above(what, evidence.gain(method, over, column, variant), margin)


def gains_beside(evidence: Evidence, method: str, over: str, columns: Sequence[str] = ("oracle", "last")) -> list[Part]:
    """Return the differences at the other ends of training, labelled; they decide nothing."""
    names = {"oracle": EARLY["oracle"], "last": "at the end"}
    chosen = [name for name in columns if name != evidence.selection]
    return [Part(names[name], evidence.gain(method, over, f"{name}_test_accuracy")) for name in chosen]
