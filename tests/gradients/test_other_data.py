"""Rows that the data choose by whatever means, in order in the first batch: other data of its shape tell."""

from __future__ import annotations

import pytest
import torch
from reference.exactness import engine_met, one_sam_error
from reference.own_functions import ByOwnKernel
from reference.routed import CLASSES, Sorted
from torch import Tensor, nn
from torch.nn import functional

from noisesam.errors import InputError
from noisesam.gradients.engine import recheck
from noisesam.gradients.engine.other_data import _exchanged

WIDTH = 6
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine", "ignore:.*cannot be vectorised"),
]


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    monkeypatch.setattr(recheck, "is_due", lambda _batch: False)


def keyed(signs: list[list[int]]) -> Tensor:
    """Return tokens whose first numbers have these signs."""
    found = torch.randn(len(signs), len(signs[0]), WIDTH)
    found[..., 0] = found[..., 0].abs() * torch.tensor(signs)
    return found


def ordered() -> Tensor:
    return keyed([[-1, -1], [-1, 1], [1, 1]])


def disordered() -> Tensor:
    return keyed([[1, 1], [-1, 1], [-1, -1]])


LABELS = torch.arange(3)


def chosen(order: Tensor) -> Tensor:
    return order[:, None] == torch.arange(len(order))


def slot_by_slot(put):
    def bring(rows: Tensor, order: Tensor) -> Tensor:
        found = torch.zeros_like(rows)
        for slot in range(len(order)):
            found = put(found, rows[slot], order == slot)
        return found

    return bring


def shown_to_all(gather):
    """Every example sees all tokens of the batch, and takes its own."""

    def bring(rows: Tensor, order: Tensor) -> Tensor:
        mine = order.view(-1, 2, 1).expand(-1, -1, rows.shape[1])
        return gather(rows.expand(len(mine), -1, -1), mine).flatten(0, 1)

    return bring


def fractional(order: Tensor) -> Tensor:
    return (1 - (order[:, None] - torch.arange(len(order))).abs().double()).clamp(min=0)


