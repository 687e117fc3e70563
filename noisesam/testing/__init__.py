"""The conformance suite of methods: what every member of the family keeps, for third parties to run on theirs."""

from __future__ import annotations

from noisesam.testing.check import LawReport, MethodCheckError, check_method

__all__ = ["LawReport", "MethodCheckError", "check_method"]
