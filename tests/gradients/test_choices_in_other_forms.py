"""Tokens that products dispatch, experts' rows, drawn and stored indices, numbers in any form: right in every batch."""

from __future__ import annotations

import enum
from collections import UserList

import pytest
import torch
from reference.exactness import engine_met, one_sam_error
from reference.routed import CLASSES, EXAMPLES, LABELS, TOKENS, WIDTH, Routed, in_order, out_of_order
from torch import Tensor, nn
from torch.nn import functional

from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for

ONE_SAM = {"rho": 0.3, "jacobian_at": "perturbed", "residual_at": "perturbed"}
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine", "ignore:.*cannot be vectorised"),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def error(model: nn.Module, inputs: Tensor, labels: Tensor = LABELS) -> float:
    return one_sam_error(model, inputs, labels)


def one_hot(order: Tensor) -> Tensor:
    return functional.one_hot(order, len(order)).to(torch.float64)


PRODUCTS = {
    "einsum": lambda t, o: torch.einsum("ij,jd->id", one_hot(o), t),
    "tensordot": lambda t, o: torch.tensordot(one_hot(o), t, 1),
    "bmm": lambda t, o: torch.bmm(one_hot(o)[None], t[None])[0],
    "linear": lambda t, o: functional.linear(one_hot(o), t.t()),
    "product and sum": lambda t, o: (one_hot(o)[:, :, None] * t[None]).sum(1),
    "addmm": lambda t, o: torch.addmm(torch.zeros_like(t), one_hot(o), t),
    "matrix times vectors": lambda t, o: torch.stack([one_hot(o) @ column for column in t.unbind(1)], 1),
    "attention": lambda t, o: functional.scaled_dot_product_attention(
        (1e4 * one_hot(o))[None], torch.eye(len(o))[None], t[None], scale=1.0
    )[0],
    "a convolution": lambda t, o: functional.conv1d(t[None], one_hot(o)[:, :, None])[0],
    "a system of equations": lambda t, o: torch.linalg.solve(one_hot(o).t(), t),
    "a comparison": lambda t, o: (torch.arange(len(o)) == o[:, None]).double() @ t,
    "ones that are scattered": lambda t, o: torch.zeros(len(o), len(o)).scatter(1, o[:, None], 1.0) @ t,
}


@pytest.mark.parametrize("way", PRODUCTS)
def test_tokens_that_any_product_dispatches_are_theirs_in_every_batch(way):
    model = Routed(PRODUCTS[way])
    for inputs in (in_order(), out_of_order()):
        assert error(model, inputs) < 1e-10


def test_a_mask_that_is_multiplied_in_leaves_a_model_with_merged_tokens_fast():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            mask = (x[..., :1] > -1).double()
            merged = self.layer(x.view(-1, WIDTH)).view_as(x)
            return self.head((torch.tanh(merged) * mask).sum(1) / mask.sum(1).clamp_min(1))

    model = Masked()
    for inputs in (in_order(), out_of_order()):
        assert error(model, inputs) < 1e-12
        assert engine_met(model, inputs) == "fast"


ROWS = {
    "rows of three experts": (3, lambda z, o: z[torch.arange(len(z))[:, None], o]),
    "rows of one expert": (1, lambda z, o: z[torch.arange(len(z))[:, None], o]),
    "gathered behind eight experts": (8, lambda z, o: z.gather(1, o[:, :, None].expand(-1, -1, WIDTH))),
    "taken behind eight experts": (8, lambda z, o: torch.take_along_dim(z, o[:, :, None], 1)),
    "scattered behind eight experts": (
        8, lambda z, o: torch.zeros_like(z).scatter(1, o.argsort(1)[:, :, None].expand(-1, -1, WIDTH), z)
    ),
    "gathered behind as many experts as examples": (4, lambda z, o: z.gather(1, o[:, :, None].expand(-1, -1, WIDTH))),
    "taken behind as many experts as examples": (4, lambda z, o: torch.take_along_dim(z, o[:, :, None], 1)),
    "rows of as many experts as examples": (4, lambda z, o: z[torch.arange(len(z))[:, None], o]),
    "dispatched behind as many experts as examples": (4, lambda z, o: functional.one_hot(o, o.shape[1]).to(z.dtype) @ z),
    "scattered behind as many experts as examples": (
        4, lambda z, o: torch.zeros_like(z).scatter(1, o.argsort(1)[:, :, None].expand(-1, -1, WIDTH), z)
    ),
    "behind a slice": (1, lambda z, o: z[:, o[0][:, None], torch.arange(WIDTH)]),
}  # fmt: skip


class Ordered(nn.Module):
    """Every expert takes the tokens of the batch in an order of its own, and puts them back."""

    def __init__(self, take, experts):
        super().__init__()
        self.take, self.head = take, nn.Linear(WIDTH, CLASSES)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(experts))

    def forward(self, x):
        tokens = x.flatten(0, 1)
        keys = torch.stack([tokens[:, k % WIDTH] for k in range(len(self.experts))])
        order = (keys > 0).long().argsort(dim=1, stable=True)
        taken = self.take(tokens.expand(len(order), -1, -1), order)
        made = torch.stack([torch.tanh(expert(part)) for expert, part in zip(self.experts, taken, strict=True)])
        return self.head(self.take(made, order.argsort(1)).sum(0).view(len(x), -1, WIDTH).mean(1))


