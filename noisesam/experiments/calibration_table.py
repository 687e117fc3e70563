"""The committed table of what was chosen: one entry per sweep and method, with every try; a stale entry is refused."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from noisesam.errors import ConfigurationError
from noisesam.experiments.calibration import Choice, Try
from noisesam.runs.files import write_atomically
from noisesam.toml_text import parse_toml

HEADER = """\
# The hyper-parameters that each sweep's methods are run with. Written by `noisesam sweep FILE --calibrate`, not by hand.
# Taken is the try with the highest accuracy on noisy validation labels at its best epoch, mean over the tuning seeds.
"""


@dataclass(frozen=True)
class Calibration:
    """The table: what was chosen, by name of the sweep and method.

    Example:
        >>> choice = Choice("digits", "sam", {"rho": 0.1}, (100,), "-", (Try({"rho": 0.1}, 0.5, 3.0, False),), 0)
        >>> table = Calibration().with_choices([choice])
        >>> table.options("digits", "sam", "-")
        {'rho': 0.1}
        >>> table.options("digits", "sam", "of another grid")
        Traceback (most recent call last):
        noisesam.errors.ConfigurationError: the calibration table holds a choice for 'sam' in 'digits' that was made for another
        setting, grid or other tuning seeds. Expected one made for what the sweep states now. Run: noisesam sweep digits.toml
        --calibrate.
    """

    choices: dict[tuple[str, str], Choice] = field(default_factory=dict)
    path: Path | None = None
    """Where it was read from."""

    def options(self, sweep: str, method: str, digest: str) -> dict[str, Any]:
        """Return the hyper-parameters chosen for a method of a sweep.

        Args:
            sweep: Name of the sweep.
            method: Name of the method.
            digest: What the choice has to be made for, see `CalibrationPlan.digest`.

        Raises:
            ConfigurationError: Nothing was chosen yet, or it was chosen for something else.
        """
        choice = self.choices.get((sweep, method))
        if choice is not None and choice.digest == digest:
            return dict(choice.options)
        place = "the calibration table" if self.path is None else self.path.name
        what = f"choice for {method!r} in {sweep!r}"
        raise ConfigurationError(
            f"{place} holds no {what}"
            if choice is None
            else f"{place} holds a {what} that was made for another setting, grid or other tuning seeds",
            expected="one made for what the sweep states now",
            remedy=f"Run: noisesam sweep {self._file(sweep)} --calibrate",
        )

    def _file(self, sweep: str) -> str:
        """Return the sweep's file as it is typed: it lies beside the table, which is named from here where it lies below."""
        file = Path(f"{sweep}.toml") if self.path is None else self.path.with_name(f"{sweep}.toml")
        if file.is_absolute() and file.is_relative_to(Path.cwd()):
            file = file.relative_to(Path.cwd())
        return shlex.quote(file.as_posix())

    def with_choices(self, choices: list[Choice]) -> Calibration:
        """Return the table with choices added or replaced."""
        return replace(self, choices={**self.choices, **{(one.sweep, one.method): one for one in choices}})


def read_calibration(path: str | Path) -> Calibration:
    """Read the table; one that is not there yet is empty.

    Args:
        path: The file, by custom calibration.toml beside the sweep files.

    Raises:
        ConfigurationError: The file is no table of choices.
    """
    place = Path(path)
    if not place.exists():
        return Calibration(path=place)
    found = {}
    try:
        for sweep, methods in parse_toml(place.read_text(encoding="utf-8"), given=place.name, expected="tables").items():
            for method, said in methods.items():
                found[sweep, method] = _choice(sweep, method, said)
    except (ConfigurationError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{place.name} is no calibration table ({type(error).__name__}: {error})",
            expected="what `noisesam sweep FILE --calibrate` writes",
            remedy="Restore it from the repository, or delete it and calibrate again",
        ) from error
    return Calibration(found, place)


def _choice(sweep: str, method: str, said: dict[str, Any]) -> Choice:
    tries = tuple(
        Try(dict(one["options"]), float(one["validation_accuracy"]), float(one["best_epoch"]), bool(one["at_chance"]))
        for one in said["tries"]
    )
    seeds = tuple(int(seed) for seed in said["tuning_seeds"])
    choice = Choice(sweep, method, dict(said["options"]), seeds, str(said["digest"]), tries, int(said["taken"]))
    if not 0 <= choice.taken < len(tries):
        raise IndexError(f"{sweep}.{method} takes try {choice.taken} of {len(tries)}")
    return choice


def write_calibration(path: str | Path, calibration: Calibration) -> None:
    """Write the table, sorted by sweep and method; the same choices give the same bytes.

    Args:
        path: The file; it is replaced in one step.
        calibration: The table.

    Raises:
        RunError: It cannot be written.

    Example:
        >>> import tempfile
        >>> choice = Choice("digits", "sam", {"rho": 0.1}, (100,), "-", (Try({"rho": 0.1}, 0.5, 3.0, False),), 0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_calibration(Path(folder) / "table.toml", Calibration().with_choices([choice]))
        ...     read_calibration(Path(folder) / "table.toml").choices["digits", "sam"] == choice
        True
    """
    lines = [HEADER]
    for (sweep, method), choice in sorted(calibration.choices.items()):
        table = f"{_key(sweep)}.{_key(method)}"
        lines += [
            f"[{table}]",
            f"options = {_value(choice.options)}",
            f"taken = {choice.taken}",
            f"tuning_seeds = {_value(choice.tuning_seeds)}",
            f"digest = {_value(choice.digest)}",
        ]
        for one in choice.tries:
            lines += [
                f"[[{table}.tries]]",
                f"options = {_value(one.options)}",
                f"validation_accuracy = {_value(one.validation_accuracy)}",
                f"best_epoch = {_value(one.best_epoch)}",
                f"at_chance = {_value(one.at_chance)}",
            ]
        lines.append("")
    write_atomically(Path(path), "\n".join(lines).encode())


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _value(value: Any) -> str:
    """Return a value in TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(key))} = {_value(one)}" for key, one in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return _text(value) if isinstance(value, str) else repr(value)


def _text(value: str) -> str:
    # JSON's escapes are TOML's too; DEL is the one character that JSON leaves as it is and TOML forbids.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
