"""Rows that the data write, gather, split or combine are theirs in every batch; buffers and frozen parts hide nothing."""

from __future__ import annotations

import warnings
from array import array
from collections import deque

import pytest
import torch
from reference.exactness import engine_met, one_sam_error
from torch import Tensor, nn
from torch.nn import functional

from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient

ONE_SAM = {"rho": 0.3, "jacobian_at": "perturbed", "residual_at": "perturbed"}
LABELS = torch.tensor([0, 1, 2, 0])
ROWS, WIDTH = 4, 6
pytestmark = pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine", "ignore:Sparse")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def error(model: nn.Module, inputs: Tensor, labels: Tensor = LABELS) -> float:
    return one_sam_error(model, inputs, labels)


def zeros(tokens: Tensor) -> Tensor:
    return torch.zeros(len(tokens), tokens.shape[1], dtype=tokens.dtype)


def wide(index: Tensor, tokens: Tensor) -> Tensor:
    return index[:, None].expand(-1, tokens.shape[1])


def set_in_place(tokens: Tensor, order: Tensor) -> Tensor:
    made = zeros(tokens)
    made[order.argsort()] = tokens
    return made


def as_array(tokens: Tensor, order: Tensor) -> Tensor:
    index = torch.zeros(len(tokens), dtype=torch.long)
    index.numpy()[:] = order.numpy()
    return tokens.index_select(0, index)


def as_data(tokens: Tensor, order: Tensor) -> Tensor:
    index = torch.zeros(len(tokens), dtype=torch.long)
    index.data.copy_(order)
    return tokens.index_select(0, index)


WRITTEN = {
    "index_add": lambda t, o: zeros(t).index_add(0, o.argsort(), t),
    "index_add_": lambda t, o: zeros(t).index_add_(0, o.argsort(), t),
    "index_copy": lambda t, o: zeros(t).index_copy(0, o.argsort(), t),
    "index_put": lambda t, o: zeros(t).index_put((o.argsort(),), t),
    "index_put by names": lambda t, o: zeros(t).index_put(indices=(o.argsort(),), values=t),
    "setitem": set_in_place,
    "scatter": lambda t, o: zeros(t).scatter(0, wide(o.argsort(), t), t),
    "scatter_add": lambda t, o: zeros(t).scatter_add(0, wide(o.argsort(), t), t),
    "scatter_reduce": lambda t, o: zeros(t).scatter_reduce(0, wide(o.argsort(), t), t, "sum"),
    "masked_scatter": lambda t, o: zeros(t).masked_scatter(torch.ones(t.shape, dtype=torch.bool), t[o]),
    "gather behind an axis of one": lambda t, o: t[None].gather(1, wide(o, t)[None])[0],
    "gather along all": lambda t, o: torch.take_along_dim(t, (o[:, None] * WIDTH + torch.arange(WIDTH)).flatten()).view_as(t),
    "an index behind zeros": lambda t, o: t[None][torch.zeros(len(o), dtype=torch.long), o],
    "embedding_bag": lambda t, o: functional.embedding_bag(o[:, None], t, mode="sum"),
    "a function by its inside name": lambda t, o: torch.ops.aten.index(t, [o]),
    "a sparse matrix": lambda t, o: (
        torch.sparse_coo_tensor(torch.stack([torch.arange(len(o)), o]), torch.ones(len(o), dtype=t.dtype), (len(o),) * 2) @ t
    ),
    "a matrix of ones and zeros": lambda t, o: functional.one_hot(o, len(o)).to(t.dtype) @ t,
    "pixels by a grid": lambda t, o: functional.grid_sample(
        t.t()[None, :, :, None], torch.stack([torch.zeros(len(o)).double(), (2 * o + 1) / len(o) - 1], 1)[None, :, None],
        mode="nearest", align_corners=False,
    )[0, :, :, 0].t(),
    "numbers in columns": lambda t, o: t[torch.tensor([[float(k)] for k in o.tolist()]).long()[:, 0]],
    "numbers in an array": lambda t, o: t[torch.tensor(array("l", o.tolist()))],
    "numbers in a deque": lambda t, o: t[torch.tensor(deque(o.tolist()))],
    "an index written through an array": as_array,
    "an index written through its data": as_data,
}  # fmt: skip


class Routed(nn.Module):
    """Tokens are brought into the order of their experts, computed by these, and brought back."""

    def __init__(self, bring):
        super().__init__()
        self.bring, self.h = bring, nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        expert = (tokens[:, 0] > 0).long()
        order = expert.argsort(stable=True)
        first, second = self.bring(tokens, order).split(torch.bincount(expert, minlength=2).tolist())
        done = torch.cat([self.experts[0](first), self.experts[1](second)])
        return self.h(torch.tanh(self.bring(done, order.argsort())).reshape(len(x), -1, WIDTH).mean(1))


@pytest.mark.parametrize("way", WRITTEN)
def test_tokens_are_whose_they_are_however_they_are_brought_to_their_experts(way):
    model, x = Routed(WRITTEN[way]), normal(4, ROWS, WIDTH)
    x[:, :2, 0], x[:, 2:, 0] = -1, 1  # every example sends half of its tokens to each
    assert error(model, x) <= 1e-12
    x = normal(4, ROWS, WIDTH)
    x[..., 0] = -1
    x[:2, :, 0] = 1  # as many for each expert, from other examples
    assert error(model, x) <= 1e-12


