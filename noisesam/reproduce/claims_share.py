"""Claims on shares of 1-SAM's gain: which part of it another method keeps (C6, C8)."""

from __future__ import annotations

import math

from noisesam.analysis import share_of_gain
from noisesam.reproduce.decisions import MIN_SEEDS, REFUTED, UNDECIDED, Part, above, untested, within
from noisesam.reproduce.evidence import MAIN, NO_NOISE, Evidence
from noisesam.reproduce.findings import GAIN, J_SAM, L_SAM, ONE_SAM, REG_SGD, SGD, Finding, conclude

MOST, LITTLE = 2 / 3, 1 / 3
"""Shares of 1-SAM's gain: at least two thirds is "like 1-SAM", at most a third "like SGD" and "little", between is "half"."""


def jacobian_not_logit(evidence: Evidence) -> Finding:
    """C6: J-SAM keeps at least two thirds of 1-SAM's gain, L-SAM at most one third."""
    jacobian = share(evidence, J_SAM, MOST, math.inf)
    logit = share(evidence, L_SAM, -math.inf, LITTLE)
    differences = [
        Part(f"{name} over {other}{where}", evidence.gain(name, other, column))
        for where, column in (("", "early_test_accuracy"), (" at the end", "last_test_accuracy"))
        for name, other in ((J_SAM, ONE_SAM), (L_SAM, SGD))
    ]
    return conclude(jacobian, logit, *differences)


def regulariser_closes_half(evidence: Evidence) -> Finding:
    """C8: regularised SGD has between a third and two thirds of 1-SAM's gain with wrong labels, at most a third without."""
    noisy = share(evidence, REG_SGD, LITTLE, MOST)
    clean = share(evidence, REG_SGD, -math.inf, LITTLE, variant=NO_NOISE)
    differences = [
        Part(f"{name} over sgd{where}", evidence.gain(name, SGD, variant=variant))
        for where, variant in (("", MAIN), (" without wrong labels", NO_NOISE))
        for name in (REG_SGD, ONE_SAM)
    ]
    return conclude(noisy, clean, *differences)


def share(evidence: Evidence, method: str, low: float, high: float, *, variant: str = MAIN) -> Part:
    """Decide whether the share of 1-SAM's gain that a method has lies between two bounds.

    A share is one of something: where 1-SAM gains nothing the claim is not tested, where its gain is open so is the share.
    """
    what = f"{method}'s share of 1-sam's gain" + (" without wrong labels" if variant == NO_NOISE else "")
    lacking = evidence.lacking([method, ONE_SAM, SGD], variant)
    if lacking:
        return untested(what, lacking)
    gain = above("gain of 1-sam", evidence.gain(ONE_SAM, SGD, variant=variant), GAIN)
    own, base, best = (evidence.values(name, "early_test_accuracy", variant) for name in (method, SGD, ONE_SAM))
    found = share_of_gain(own, base, best)
    if gain.verdict == REFUTED:
        return untested(what, f"1-sam has no gain{' without wrong labels' if variant == NO_NOISE else ''} to share")
    if gain.verdict == UNDECIDED and found.n >= MIN_SEEDS:
        return Part(what, found, "share", UNDECIDED, f"1-sam's own gain is open: {what}")
    return within(what, found, low, high, "share")