@pytest.mark.parametrize("way", ROWS)
def test_rows_behind_an_axis_of_experts_are_not_within_an_example(way):
    experts, take = ROWS[way]
    model = Ordered(take, experts)
    for inputs in (-torch.rand(EXAMPLES, TOKENS, WIDTH), torch.randn(EXAMPLES, TOKENS, WIDTH)):
        assert error(model, inputs) < 1e-10


class InOrder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def order(self, examples: int) -> Tensor:
        raise NotImplementedError

    def forward(self, x):
        order = self.order(len(x))
        return self.head(torch.tanh(self.layer(x[order])[order.argsort()]).mean(1))


def test_an_order_that_is_drawn_is_another_in_every_pass():
    class Drawn(InOrder):
        def order(self, examples):
            return torch.rand(examples).argsort()

    for seed in range(8):
        torch.manual_seed(seed)
        model = Drawn()
        for _ in range(4):
            assert error(model, torch.randn(2, TOKENS, WIDTH), LABELS[:2]) < 1e-10


def test_an_order_in_a_buffer_is_another_way_once_the_buffer_is_changed():
    class Stored(InOrder):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.arange(EXAMPLES))

        def order(self, examples):
            return self.kept if examples == EXAMPLES else torch.arange(examples)

    model, inputs = Stored(), torch.randn(EXAMPLES, TOKENS, WIDTH)
    assert error(model, inputs) < 1e-12
    assert engine_met(model, inputs) == "fast"
    model.kept.copy_(torch.tensor([2, 0, 3, 1]))
    assert error(model, inputs) < 1e-12


class Axis(enum.IntEnum):
    EXAMPLES = 0
    TOKENS = 1


@pytest.mark.parametrize("kind", [int, Axis, torch.tensor, lambda axis: nn.Buffer(torch.tensor(axis))])
def test_an_axis_is_read_in_whatever_form_it_is_given(kind):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head, self.axis = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES), kind(0)

        def forward(self, x):
            return self.head(torch.tanh(self.layer(x.transpose(0, self.axis))).transpose(0, self.axis).mean(1))

    model, inputs = Turned(), torch.randn(EXAMPLES, TOKENS, WIDTH)
    assert error(model, inputs) < 1e-12
    model.axis = kind(1)
    assert error(model, inputs) < 1e-12


@pytest.mark.parametrize(
    "listed", [lambda order: [Place(place) for place in order], UserList, lambda order: [complex(place) for place in order]]
)
def test_an_order_made_of_numbers_is_read_in_whatever_form_they_are_given(listed):
    class Listed(InOrder):
        places = (0, 1, 2, 3)

        def order(self, examples):
            return torch.tensor(listed(list(self.places))).real.long() if examples == EXAMPLES else torch.arange(examples)

    model, inputs = Listed(), torch.randn(EXAMPLES, TOKENS, WIDTH)
    assert error(model, inputs) < 1e-12
    model.places = (2, 0, 3, 1)
    assert error(model, inputs) < 1e-12


class Place(int):
    """A whole number of a class of its own."""


def test_a_proof_in_coarser_numbers_does_not_hold_in_finer_ones():
    class SlightlyMixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, tokens):
            hidden = self.layer(self.table(tokens).mean(1))
            return self.head(torch.tanh(hidden + 1e-3 * (hidden.mean(0) - hidden)))

    model, tokens = SlightlyMixed().float(), torch.randint(0, 9, (EXAMPLES, TOKENS))
    engine_for(model, tokens)  # within what float32 rounds, by the tolerance of a proof
    with pytest.raises(InputError, match="mixes the examples"):
        engine_for(model.double(), tokens)


class Ruled(nn.Module):
    """A classifier with one class ruled out by -inf."""

    def __init__(self, *, mixes=False, keeps=False):
        super().__init__()
        self.layer, self.head, self.mixes, self.keeps = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES + 1), mixes, keeps
        if keeps:
            self.register_buffer("kept", self.layer.weight.data)
        self.register_buffer("out", torch.tensor([False] * CLASSES + [True]))

    def forward(self, x):
        hidden = torch.tanh(self.layer(x - x.mean(0) if self.mixes else x))
        return self.head(hidden @ self.kept.t() if self.keeps else hidden).masked_fill(self.out, -torch.inf)


def test_classes_that_are_ruled_out_hide_nothing():
    inputs = torch.randn(EXAMPLES, WIDTH)
    plain, kept = Ruled(), Ruled(keeps=True)
    assert error(plain, inputs) < 1e-12
    assert engine_met(plain, inputs) == "fast"
    assert error(kept, inputs) < 1e-12  # a view of a weight moves with it
    with pytest.raises(InputError, match="mixes the examples"):
        mixed_point_gradient(Ruled(mixes=True), inputs, LABELS, **ONE_SAM)


@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_a_large_mean_that_cancels_costs_no_more_digits_than_in_the_loop(mean):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, CLASSES)

        def forward(self, x):
            hidden = self.layer(x)
            return self.head(torch.tanh(hidden - hidden.mean(1, keepdim=True)).square().mean(1))

    model, inputs = Centred(), torch.randn(EXAMPLES, TOKENS, 64)
    assert error(model, inputs) < 1e-12
    assert engine_met(model, inputs + mean) == "fast"  # it was proven where nothing cancels
    # What of a number of this size is rounded away stays lost, in the loop as in the engine.
    assert error(model, inputs + mean) < 1e-14 * mean
