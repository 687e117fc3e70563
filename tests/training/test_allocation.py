"""Processes that train keep freed memory, unless the caller has settings of their own."""

from __future__ import annotations

import sys

import pytest

from noisesam.allocation import keep_freed_memory


def test_a_callers_own_settings_are_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    assert keep_freed_memory() is False


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert keep_freed_memory() is False
