"""The claims C1 to C13 and their verdicts: rules stated before any run, decided by intervals over seeds. No torch.

    CLAIMS                                   name -> Claim(name, statement, tested, rule, kinds, decide)
    judge(evidence, toy=None) -> DataFrame   one row per claim and setting: what it says, and why
    verdicts(table) -> DataFrame             one row per claim over the settings
    comparisons(evidence, toy=None)          one row per number behind a verdict, as numbers

What a setting does not hold is "not tested" with the reason; every claim has a row for every setting.
docs/claims.md says what would count for and against each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from noisesam.reproduce.claims_list import CLAIMS
from noisesam.reproduce.decisions import MIXED, REFUTED, SUPPORTED, UNDECIDED, UNTESTED
from noisesam.reproduce.evidence import Evidence
from noisesam.reproduce.evidence_toy import evidence_of_toy
from noisesam.reproduce.toy import ToyResult

__all__ = ["CLAIMS", "comparisons", "judge", "verdicts"]

NO_SETTING = "no setting was run"

JUDGED = ("claim", "statement", "setting", "verdict", "estimate", "reason", "seeds")
COMPARED = ("claim", "setting", "what", "value", "low", "high", "seeds", "scale", "verdict")
OVERALL = (
    "claim",
    "statement",
    "verdict",
    "settings",
    *(name.replace(" ", "_") for name in (SUPPORTED, REFUTED, UNDECIDED, UNTESTED)),
)


def judge(evidence: Sequence[Evidence], toy: ToyResult | None = None) -> pd.DataFrame:
    """Decide every claim in every setting.

    Args:
        evidence: One piece per setting of saved runs.
        toy: The tables of the toy, whose settings are judged by the same rules.

    Returns:
        One row per claim and setting: claim, statement, setting, verdict ("supported", "not supported", "undecided",
        "not tested"), estimate (the numbers with 95% intervals over seeds, paired by seed where they are differences), reason
        (why the verdict is not "supported", and which runs were left out), seeds (the fewest behind a number that decides).

    Example:
        >>> table = judge([])
        >>> len(table), set(table["verdict"])
        (13, {'not tested'})
    """
    every = [(one, one.exclusions) for one in _settings(evidence, toy)]
    rows = []
    for claim in CLAIMS.values():
        for one, exclusions in every:
            found = claim.judge(one)
            reason = "; ".join(text for text in (found.reason, *(f"left out: {name}" for name in exclusions)) if text)
            rows.append((claim.name, claim.statement, one.setting, found.verdict, found.estimate, reason, found.seeds))
        if not every:
            rows.append((claim.name, claim.statement, "", UNTESTED, "", NO_SETTING, 0))
    return pd.DataFrame(rows, columns=[*JUDGED])


def comparisons(evidence: Sequence[Evidence], toy: ToyResult | None = None) -> pd.DataFrame:
    """Return the numbers behind the verdicts.

    Args:
        evidence: As in `judge`.
        toy: As in `judge`.

    Returns:
        One row per claim, setting and number: what, value, low, high, seeds, scale ("points" and "share": fractions; "factor":
        natural logarithm of a ratio; "plain"), verdict (of this number alone; empty if it stands beside and decides nothing).
    """
    every = _settings(evidence, toy)
    rows = [
        (claim.name, one.setting, part.what, *part.found[:1], *part.found[2:], part.scale, part.verdict)
        for claim in CLAIMS.values()
        for one in every
        for part in claim.judge(one).parts
    ]
    return pd.DataFrame(rows, columns=[*COMPARED])


def _settings(evidence: Sequence[Evidence], toy: ToyResult | None) -> list[Evidence]:
    return [*(evidence_of_toy(toy) if toy is not None else ()), *evidence]


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Bring the rows of `judge` together over settings.

    Supported if at least one setting supports a claim and none speaks against it; not supported the other way round; mixed
    if there are both; undecided if none of the settings decides but one was a test; not tested otherwise.

    Args:
        table: The table of `judge`.

    Returns:
        One row per claim: claim, statement, verdict, settings (which verdict in which, in words), and the names of the
        settings by verdict: supported, not_supported, undecided, not_tested.

    Example:
        >>> rows = [("C1", "", "a", "supported", "", "", 3), ("C1", "", "b", "not supported", "", "", 3)]
        >>> one = verdicts(pd.DataFrame(rows, columns=[*JUDGED])).iloc[0]
        >>> one["verdict"], one["settings"]
        ('mixed', 'supported in a; not supported in b')
    """
    rows = []
    for name, own in table.groupby("claim", sort=False):
        by_verdict = {
            verdict: ", ".join(str(setting) for setting in own.loc[own["verdict"] == verdict, "setting"] if setting)
            for verdict in (SUPPORTED, REFUTED, UNDECIDED, UNTESTED)
        }
        present = set(own["verdict"])
        if {SUPPORTED, REFUTED} <= present:
            overall = MIXED
        else:
            overall = next(verdict for verdict in (SUPPORTED, REFUTED, UNDECIDED, UNTESTED) if verdict in present)
        where = "; ".join(f"{verdict} in {names}" for verdict, names in by_verdict.items() if names and verdict != UNTESTED)
        rows.append((name, own["statement"].iloc[0], overall, where, *by_verdict.values()))
    return pd.DataFrame(rows, columns=[*OVERALL])