class Turned(nn.Module):
    """The examples are turned by as many as their first numbers say, and turned back."""

    def __init__(self):
        super().__init__()
        self.l, self.h = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        by = (x[:, 0] > 0).sum().reshape(1)
        back = len(x) - by
        done = self.l(torch.cat([x[by:], x[:by]]))
        return self.h(torch.tanh(torch.cat([done[back:], done[:back]])))


def test_a_bound_in_a_tensor_of_one_axis_is_the_number_that_it_is():
    model, x = Turned(), normal(4, WIDTH)
    for turned in (0, 1, 3, 1):
        x[:, 0] = torch.where(torch.arange(4) < turned, 1.0, -1.0)
        assert error(model, x) <= 1e-12


def test_an_index_of_a_single_number_is_no_way_of_its_own():
    class Looked(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.h = nn.Parameter(torch.randn(40, WIDTH)), nn.Linear(WIDTH, 3)
            self.double()

        def forward(self, token):
            return self.h(torch.tanh(self.table[token]))

    model = Looked()
    for number in range(40):
        token = torch.tensor([number])
        assert error(model, token, LABELS[:1]) <= 1e-12
        assert engine_met(model, token) == "fast"


WITHIN = {
    "gather": lambda h: h.gather(1, h.argsort(1)),
    "gather of images": lambda h: h.unflatten(2, (2, 3)).gather(2, h.unflatten(2, (2, 3)).argsort(2)).flatten(2),
    "rows by arange": lambda h: h + h[torch.arange(len(h)), h[..., 0].argmax(1)][:, None],
    "rows and columns by arange": lambda h: h[torch.arange(len(h))[:, None], h[..., 0].argsort(1)],
    "scattered within": lambda h: torch.zeros_like(h).scatter_add(1, h.argsort(1), h),
    "one-hot within": lambda h: functional.one_hot(h[..., 0].argsort(1)).to(h.dtype) @ h,
    "positions first": lambda h: h.transpose(0, 1).gather(2, h.transpose(0, 1).argsort(2)).transpose(0, 1),
    "a constant order": lambda h: h.index_select(1, torch.arange(h.shape[1]).flip(0)),
    "the graph of a buffer": lambda h: torch.zeros_like(h).index_add(1, torch.arange(h.shape[1]).flip(0), h),
    "a sampled image": lambda h: (
        h * functional.grid_sample(h[:, None], h[..., :2][:, :, None], align_corners=False).mean((1, 2, 3))[:, None, None]
    ),
}


@pytest.mark.parametrize("way", WITHIN)
def test_what_stays_within_an_example_stays_fast(way):
    class Within(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.h = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x):
            return self.h(torch.tanh(WITHIN[way](self.l(x))).mean(1))

    model = Within().double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            x = normal(4, 5, WIDTH)
            assert error(model, x) <= 1e-12
            assert engine_met(model, x) == "fast"


class Frozen(nn.Module):
    """A kept view of a weight, which only moved weights reach, beside a frozen number of another precision."""

    def __init__(self, kind: torch.dtype):
        super().__init__()
        self.table, self.h = nn.Embedding(7, WIDTH), nn.Linear(WIDTH, 3)
        self.double()
        self.register_buffer("tied", self.table.weight.data)
        self.scale = nn.Parameter(torch.ones((), dtype=kind), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.table(tokens))
        return self.h(h.mean(1)) + (h @ self.tied.t()).mean(1)[:, :3]


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_frozen_part_of_few_bits_is_no_reason_to_look_less_closely(kind):
    assert error(Frozen(kind), torch.randint(0, 7, (4, 5))) <= 1e-12


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_frozen_part_that_computes_in_coarser_numbers_is_taken_as_it_is(kind):
    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(WIDTH, WIDTH).to(kind).requires_grad_(False)
            self.l, self.h = nn.Linear(WIDTH, WIDTH).double(), nn.Linear(WIDTH, 3).double()

        def forward(self, x):
            return self.h(torch.tanh(self.base(torch.tanh(self.l(x)).to(kind)).double()))

    for _ in range(5):  # whether a batch and an example alone round alike is a matter of luck
        assert error(Base(), normal(4, WIDTH)) <= 10 * torch.finfo(kind).eps


class Observed(nn.Module):
    """Divides by the largest activation so far."""

    def __init__(self):
        super().__init__()
        self.l, self.h = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.register_buffer("largest", torch.ones(()))
        self.double()

    def forward(self, x):
        z = self.l(x)
        with torch.no_grad():
            self.largest.copy_(torch.maximum(self.largest, z.abs().max()))
        return self.h(torch.tanh(z / self.largest.clone()))


def spectral() -> nn.Module:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(WIDTH, 3)).double()


@pytest.mark.parametrize("build", [spectral, Observed])
def test_a_buffer_that_has_come_to_rest_is_read_and_updated_all_the_same(build):
    model, x = build(), normal(4, WIDTH)
    for _ in range(300):
        model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="updates a buffer in its forward pass and reads it there"):
        mixed_point_gradient(model, x, LABELS, **ONE_SAM)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
