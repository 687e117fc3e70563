"""The engine for what no other one sees: the model's own weights are moved, one example after the other.

Every example runs alone, forward and backward, while the memory of the parameters holds w + eps_i; then w is put back, bit for
bit. Whatever a model does with its parameters it then does at w + eps_i: what it reads through a view that it keeps, and what
a function of its own computes again in the reverse pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor, nn

from noisesam.gradients.batch import Inputs, batch_size, devices_of, take
from noisesam.gradients.factors import Dense, Factor
from noisesam.gradients.per_example_gradient import PerExampleGradient
from noisesam.gradients.plain import named_plain_gradients
from noisesam.gradients.points import Engine, Point
from noisesam.gradients.randomness import RandomState
from noisesam.gradients.recomputation import evaluate

FIRST_VERSION = 2**31
"""Versions of moved weights: torch counts in 32 bits, and no training comes to the upper half by itself."""
_MOVES = count()


class MovedWeightsEngine(Engine):
    """Run every example alone with the weights themselves moved: exact for any model that plain autograd is right for."""

    name = "moved-weights"
    forwards_per_pull_back = 1

    def at(
        self,
        inputs: Inputs,
        perturbation: Mapping[str, Factor] | None = None,
        *,
        previous: Point | None = None,
        consume: bool = False,
        perturbed_passes: int = 2,
    ) -> Point:
        """Evaluate every example alone at w, or at w + eps_i."""
        del previous, consume, perturbed_passes
        return _MovedPoint(self.model, self.parameters, inputs, perturbation or {})


class _MovedPoint(Point):
    """The evaluation, which a pull-back repeats with the same random draws: no graph outlives its weights."""

    def __init__(
        self, model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Inputs, perturbation: Mapping[str, Factor]
    ) -> None:
        self._model, self._parameters, self._inputs, self._perturbation = model, parameters, inputs, perturbation
        self._examples = batch_size(inputs)
        self._devices = devices_of(model)
        self._state = RandomState.capture(self._devices)
        rows: list[Tensor] = []
        self._visit(lambda _, output: rows.append(output.detach().clone()))  # it may be a view of a weight
        self.logits = torch.cat(rows)

    def per_example_gradient(self, cotangent: Tensor, *, keep: bool = False, perturbed_passes: int = 2) -> PerExampleGradient:
        """Return the gradients as stacked copies of the weights."""
        del keep, perturbed_passes
        stacked: dict[str, Tensor] = {}

        def write(example: int, name: str, gradient: Tensor) -> None:
            if name not in stacked:
                stacked[name] = gradient.new_zeros(self._examples, *gradient.shape)
            stacked[name][example] = gradient

        self._pull_back(cotangent, write)
        return PerExampleGradient({name: Dense(rows) for name, rows in stacked.items()}, self._examples)

    def sum_gradient(self, cotangent: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        """Return the gradients summed over the examples, of which one is there at a time."""
        del keep
        total: dict[str, Tensor] = {}

        def add(example: int, name: str, gradient: Tensor) -> None:
            del example
            total[name] = total[name].add_(gradient) if name in total else gradient.clone()

        self._pull_back(cotangent, add)
        return {name: total[name] for name in self._parameters if name in total}

    def _pull_back(self, cotangent: Tensor, receive: Callable[[int, str, Tensor], None]) -> None:
        def pull(example: int, output: Tensor) -> None:
            if not output.requires_grad:
                return
            with torch.autocast(output.device.type, enabled=False):
                share = cotangent[example : example + 1].to(output.dtype)
                found = named_plain_gradients(self._parameters, output, share, retain_graph=True)  # part of it may be kept
            for name, gradient in found.items():
                if gradient is not None:
                    receive(example, name, gradient)

        after = RandomState.capture(self._devices)
        self._state.restore()
        try:
            self._visit(pull)
        finally:
            after.restore()

    def _visit(self, see: Callable[[int, Tensor], None]) -> None:
        """Show every example's output, with its graph, while the weights are where that example has them."""
        with torch.enable_grad(), movable({name: self._parameters[name] for name in self._perturbation}) as move:
            for example in range(self._examples):
                one = slice(example, example + 1)
                for name, factor in self._perturbation.items():
                    move(name, factor.of(one).dense()[0])
                torch.clear_autocast_cache()  # it knows a parameter's cast by its number, not by what has become of it
                see(example, evaluate(self._model, take(self._inputs, one)))


@contextmanager
def movable(parameters: Mapping[str, nn.Parameter]) -> Iterator[Callable[[str, Tensor], None]]:
    """Lend a function that writes w + eps into the memory of a parameter, seen by whoever shares it; put w back at the end.

    Through `.data`, which autograd does not count as a change: no graph of the caller's is spoilt, since w is back before it is
    used. A model that keeps what it has computed of a parameter until the version of that parameter changes must see the
    change all the same: while moved, the parameter has a version that it has never had, and its own again with w.
    """
    own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    versions = {name: parameter._version for name, parameter in parameters.items()}

    def move(name: str, eps: Tensor) -> None:
        torch.add(own[name], eps.to(own[name].dtype), out=parameters[name].data)
        _renumber(parameters[name])

    try:
        yield move
    finally:
        for name, parameter in parameters.items():
            parameter.data.copy_(own[name])
            _set_version(parameter, versions[name])
        torch.clear_autocast_cache()


def renumber(parameters: Iterable[Tensor]) -> None:
    """Give parameters versions that they have never had, for good: what was kept of them is to be computed anew."""
    for parameter in parameters:
        _renumber(parameter)


def _renumber(parameter: Tensor) -> None:
    _set_version(parameter, FIRST_VERSION + next(_MOVES) % FIRST_VERSION)


def _set_version(parameter: Tensor, version: int) -> None:
    torch._C._autograd._unsafe_set_version_counter((parameter,), (version,))  # pyright: ignore[reportAttributeAccessIssue]
