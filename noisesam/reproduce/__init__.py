"""The published experiments as runnable form: the toy, the evidence that runs give, and a verdict on every claim.

Nothing here is loaded before it is used: tables and verdicts need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisesam.reproduce.claims import CLAIMS as CLAIMS
    from noisesam.reproduce.claims import comparisons as comparisons
    from noisesam.reproduce.claims import judge as judge
    from noisesam.reproduce.claims import verdicts as verdicts
    from noisesam.reproduce.controls import CONTROLS as CONTROLS
    from noisesam.reproduce.controls import judge_control as judge_control
    from noisesam.reproduce.controls_runs import read_control as read_control
    from noisesam.reproduce.evidence_runs import evidence_of as evidence_of
    from noisesam.reproduce.toy import ToyResult as ToyResult
    from noisesam.reproduce.toy import toy_grid as toy_grid

_LAZY = {
    "CLAIMS": "claims",
    "CONTROLS": "controls",
    "comparisons": "claims",
    "evidence_of": "evidence_runs",
    "judge": "claims",
    "judge_control": "controls",
    "read_control": "controls_runs",
    "verdicts": "claims",
    "ToyResult": "toy",
    "toy_grid": "toy",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"noisesam.reproduce.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'noisesam.reproduce' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
