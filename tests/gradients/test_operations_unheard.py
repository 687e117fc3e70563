"""Rows that the data choose where no function of torch tells of it: in scripted functions, and with its overrides off."""

from __future__ import annotations

import pytest
import torch
from reference.exactness import engine_met, one_sam_error
from reference.routed import CLASSES, EXAMPLES, LABELS, TOKENS, WIDTH, Routed, Sorted, in_order, out_of_order
from torch import Tensor, nn
from torch.nn import functional

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine", "ignore:.*torch.jit"),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def scripted(function):
    return torch.jit.script(function)


def untold(function):
    def call(*args: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return function(*args)

    return call


def indexed(rows: Tensor, order: Tensor) -> Tensor:
    return rows[order]


def selected(rows: Tensor, order: Tensor) -> Tensor:
    return torch.index_select(rows, 0, order)


def gathered(rows: Tensor, order: Tensor) -> Tensor:
    return rows.gather(0, order.unsqueeze(1).expand_as(rows))


def written(rows: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(rows).index_copy_(0, order.argsort(), rows)


def dispatched(rows: Tensor, order: Tensor) -> Tensor:
    return functional.one_hot(order, rows.shape[0]).to(rows.dtype) @ rows


def rolled(rows: Tensor, order: Tensor) -> Tensor:
    turn = int(order[0])
    return torch.roll(rows, [-turn], [0])


def cut(rows: Tensor, order: Tensor) -> Tensor:
    first = int(order[0])
    return torch.cat([rows[first:], rows[:first]])


def one_by_one(rows: Tensor, order: Tensor) -> Tensor:
    found = torch.jit.annotate(list[Tensor], [])
    for place in range(order.shape[0]):
        found.append(rows[int(order[place])])
    return torch.stack(found)


def by_halves(rows: Tensor, order: Tensor) -> Tensor:
    late = (torch.arange(order.shape[0]) >= 8).to(torch.bool)
    return torch.cat([rows[order.masked_select(late.logical_not())], rows[order.masked_select(late)]])


@pytest.mark.parametrize("hide", [scripted, untold])
@pytest.mark.parametrize("bring", [indexed, selected, gathered, written, dispatched, by_halves])
def test_rows_chosen_where_no_function_tells_are_right_in_every_batch(bring, hide):
    model = Routed(hide(bring))
    for inputs in (in_order(), out_of_order(), in_order(), out_of_order()):
        assert one_sam_error(model, inputs, LABELS) < 1e-12
    assert engine_met(model, in_order()) == "reference"


def swish(values: Tensor) -> Tensor:
    return values * torch.sigmoid(values)


def masked(values: Tensor) -> Tensor:
    mask = values.sum(2, keepdim=True) > 0
    return values.masked_fill(mask, 0.5) * mask.to(values.dtype).add(1.0)


def by_positions(values: Tensor) -> Tensor:
    return values[:, torch.arange(values.shape[1] - 1, -1, -1)]


def last_asked_for(values: Tensor) -> Tensor:
    places = (values.detach()[:, :, 0] > 0).long().sum(1).clamp(max=3)
    return values.gather(1, places.unsqueeze(1).unsqueeze(2).expand(-1, 1, values.shape[2])).expand_as(values)


def row_of_each(values: Tensor) -> Tensor:
    places = (values.detach()[:, :, 0] > 0).long().sum(1).clamp(max=3)
    return values[torch.arange(values.shape[0]), places].unsqueeze(1).expand_as(values)


def without_negatives(values: Tensor) -> Tensor:
    found = values.clone()
    found[found < 0] = 0.0
    return found


def scattered_within(values: Tensor) -> Tensor:
    return torch.zeros_like(values).scatter_add(1, (values.detach() > 0).long(), values)


def attending(values: Tensor) -> Tensor:
    heads = values.reshape(values.shape[0], values.shape[1], 2, 3).transpose(1, 2).reshape(-1, values.shape[1], 3)
    scores = heads @ heads.transpose(1, 2)
    scores = scores.masked_fill(scores.detach() < 0, -1e3)
    scores = torch.where(scores.detach() > 1, scores * 0.5, scores)
    found = (scores.softmax(2) @ heads).reshape(values.shape[0], 2, values.shape[1], 3)
    return found.transpose(1, 2).reshape(values.shape)


STAY = (swish, masked, by_positions, last_asked_for, row_of_each, without_negatives, scattered_within, attending)


class Between(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.layer, self.function, self.head = nn.Linear(WIDTH, WIDTH), function, nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head((self.function(self.layer(inputs)) * torch.linspace(0.5, 1, inputs.shape[1])[:, None]).mean(1))


@pytest.mark.parametrize("hide", [scripted, untold])
@pytest.mark.parametrize(
    "function", [swish, masked, by_positions, last_asked_for, row_of_each, without_negatives, scattered_within, attending]
)
def test_what_leaves_rows_where_they_are_stays_fast_though_no_function_tells_of_it(function, hide):
    model = Between(hide(function))
    for inputs in (in_order(), out_of_order()):
        assert one_sam_error(model, inputs, LABELS) < 1e-12
    assert engine_met(model, in_order()) == "fast"


def sorted_if_needed(rows: Tensor, order: Tensor) -> Tensor:
    in_place = bool((order[1:] >= order[:-1]).all())
    return rows * 1.0 if in_place else rows[order]


@pytest.mark.parametrize("hide", [scripted, untold])
def test_rows_that_are_chosen_in_a_later_batch_alone_are_seen_in_that_step(hide):
    model = Sorted(hide(sorted_if_needed))
    in_place = -torch.rand(EXAMPLES, TOKENS, WIDTH)
    assert one_sam_error(model, in_place, LABELS) < 1e-12
    assert engine_met(model, in_place) == "fast"
    for inputs in (out_of_order(), in_order(), in_place, out_of_order()):
        assert one_sam_error(model, inputs, LABELS) < 1e-12


def turned(values: Tensor, order: Tensor) -> Tensor:
    return values[:, order]


@pytest.mark.parametrize("hide", [scripted, untold])
def test_a_way_that_begins_later_is_looked_at_and_fast_from_its_first_step_on(hide):
    class ByBuffer(Between):
        def __init__(self) -> None:
            super().__init__(lambda values: values * 1.0)
            self.register_buffer("order", torch.arange(TOKENS).flip(0))

    model = ByBuffer()
    assert one_sam_error(model, in_order(), LABELS) < 1e-12
    take = hide(turned)
    model.function = lambda values: take(values, model.order)
    assert engine_met(model, in_order()) == "fast"
    assert one_sam_error(model, in_order(), LABELS) < 1e-12


def turned_order(inputs: Tensor) -> Tensor:
    """Return an order that turns all tokens round by as many as begin with a number above zero."""
    ahead = (inputs.flatten(0, 1)[:, 0] > 0).long().sum()
    return (torch.arange(len(inputs) * TOKENS) + ahead) % (len(inputs) * TOKENS)


@pytest.mark.parametrize("hide", [scripted, untold])
@pytest.mark.parametrize("bring", [rolled, cut, one_by_one])
def test_numbers_that_are_read_off_tensors_there_are_part_of_the_way(bring, hide):
    class Turned(Routed):
        def forward(self, inputs: Tensor) -> Tensor:
            order = turned_order(inputs)
            done = self.experts[0](self.bring(inputs.flatten(0, 1), order)).tanh()
            return self.head(self.bring(done, order.argsort()).reshape(inputs.shape).mean(1))

    model = Turned(hide(bring))
    for inputs in (-torch.rand(EXAMPLES, TOKENS, WIDTH), in_order(), torch.randn(EXAMPLES, TOKENS, WIDTH)):
        assert one_sam_error(model, inputs, LABELS) < 1e-12
