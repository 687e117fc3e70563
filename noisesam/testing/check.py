"""Run the laws on one method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from noisesam.errors import NoisesamError, unknown_name
from noisesam.methods import Method
from noisesam.testing.laws import LAWS


class MethodCheckError(NoisesamError, AssertionError):
    """A method breaks laws of the family."""


@dataclass(frozen=True)
class LawReport:
    """What one law says of a method."""

    law: str
    holds: bool
    found: str = ""
    """What is wrong, in words."""


def check_method(factory: Callable[[nn.Module], Method], *, skip: Iterable[str] = (), raises: bool = True) -> list[LawReport]:
    """Check a method against every law of the family.

    The laws run on small float64 networks on the CPU and take about a second in all. Weights are restored to the bit, also
    after an exception in any pass; state goes round and a run resumes to the bit; counted passes are those that were made;
    declared limits are verified; the order of the batch, the loss scale, dropout, BatchNorm, zero gradients, frozen, tied
    and half-precision weights, micro-batches and non-finite losses are handled as the family does.

    Args:
        factory: Builds the method for a model, such as `lambda model: MyMethod(model, rho=0.1)`. Choose hyper-parameters with
            which everything that the method remembers comes into play within two epochs.
        skip: Laws that do not apply, by name; a reader will ask why.
        raises: False to return what was found instead of raising.

    Returns:
        One report per law.

    Raises:
        MethodCheckError: A law is broken.
        InputError: A law to skip does not exist.

    Example:
        >>> from noisesam.methods.sam import SAM
        >>> all(report.holds for report in check_method(lambda model: SAM(model, rho=0.1)))
        True
    """
    skipped = set(skip)
    for name in skipped:
        if name not in LAWS:
            raise unknown_name("law", name, LAWS)
    reports = []
    for name, holds in LAWS.items():
        if name in skipped:
            continue
        try:
            found = holds(factory)
        except Exception as error:  # whatever a stranger's method raises is a finding, not the end of the suite
            found = f"it raises {type(error).__name__}: {error}"
        reports.append(LawReport(name, not found, found))
    broken = [f"{report.law}: {report.found}" for report in reports if not report.holds]
    if broken and raises:
        raise MethodCheckError(
            f"{len(broken)} of {len(reports)} laws are broken: " + "; ".join(broken), expected="every law of the family to hold"
        )
    return reports
