"""What an exact per-example step costs on this machine, beside everything else that computes the same numbers."""

from noisesam.bench.contenders import CONTENDERS, Contender
from noisesam.bench.models import MODELS, BenchModel
from noisesam.bench.report import write_report
from noisesam.bench.suite import Plan, plan, run
from noisesam.bench.targets import TARGETS, Target, judge

__all__ = [
    "CONTENDERS",
    "MODELS",
    "TARGETS",
    "BenchModel",
    "Contender",
    "Plan",
    "Target",
    "judge",
    "plan",
    "run",
    "write_report",
]
