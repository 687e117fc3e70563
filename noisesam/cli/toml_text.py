"""A configuration written back as TOML, in the form that `noisesam train` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def to_toml(config: Mapping[str, Any]) -> str:
    """Write nested sections as TOML; a value of None is a comment, since TOML has no none.

    Args:
        config: Plain values first level, sections one below, as `config_to_dict` gives them.

    Returns:
        The text, ending in a newline.

    Example:
        >>> print(to_toml({"seed": 0, "model": {"name": "mlp", "options": {"hidden": [128]}}}), end="")
        seed = 0
        <BLANKLINE>
        [model]
        name = "mlp"
        options = { hidden = [128] }
    """
    lines = [_line(key, value) for key, value in config.items() if not isinstance(value, Mapping)]
    for section, values in config.items():
        if isinstance(values, Mapping):
            lines += ["", f"[{_key(section)}]"]
            lines += [_line(key, value) for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    return f"# {key}: none" if value is None else f"{_key(key)} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return _text(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(value: str) -> str:
    # JSON's escapes are TOML's too; DEL is the one character that JSON leaves as it is and TOML forbids.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
