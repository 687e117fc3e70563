"""Parameters that meet activations without a layer: expanded, added in place, multiplied, looked up, written."""

from __future__ import annotations

import pytest
import torch
from reference.exactness import check
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("double")

EXAMPLES, POSITIONS, WIDTH = 3, 5, 4


class Beside(nn.Module):
    """Tokens (n, T, d), a free parameter that meets them in a given way, a head."""

    def __init__(self, shape, meet):
        super().__init__()
        self.free, self.meet = nn.Parameter(torch.randn(shape)), meet
        self.mixer, self.head = nn.Linear(WIDTH, WIDTH), nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.meet(torch.tanh(self.mixer(x)), self.free)).flatten(1))


def written_to(name: str):
    def meet(h: Tensor, free: Tensor) -> Tensor:
        h = h * 2
        kept = getattr(h, name)(free)
        return kept if kept is h else h + kept  # the tensor itself is the one that was written to

    return meet


EXPANDED = {
    "a vector expanded over the examples": ((WIDTH,), lambda h, p: h[:, 0] + p.expand(len(h), -1)),
    "a vector expanded over examples and positions": ((WIDTH,), lambda h, p: h * p.expand(len(h), h.shape[1], WIDTH)),
    "a vector expanded like an activation": ((WIDTH,), lambda h, p: h * p.expand_as(h)),
    "a number expanded like an activation": ((), lambda h, p: h * p.expand_as(h)),
    "a table expanded over the examples": ((POSITIONS, WIDTH), lambda h, p: h * p.expand(len(h), *p.shape)),
    "a table of one row, broadcast": ((1, WIDTH), lambda h, p: torch.cat([torch.broadcast_to(p, (len(h), 2, WIDTH)), h], 1)),
    "a vector broadcast by name": ((WIDTH,), lambda h, p: h * torch.broadcast_to(p, size=(len(h), 1, WIDTH))),
    "a vector repeated": ((WIDTH,), lambda h, p: torch.cat([p.repeat(len(h), 2, 1), h], 1)),
    "a vector tiled": ((WIDTH,), lambda h, p: torch.cat([torch.tile(p, (len(h), 2, 1)), h], 1)),
    "a vector tiled within": ((WIDTH,), lambda h, p: torch.cat([p.repeat(len(h), 2), h.flatten(1)], 1)),
    "a vector expanded and written to": ((WIDTH,), lambda h, p: (p * 2).expand(h.shape).clone().add_(h)),
    "a class token from a vector": ((WIDTH,), lambda h, p: torch.cat([p[None, None].expand(len(h), -1, -1), h], 1)),
}
IN_PLACE = {
    "in-place sum": ((WIDTH,), written_to("add_")),
    "in-place sum by its sign": ((POSITIONS, WIDTH), written_to("__iadd__")),
    "in-place difference by its sign": ((WIDTH,), written_to("__isub__")),
    "in-place product": ((POSITIONS, 1), written_to("mul_")),
    "in-place product by its sign": ((), written_to("__imul__")),
    "in-place quotient": ((1, POSITIONS, WIDTH), lambda h, p: (h * 1).div_(2 + p.tanh())),
}
VECTORS = {
    "scores by a vector": ((WIDTH,), lambda h, p: torch.softmax(h @ p, 1)[..., None] * h),
    "scores of one position": ((WIDTH,), lambda h, p: torch.mv(h[:, 0], p)[:, None] * h[:, 0]),
    "scores in several heads": ((2,), lambda h, p: torch.matmul(h.unflatten(2, (2, 2)), p)),
    "scores by a linear map without rows": ((WIDTH,), functional.linear),
    "scores of merged positions": ((WIDTH,), lambda h, p: (h.flatten(0, 1) @ p).view(len(h), -1)),
    "positions summed by a vector": ((POSITIONS,), lambda h, p: p @ h),
    "scores by a vector computed from another": ((WIDTH,), lambda h, p: h @ (p / p.norm())),
}
LOOKED_UP = {
    "a table looked up by places": ((9, WIDTH), lambda h, p: h + functional.embedding(torch.arange(h.shape[1]), p)),
    "one row for all": ((9, WIDTH), lambda h, p: h + functional.embedding(torch.arange(h.shape[1])[None], p)),
}


def tokens_of(h: Tensor) -> Tensor:
    """Return tokens of -4 to 4 for every position: some count from the end."""
    return (4 * h[..., 0]).round().long()


def written(at, value=lambda p: p):
    def meet(h: Tensor, free: Tensor) -> Tensor:
        h = h * 2
        h[at] = value(free)
        return h

    return meet


INDEXED = {
    "a table indexed by tokens": ((9, WIDTH), lambda h, p: h + p[tokens_of(h)]),
    "a table indexed by a tuple of tokens": ((9, WIDTH), lambda h, p: h + p[(tokens_of(h).int(),)]),
    "a table indexed by one token each": ((9, WIDTH), lambda h, p: h[:, 1] + p[tokens_of(h)[:, 0]]),
    "a table indexed by merged tokens": ((9, WIDTH), lambda h, p: h + p[tokens_of(h).flatten()].view_as(h)),
    "numbers indexed by tokens": ((9,), lambda h, p: h * p[tokens_of(h)][..., None]),
    "matrices indexed by one token each": ((9, WIDTH, WIDTH), lambda h, p: h @ p[tokens_of(h)[:, 0]]),
    "rows selected by merged tokens": (
        (9, WIDTH),
        lambda h, p: h + torch.index_select(p, 0, tokens_of(h).flatten().remainder(9)).view_as(h),
    ),
    "rows selected by a method": ((9, WIDTH), lambda h, p: h[:, 0] + p.index_select(dim=0, index=tokens_of(h)[:, 0].abs())),
    "a vector written to a position": ((WIDTH,), written((slice(None), 0))),
    "a part of a table written to positions": ((POSITIONS, WIDTH), written((slice(None), slice(1, 3)), lambda p: p[1:3] * 2)),
    "a number written to all positions": ((), written((slice(None), slice(None), 0))),
    "a number in masked places": ((), lambda h, p: h.masked_fill(h > 0.2, p)),
    "a number in masked places, in place": ((), lambda h, p: (h * 2).masked_fill_(h > 0.2, p)),
    "matrices of two heads, of a first axis of one": (
        (2, 2, 7),
        lambda h, p: torch.matmul(h.unflatten(2, (2, 2)).transpose(1, 2), torch.tanh(p)[None]),
    ),
    "a tensordot": ((WIDTH, 3), lambda h, p: torch.tensordot(h, p, dims=1)),
    "a tensordot over given axes": ((3, WIDTH), lambda h, p: torch.tensordot(h, p, dims=([2], [1]))),
    "a tensordot over positions and features": ((POSITIONS, WIDTH, 6), lambda h, p: torch.tensordot(h, p)),
}