WAYS = {
    "where and sum": lambda r, o: torch.where(chosen(o)[..., None], r, 0.0).sum(1),
    "where and largest": lambda r, o: torch.where(chosen(o)[..., None], r, -torch.inf).amax(1),
    "masks and sum": lambda r, o: r.expand(len(o), -1, -1).masked_fill(~chosen(o)[..., None], 0.0).sum(1),
    "slots by products": slot_by_slot(lambda found, row, here: found + here.double()[:, None] * row),
    "slots by outer products": slot_by_slot(lambda found, row, here: found + torch.outer(here.double(), row)),
    "slots by where": slot_by_slot(lambda found, row, here: torch.where(here[:, None], row, found)),
    "gathered from all": shown_to_all(lambda r, o: r.gather(1, o)),
    "taken from all": shown_to_all(lambda r, o: torch.take_along_dim(r, o, 1)),
    "gathered from copies": shown_to_all(lambda r, o: r.repeat(1, 1, 1).gather(1, o)),
    "fractions": lambda r, o: (fractional(o)[:, :, None] * r[None]).sum(1),
    "a kernel of its own": lambda r, o: ByOwnKernel.apply(r, o),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_order_that_the_first_batch_has_already_is_seen_to_be_chosen(way):
    model = Sorted(WAYS[way])
    for inputs in (ordered(), disordered(), ordered()):
        assert one_sam_error(model, inputs, LABELS) < 1e-12
    assert engine_met(model, ordered()) == "reference"


class Slots(nn.Module):
    """Experts that share a map and differ in scale each take their tokens first; every token finds its slot again."""

    def __init__(self, experts: int, spare: int) -> None:
        super().__init__()
        self.experts, self.spare = experts, spare
        self.up, self.head = nn.Linear(WIDTH, 5), nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.flatten(0, 1)
        slots = len(tokens) + self.spare
        expert = (torch.sigmoid(tokens[:, 0]) * self.experts).long()
        mine = expert[None] == torch.arange(self.experts)[:, None]
        order = (~mine).long().argsort(dim=1, stable=True)
        order = torch.cat([order, torch.full((self.experts, self.spare), len(tokens))], 1)
        rows = torch.cat([tokens, tokens.new_zeros(self.spare, WIDTH)])
        given = rows.expand(self.experts, -1, -1).gather(1, order[..., None].expand(-1, -1, WIDTH))
        made = torch.tanh(self.up(given)) * torch.linspace(0.5, 1.5, self.experts)[:, None, None]
        slot = (expert * slots + ((mine.long().cumsum(1) - 1) * mine).sum(0)).view(len(inputs), -1, 1)
        return self.head(made.flatten(0, 1).expand(len(inputs), -1, -1).gather(1, slot.expand(-1, -1, 5)).mean(1))


@pytest.mark.parametrize(("experts", "spare", "tokens"), [(2, 0, 3), (2, 1, 2), (4, 1, 2), (6, 1, 3)])
def test_slots_of_experts_are_of_whoever_asks_however_many_experts_and_spare_slots_there_are(experts, spare, tokens):
    def asking(choices: list[int]) -> Tensor:
        found = torch.randn(2, tokens, WIDTH)
        share = (torch.tensor(choices).view(2, tokens) + 0.2 + 0.6 * torch.rand(2, tokens)) / experts
        found[..., 0] = torch.log(share / (1 - share))
        return found

    model, in_turn = Slots(experts, spare), [k * experts // (2 * tokens) for k in range(2 * tokens)]
    for choices in (in_turn, in_turn[::-1]):
        assert one_sam_error(model, asking(choices), LABELS[:2]) < 1e-12


def test_a_model_that_takes_no_exchanged_tokens_is_asked_with_its_examples_the_other_way_round():
    class Particular(Sorted):
        def forward(self, inputs: Tensor) -> Tensor:
            if bool((inputs[:, 0, 1] != 7).any()):
                raise ValueError("the first token of a text is 7")
            return super().forward(inputs)

    model = Particular(WAYS["where and sum"])
    for inputs in (ordered(), disordered()):
        inputs[:, 0, 1] = 7
        assert one_sam_error(model, inputs, LABELS) < 1e-12


def test_a_model_that_mixes_examples_that_are_alike_is_refused_where_none_are():
    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            near = (torch.cdist(inputs.detach(), inputs.detach()) < 0.1).to(inputs.dtype)
            return self.head((near[:, :, None] * torch.tanh(self.body(inputs))[None]).sum(1) / near.sum(1, keepdim=True))

    with pytest.raises(InputError, match="mixes the examples"):
        one_sam_error(Alike(), torch.randn(3, WIDTH), LABELS)


@pytest.mark.parametrize("signs", [False, True])
def test_tokens_are_exchanged_among_examples_those_of_one_place_together(signs):
    tokens = torch.arange(12).view(4, 3)
    given = {
        "tokens": tokens,
        "mask": tokens > 3,
        "vectors": tokens[..., None].double() + 1,
        "lengths": torch.arange(4),
        "kind": "x",
    }
    found = _exchanged(given, signs=signs)
    rows = slice(0, 3 if signs else 4)
    assert torch.equal(found["mask"], found["tokens"] > 3)
    assert torch.equal(found["vectors"].abs()[rows, :, 0], found["tokens"][rows].double() + 1)
    assert bool((found["vectors"] < 0).any()) == signs
    assert found["kind"] == "x"
    assert sorted(found["lengths"][rows].tolist()) == sorted(set(found["lengths"][rows].tolist()))
    if signs:
        assert all(torch.equal(found[name][3], found[name][0]) for name in ("tokens", "mask", "vectors", "lengths"))
    else:
        assert sorted(found["tokens"].flatten().tolist()) == list(range(12))
        assert not torch.equal(found["tokens"].sort().values, tokens)  # from example to example, not within them alone


def test_other_data_leave_no_trace_and_ordinary_models_fast():
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.4), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES))
    inputs, before = ordered(), torch.get_rng_state()
    kept = inputs.clone()
    assert engine_met(model, inputs) == "fast"
    torch.set_rng_state(before)
    drawn = torch.rand(2)
    torch.set_rng_state(before)
    functional.dropout(torch.zeros(3, 2, 8), 0.4)  # the pass that engine_met takes draws one mask, and the proof none
    after = torch.rand(2)
    torch.set_rng_state(before)
    assert engine_met(model, inputs) == "fast"
    assert torch.equal(torch.rand(2), after)
    assert not torch.equal(drawn, after)
    assert torch.equal(inputs, kept)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_that_only_passes_without_gradients_choose_are_no_reason():
    class WhenAsked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                inputs = inputs.flatten(0, 1)[inputs.flatten(0, 1)[:, 0].argsort()].view_as(inputs) * 0 + inputs
            return self.head(torch.tanh(self.body(inputs)).mean(1))

    model = WhenAsked()
    assert one_sam_error(model, ordered(), LABELS) < 1e-12
    assert engine_met(model, ordered()) == "fast"
