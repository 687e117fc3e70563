"""What methods with a rule by epoch share: they must be told when an epoch starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from noisesam.errors import InputError
from noisesam.methods.base import Method
from noisesam.methods.checks import check_count, saved_count


class EpochMethod(Method):
    """A method that changes with the epoch; `start_epoch` must be called before its first step."""

    _epoch: int | None = None

    @property
    def epoch(self) -> int:
        """The present epoch, from 0.

        Raises:
            InputError: `start_epoch` was never called.
        """
        if self._epoch is None:
            raise InputError(
                f"A step of {self.name!r} before start_epoch was called",
                expected="method.start_epoch(epoch) at the start of every epoch, from 0",
                remedy="Call it in the training loop: the rule changes with the epoch.",
            )
        return self._epoch

    def start_epoch(self, epoch: int) -> None:
        """Tell the method that an epoch starts."""
        self._epoch = check_count("epoch", epoch, at_least=0, remedy="Count epochs from 0: method.start_epoch(0) first.")

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return {**super().state_dict(), "epoch": -1 if self._epoch is None else self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        epoch = saved_count(state, "epoch")
        super().load_state_dict(state)
        self._epoch = None if epoch < 0 else epoch
