"""The small problem on which laws are checked: models with dropout, BatchNorm, tied or frozen weights, and their batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noisesam.methods import Method, StepResult

Model = TypeVar("Model", bound=nn.Module)
Factory = Callable[[nn.Module], Method]
EXAMPLES, FEATURES, CLASSES = 8, 5, 3
ROUNDING = 1e-10
"""Relative; float64 over sums of a few hundred products leaves much less."""


class TiedNetwork(nn.Module):
    """A network that uses one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(FEATURES, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        return self.last(torch.tanh(self.shared(torch.tanh(self.shared(torch.tanh(self.first(inputs)))))))


def network(*, dropout: float = 0.0, batch_norm: bool = False, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Return a perceptron with fixed weights."""
    normalisation: list[nn.Module] = [nn.BatchNorm1d(7)] if batch_norm else []
    layers = [nn.Linear(FEATURES, 7), *normalisation, nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 6), nn.Tanh()]
    return with_fixed_weights(nn.Sequential(*layers, nn.Linear(6, CLASSES)).to(dtype))


def with_fixed_weights(model: Model) -> Model:
    """Draw every weight from a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.copy_(drawn / max(1, parameter.shape[-1]) ** 0.5)
    return model


@dataclass(frozen=True)
class Examples:
    """A batch with the examples' places in their data set."""

    inputs: Tensor
    targets: Tensor
    index: Tensor

    def permuted(self, order: Tensor) -> Examples:
        """Return the same examples in another order."""
        return Examples(self.inputs[order], self.targets[order], self.index[order])


def batch(number: int = 0, *, dtype: torch.dtype = torch.float64) -> Examples:
    """Return a batch; the same examples come again every second one."""
    generator = torch.Generator().manual_seed(number % 2)
    inputs = torch.randn(EXAMPLES, FEATURES, dtype=torch.float64, generator=generator).to(dtype)
    targets = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
    return Examples(inputs, targets, torch.arange(EXAMPLES) * 3 + 100 * (number % 2))


def step(method: Method, examples: Examples, **options: Any) -> StepResult:
    """Take one step's gradient."""
    return method.backward(examples.inputs, examples.targets, index=examples.index, **options)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of `.grad` by name."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def warmed(factory: Factory, model: nn.Module, steps: int = 4) -> Method:
    """Return the method after some steps of SGD, two to an epoch, so that its averages and stores hold something."""
    method = factory(model)
    dtype = next(model.parameters()).dtype
    for number in range(steps):
        if number % 2 == 0:
            method.start_epoch(number // 2)
        model.zero_grad()
        step(method, batch(number, dtype=dtype))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)
    model.zero_grad()
    method.start_epoch(steps // 2)
    return method


def twin(factory: Factory, model: Model, method: Method) -> tuple[Model, Method]:
    """Return a copy of the model, and the method on it with the state handed over through `state_dict`."""
    other = copy.deepcopy(model)
    copied = factory(other)
    copied.start_epoch(0)
    copied.load_state_dict(_in_another_order(copy.deepcopy(method.state_dict())))
    return other, copied


def _in_another_order(state: Any) -> Any:
    """Return the same entries the other way round: a file need not keep their order."""
    return {key: _in_another_order(state[key]) for key in reversed(state)} if isinstance(state, dict) else state


def leaves(value: Any, path: str = "state") -> Iterator[tuple[str, Any]]:
    """Yield what a nested state holds, with where."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{number}]")
    else:
        yield path, value


def same_state(first: Any, second: Any) -> bool:
    """Whether two states are equal to the bit."""
    one, two = (sorted(leaves(state), key=lambda leaf: leaf[0]) for state in (first, second))
    return [path for path, _ in one] == [path for path, _ in two] and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for (_, a), (_, b) in zip(one, two, strict=True)
    )


def bits(model: nn.Module) -> list[Tensor]:
    """Return copies of all weights and buffers."""
    return [value.detach().clone() for value in model.state_dict().values()]


def same_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal to the bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference over the norm of what is expected, infinite where the names differ."""
    if set(found) != set(expected):
        return float("inf")
    gap = sum(float((found[name].double() - expected[name].double()).square().sum()) for name in expected)
    size = sum(float(value.double().square().sum()) for value in expected.values())
    return (gap / size) ** 0.5 if size > 0 else gap**0.5
