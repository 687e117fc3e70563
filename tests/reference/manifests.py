"""Manifests of saved runs, changed as a stranger or a text editor would change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def altered(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` change the manifest of a run in place."""
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
