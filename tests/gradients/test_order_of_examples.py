"""Examples that another batch of the same shape puts in another order, by whatever means: exact, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.loop import example_terms, mean_term, relative_error
from torch import Tensor, nn
from torch.nn import functional

from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for
from noisesam.gradients.engine.way import Way

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine"),
]
ONE_SAM = {"rho": 0.3, "jacobian_at": "perturbed", "residual_at": "perturbed"}
LABELS = torch.tensor([0, 1, 2, 0])
TOLERANCE = 1e-12
"""Rounding of float64 over sums of a few hundred products."""


def error(model: nn.Module, inputs) -> float:
    """Return how far 1-SAM is off from the loop over examples."""
    found = mixed_point_gradient(model, inputs, LABELS, **ONE_SAM)
    return relative_error(found, mean_term(example_terms(model, inputs, LABELS, 0.3), "1-sam"))


class Sorted(nn.Module):
    """Texts (4, 6, 5) of another length each, put in order for a recurrence, say, and back again."""

    def __init__(self, reorder):
        super().__init__()
        self.l, self.h, self.reorder = nn.Linear(5, 6), nn.Linear(6, 3), reorder

    def forward(self, x):
        order = x[..., 0].gt(-5).sum(1).argsort(descending=True, stable=True)
        z = torch.tanh(self.l(self.reorder(x, order))).mean(1)
        return self.h(self.reorder(z, order.argsort()))


def texts(*lengths: int) -> Tensor:
    x = torch.randn(4, 6, 5)
    for row, length in zip(x, lengths, strict=True):
        row[:, 0] = 1.0
        row[length:, 0] = -9.0
    return x


def by_take(x: Tensor, order: Tensor) -> Tensor:
    flat = x.flatten(1)
    return torch.take(flat, order[:, None] * flat.shape[1] + torch.arange(flat.shape[1])).view(x.shape)


def along_rows(order: Tensor, x: Tensor) -> Tensor:
    return order.view(-1, *[1] * (x.dim() - 1)).expand_as(x)


MEANS = {
    "an array": lambda x, order: x[order.numpy()],
    "a tensor of an array": lambda x, order: x[torch.tensor(order.numpy())],
    "an array as a tensor": lambda x, order: x[torch.as_tensor(order.numpy())],
    "an array's memory": lambda x, order: x[torch.from_numpy(order.numpy())],
    "a list": lambda x, order: x[order.tolist()],
    "a tensor of fractions": lambda x, order: x[torch.tensor([float(i) for i in order]).argsort().argsort()],
    "a tensor of an array's fractions": lambda x, order: x[
        torch.tensor([*order.numpy().astype("float32")]).argsort().argsort()
    ],
    "single numbers": lambda x, order: torch.stack([x[i] for i in order]),
    "slices by single numbers": lambda x, order: torch.cat([x[i : i + 1] for i in order]),
    "rows taken apart": lambda x, order: torch.stack([x.unbind(0)[i] for i in order.tolist()]),
    "rows run through": lambda x, order: torch.stack([list(x)[i] for i in order.tolist()]),
    "pieces": lambda x, order: torch.cat([x.split(1)[i] for i in order.tolist()]),
    "single selections": lambda x, order: torch.cat([x.index_select(0, i) for i in order]),
    "two indices": lambda x, order: x[order[:, None], torch.arange(x.shape[1])],
    "index_put": lambda x, order: torch.zeros_like(x).index_put((order.argsort(),), x),
    "take": by_take,
    "take_along_dim": lambda x, order: torch.take_along_dim(x, order.view(-1, *[1] * (x.dim() - 1)), 0),
    "scatter_reduce": lambda x, order: torch.zeros_like(x).scatter_reduce(0, along_rows(order.argsort(), x), x, "sum"),
    "a table of activations": lambda x, order: functional.embedding(order, x.flatten(1)).view(x.shape),
}


@pytest.mark.parametrize("means", MEANS)
def test_an_order_that_another_batch_brings_is_another_way(means):
    model = Sorted(MEANS[means])
    assert error(model, texts(6, 5, 4, 3)) <= TOLERANCE  # in order as they are: nothing moves
    for lengths in ((3, 6, 4, 5), (4, 3, 6, 5), (6, 5, 4, 3)):
        assert error(model, texts(*lengths)) <= TOLERANCE


def test_a_drawn_order_is_no_constant():
    class Shuffled(Sorted):
        def forward(self, x):
            order = torch.randperm(len(x))
            return self.h(torch.tanh(self.l(x[order])).mean(1)[order.argsort()])

    model, x = Shuffled(None), texts(6, 5, 4, 3)
    for seed in range(12):
        torch.manual_seed(seed)
        assert error(model, x) <= TOLERANCE
    assert engine_for(model, x).name != "fast"


class AlongAxis(nn.Module):
    """Tokens (n, T), read with the examples first or second as an attribute says."""

    def __init__(self, axis):
        super().__init__()
        self.embedding, self.axis = nn.Embedding(9, 6), axis

    def forward(self, tokens):
        z = torch.tanh(self.embedding(tokens.movedim(0, self.axis))).sum(-1).movedim(self.axis, 0)
        return z[:, :3] + z[:, 1:]


def test_an_axis_counted_from_the_end_is_told_from_the_one_before_it():
    assert hash(-1) == hash(-2)  # in Python, of all numbers
    model = AlongAxis(-2)
    for model.axis in (-2, -1, -2):
        assert error(model, torch.randint(0, 9, (4, 4))) <= TOLERANCE


def test_an_axis_given_as_an_array_s_number_is_a_number():
    class Transposed(AlongAxis):
        def forward(self, tokens):
            z = torch.tanh(self.embedding(tokens.transpose(np.int64(0), self.axis))).sum(2).transpose(0, self.axis)
            return z[:, :3] + z[:, 1:]

    model = Transposed(np.int64(0))
    for model.axis in (np.int64(0), np.int64(1), np.int64(0)):
        assert error(model, torch.randint(0, 9, (4, 4))) <= TOLERANCE


def test_the_same_calls_on_another_tensor_are_another_way():
    class Switched(AlongAxis):
        def forward(self, tokens):
            turned = tokens.transpose(0, 1)
            z = torch.tanh(self.embedding(turned if self.axis else tokens)).sum(2)
            back = z.transpose(0, 1)
            z = back if self.axis else z
            return z[:, :3] + z[:, 1:]

    model = Switched(False)
    for model.axis in (False, True, False):
        assert error(model, torch.randint(0, 9, (4, 4))) <= TOLERANCE


def test_a_softmax_over_the_examples_is_refused_after_one_over_the_classes():
    class Normalised(nn.Module):
        axis = -1

        def __init__(self):
            super().__init__()
            self.l, self.h = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.h(torch.tanh(self.l(x)).softmax(self.axis))

    model = Normalised()
    assert error(model, torch.randn(4, 5)) <= TOLERANCE
    model.axis = -2
    with pytest.raises(InputError, match="Normalised mixes the examples"):
        mixed_point_gradient(model, torch.randn(4, 5), LABELS, **ONE_SAM)


def test_what_computes_alike_goes_one_way_whatever_its_fractions_and_copies():
    def way(temperature: float, x: Tensor) -> int:
        found = Way()

        def call(function, *args):
            found.step(function, args, {}, [value for value in args if isinstance(value, Tensor)], shapes=False)
            result = function(*args)
            found.made(function, args, result)
            return result

        held = call(torch.Tensor.contiguous, x)  # x itself, or a copy of it
        return (call(torch.add, x, call(torch.mul, held, temperature)), found.number)[1]

    assert way(0.5, torch.randn(4, 5)) == way(0.7, torch.randn(5, 4).t())


@pytest.mark.parametrize(
    "changing", [lambda step: 0.5 / step, lambda step: torch.tensor(0.5 / step), lambda step: torch.tensor([0.5 / step])]
)
def test_a_rate_that_changes_from_step_to_step_is_no_other_way(changing):
    class Annealed(nn.Module):
        rate = 0.0

        def __init__(self):
            super().__init__()
            self.l, self.h = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.h(torch.tanh(self.l(x)) * changing(self.rate))

    model, x, seen = Annealed(), torch.randn(4, 5), []
    model.l.register_forward_hook(lambda *_: seen.append(1))
    passes = []
    for model.rate in (1, 2, 3):
        seen.clear()
        mixed_point_gradient(model, x, LABELS, **ONE_SAM)
        passes.append(len(seen))
    assert passes[1:] == [2, 2]  # the first step has the proof beside


def test_a_later_way_that_the_fast_engine_cannot_go_is_left_to_the_slower_one():
    class Late(nn.Module):
        flat = False

        def __init__(self):
            super().__init__()
            self.table, self.l, self.h = nn.Parameter(torch.randn(1, 9, 5)), nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            table = self.table[:, : x.shape[1]]
            return self.h(torch.tanh(self.l(x + (table.view(x.shape[1], 5) if self.flat else table))).mean(1))

    model, x = Late(), torch.randn(4, 6, 5)
    assert error(model, x) <= TOLERANCE
    model.flat = True
    assert error(model, x) <= TOLERANCE
