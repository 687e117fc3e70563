"""What one evaluation of one chunk carries: its perturbation going in, the factors of its gradients coming out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.factors import Dense, Factor, PerExampleGradient, combine


class UnrepeatableForwardError(InputError):
    """A model uses its parameters differently in the two passes of a step."""


class Tape:
    """The state that the rules of one evaluation share.

    A pull-back records the per-example gradients (`recording`), forms the shared weight gradients (`sharing`), or both.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        examples: int,
        perturbation: Mapping[str, Factor] | None = None,
        previous: Tape | None = None,
        prefers_second: bool = False,
        consume: bool = False,
    ) -> None:
        self.examples = examples
        self.prefers_second = prefers_second
        self.recording = False
        self.sharing = True
        self.norms_only = False
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._perturbation = perturbation or {}
        self._factors: dict[str, list[Factor]] = defaultdict(list)
        self._first_outputs: dict[int, tuple[Tensor, Tensor, int]] = {}
        self._channels_last: dict[int, tuple[Tensor, int]] = {}
        self._previous = previous
        self._consume = consume
        self._uses: Counter[int] = Counter()

    @contextmanager
    def mode(self, *, recording: bool, sharing: bool, norms_only: bool = False) -> Iterator[None]:
        """Say for the length of a block what a pull-back forms; an exception leaves no half of a record behind."""
        before = self.recording, self.sharing, self.norms_only
        self.recording, self.sharing, self.norms_only = recording, sharing, norms_only
        try:
            yield
        finally:
            self.recording, self.sharing, self.norms_only = before
            self._factors.clear()

    def tracks(self, value: object) -> bool:
        """Whether this object is a trainable parameter of the model."""
        return id(value) in self._names

    def name(self, parameter: Tensor) -> str:
        """Return the parameter's name."""
        return self._names[id(parameter)]

    def perturbation(self, parameter: Tensor | None) -> Factor | None:
        """Return eps_i of this parameter, or None where it is not perturbed."""
        if parameter is None or id(parameter) not in self._names:
            return None
        self._uses[id(parameter)] += 1
        factor = self._perturbation.get(self._names[id(parameter)])
        if not self._consume or self._previous is None or not isinstance(factor, Dense):
            return factor
        if self._previous._uses[id(parameter)] != 1:
            return factor
        if self._uses[id(parameter)] > 1:
            raise UnrepeatableForwardError(
                f"The parameter {self.name(parameter)!r} is used more often at w + eps than at w",
                expected="a forward pass that uses every parameter as often when it is repeated",
                remedy="Use engine='reference', or take what changes from call to call out of the model.",
            )
        return factor.for_one_use()

    def record(self, parameter: Tensor, factor: Factor) -> None:
        """Add one contribution to the parameter's per-example gradient."""
        self._factors[self._names[id(parameter)]].append(factor)

    def take_gradient(self) -> PerExampleGradient:
        """Return what was recorded, summed over uses, and forget it."""
        factors = {name: combine(found) for name, found in self._factors.items()}
        self._factors.clear()
        return PerExampleGradient(factors, self.examples)

    def remember_first(self, weight: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """Keep what a layer made of the data themselves: at w + eps_i its input is the same."""
        if not inputs.requires_grad:
            # Detached, but with the same version counter: a tape that held its own graph would never be freed.
            self._first_outputs[id(weight)] = (inputs, outputs.detach(), outputs._version)

    def channels_last(self, kernel: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a convolution's kernel with its channels last in memory, written out once for all passes of a step."""
        for tape in (self, self._previous):
            found = None if tape is None else tape._channels_last.get(id(kernel))
            if found is not None and found[0].dtype == dtype and found[1] == kernel._version:
                self._channels_last[id(kernel)] = found
                return found[0]
        arranged = kernel.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self._channels_last[id(kernel)] = (arranged, kernel._version)
        return arranged

    def recall_first(self, weight: Tensor, inputs: Tensor) -> Tensor | None:
        """Return the previous evaluation's output of this layer if it saw the very same data and nothing changed it."""
        if self._previous is None or inputs.requires_grad:
            return None
        found = self._previous._first_outputs.get(id(weight))
        if found is None:
            return None
        before, outputs, version = found
        same = before.data_ptr() == inputs.data_ptr() and before.shape == inputs.shape and before.stride() == inputs.stride()
        return outputs if same and outputs._version == version and before._version == inputs._version else None