ALIASES = {
    name: ((WIDTH,), lambda h, p, name=name: getattr(torch, name)(2 + h, 2 + p.tanh()))
    for name in ("subtract", "multiply", "divide", "hypot", "atan2", "logaddexp", "fmax", "fmin", "xlogy", "copysign")
}
POSITIONS_FIRST = {
    "a vector beside positions first": ((WIDTH,), lambda h, p: (h.transpose(0, 1) + p).transpose(0, 1)),
    "a table beside positions first": ((POSITIONS, 1, WIDTH), lambda h, p: (h.transpose(0, 1) + p).transpose(0, 1)),
    "one row beside positions first": ((1, 1, WIDTH), lambda h, p: (h.transpose(0, 1) * p).transpose(0, 1)),
}


@pytest.mark.parametrize("examples", [1, EXAMPLES, POSITIONS])  # as many as positions: shapes alone cannot tell
@pytest.mark.parametrize("way", EXPANDED | IN_PLACE | VECTORS | LOOKED_UP | INDEXED | ALIASES)
def test_a_free_parameter_meets_activations(way, examples):
    shape, meet = (EXPANDED | IN_PLACE | VECTORS | LOOKED_UP | INDEXED | ALIASES)[way]
    model, x = Beside(shape, meet), torch.randn(examples, POSITIONS, WIDTH)
    with torch.no_grad():
        model(x)
    check(model, x)


@pytest.mark.parametrize("way", POSITIONS_FIRST)
def test_a_free_parameter_meets_activations_whose_positions_come_first(way):
    shape, meet = POSITIONS_FIRST[way]
    model, x = Beside(shape, meet), torch.randn(EXAMPLES, POSITIONS, WIDTH)
    with torch.no_grad():
        model(x)
    check(model, x)


@pytest.mark.parametrize(
    "expanded", [lambda p: p.expand(POSITIONS, -1), lambda p: p.repeat(POSITIONS, 1)], ids=["expand", "repeat"]
)
@pytest.mark.parametrize("examples", [EXAMPLES, POSITIONS])
def test_a_vector_expanded_over_positions_is_none_of_the_examples(expanded, examples):
    model, x = Beside((WIDTH,), lambda h, p: h * expanded(p)), torch.randn(examples, POSITIONS, WIDTH)
    with torch.no_grad():
        model(x)
    check(model, x, engine="reference" if examples == POSITIONS else "fast")  # as many of both: no guess fits expand and mixer


def test_what_a_parameter_has_become_may_be_written_to_only_where_nobody_else_sees_it():
    def meet(h: Tensor, p: Tensor) -> Tensor:
        doubled = p * 2
        doubled.add_(h[:, 0])
        return h[:, 0] * doubled

    model, x = Beside((1, WIDTH), meet), torch.randn(1, POSITIONS, WIDTH)
    with torch.no_grad():
        model(x)
    check(model, x, engine="reference")


class BesideATable(nn.Module):
    """Tokens (n, T, d) and a fixed table (1, T, d) of the model, which meets its weights in a given way."""

    def __init__(self, meet):
        super().__init__()
        self.register_buffer("table", torch.randn(1, POSITIONS, WIDTH))
        self.gate, self.meet = nn.Parameter(torch.ones(1)), meet
        self.placed, self.mixer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.meet(self, torch.tanh(self.mixer(x)))).mean(1))


TABLES = {
    "once for all": lambda m, h: h + m.placed(m.table),
    "without its first axis": lambda m, h: h + m.placed(m.table[0]),
    "as keys and values": lambda m, h: (h @ torch.tanh(m.placed(m.table[0])).t()) @ m.placed(m.table[0]),
    "expanded over the examples": lambda m, h: h + m.placed(m.table.expand(len(h), -1, -1)),
    "repeated for every example": lambda m, h: h + m.placed(m.table.repeat(len(h), 1, 1)),
    "expanded, behind a softmax and a gate": (
        lambda m, h: h + torch.sigmoid(m.gate) * m.placed(m.table.expand(len(h), -1, -1)).softmax(-1)
    ),
    "expanded, as latents that attend": lambda m, h: (h @ m.placed(m.table.expand_as(h)).transpose(1, 2)) @ m.table.tanh(),
}


@pytest.mark.parametrize("examples", [1, EXAMPLES, POSITIONS])  # as many as positions: shapes alone cannot tell
@pytest.mark.parametrize("way", TABLES)
def test_a_fixed_table_meets_weights_with_and_without_a_row_for_every_example(way, examples):
    check(BesideATable(TABLES[way]), torch.randn(examples, POSITIONS, WIDTH))
