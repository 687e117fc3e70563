"""Rows that the data choose, axes that arguments choose, uses that are quiet, passes that are not linear: exact, or refused."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from reference.loop import example_terms, mean_term, relative_error
from torch import Tensor, nn

import noisesam
from noisesam.errors import InputError
from noisesam.gradients import decompose, mixed_point_gradient
from noisesam.gradients.engine import engine_for
from noisesam.gradients.engine.mixing import _splits

ONE_SAM = {"rho": 0.3, "jacobian_at": "perturbed", "residual_at": "perturbed"}
LABELS = torch.tensor([0, 1, 2, 0])
BOTH = pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def error(model: nn.Module, inputs, labels: Tensor = LABELS, **options) -> float:
    """Return how far 1-SAM is off from the loop over examples."""
    found = mixed_point_gradient(model, inputs, labels, **ONE_SAM, **options)
    return relative_error(found, mean_term(example_terms(model, inputs, labels, 0.3), "1-sam"))


def name_of(model: nn.Module, inputs) -> str:
    engine = engine_for(model, inputs)
    engine.at(inputs)
    return engine.name


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Routed(nn.Module):
    """Each token asks one of two experts, which its first number chooses."""

    def __init__(self):
        super().__init__()
        self.experts, self.h = nn.ModuleList([nn.Linear(5, 6), nn.Linear(5, 6)]), nn.Linear(6, 3)
        self.double()

    def head(self, tokens: Tensor, examples: int) -> Tensor:
        return self.h(torch.tanh(tokens).reshape(examples, -1, 6).mean(1))


class BySorting(Routed):
    def forward(self, x):
        tokens = x.flatten(0, 1)
        expert = (tokens[:, 0] > 0).long()
        order = expert.argsort(stable=True)
        parts = tokens[order].split(torch.bincount(expert, minlength=2).tolist())
        outputs = torch.cat([one(part) for one, part in zip(self.experts, parts, strict=True)])
        return self.head(outputs[order.argsort()], len(x))


class BySelecting(BySorting):
    def forward(self, x):
        tokens = x.flatten(0, 1)
        order = (tokens[:, 0] > 0).long().argsort(stable=True)
        first, second = tokens.index_select(0, order).chunk(2)
        return self.head(
            torch.zeros_like(tokens[:, :1]).expand(-1, 6).index_copy(
                0, order, torch.cat([self.experts[0](first), self.experts[1](second)])
            ), len(x)
        )  # fmt: skip


class ByNumbers(Routed):
    def forward(self, x):
        tokens = x.flatten(0, 1)
        chosen = (tokens[:, 0] > 0).tolist()
        outputs = tokens.new_zeros(len(tokens), 6)
        for k, expert in enumerate(self.experts):
            places = [place for place, one in enumerate(chosen) if one == k]
            outputs = outputs.index_copy(0, torch.tensor(places, dtype=torch.long), expert(tokens[places]))
        return self.head(outputs, len(x))


class ByMasksOfNumbers(Routed):
    def forward(self, x):
        tokens = x.flatten(0, 1)
        chosen = (tokens[:, 0] > 0).tolist()
        outputs = tokens.new_zeros(len(tokens), 6)
        for k, expert in enumerate(self.experts):
            mask = torch.tensor([one == k for one in chosen])
            outputs = outputs.clone()
            outputs[mask] = expert(tokens[mask])
        return self.head(outputs, len(x))


@BOTH
@pytest.mark.parametrize("build", [BySorting, BySelecting, ByNumbers, ByMasksOfNumbers])
def test_tokens_sorted_by_expert_belong_to_whom_the_data_say(build):
    model, x = build(), normal(4, 6, 5)
    x[:, :3, 0], x[:, 3:, 0] = -1, 1  # every example sends half of its tokens to each
    assert error(model, x) <= 1e-12
    x = normal(4, 6, 5)
    x[..., 0] = -1
    x[:2, :, 0] = 1  # as many for each expert, from other examples
    assert error(model, x) <= 1e-12


class SortedByLength(Routed):
    def forward(self, x):
        order = (x[..., 0] > -5).sum(1).argsort(descending=True, stable=True)
        return self.h(torch.tanh(self.experts[0](x[order])).mean(1)[order.argsort()])


@BOTH
@pytest.mark.parametrize("lengths", [[6] * 8, [6, 3, 6, 3, 6, 3, 6, 3], [6, 5, 6, 6, 4, 4, 3, 2]])
def test_texts_sorted_by_length_are_their_own(lengths):
    model, x = SortedByLength(), normal(8, 6, 5)
    error(model, x, LABELS.repeat(2))
    for example, length in enumerate(lengths):
        x[example, length:, 0] = -9
    assert error(model, x, LABELS.repeat(2)) <= 1e-12


class Swapped(Routed):
    """Two of the examples change places for one layer: neither the first, nor the middle, nor the last."""

    def forward(self, x):
        order = [0, 2, 1, 3, 4, 6, 5, 7] if len(x) == 8 else [*range(len(x))]
        return self.h(torch.tanh(self.experts[0](x[order]))[order])


@BOTH
def test_examples_that_change_places_on_the_way_are_seen_whichever_they_are():
    model, x = Swapped(), normal(8, 5)
    assert name_of(model, x) == "reference"
    assert error(model, x, LABELS.repeat(2)) <= 1e-12


class LastToken(Routed):
    """The last token of each text, and every example's two largest: chosen by the data within its own rows."""

    def forward(self, x):
        lengths = (x[..., 0] > 0).sum(1).clamp(1)
        last = x[torch.arange(len(x)), lengths - 1]
        largest = x.gather(1, x.topk(2, dim=1).indices).sum(1)
        return self.h(torch.tanh(self.experts[0](last) + self.experts[1](largest)))


def test_what_the_data_choose_within_an_example_stays_fast():
    model = LastToken()
    for _ in range(3):
        x = normal(4, 6, 5)
        assert error(model, x) <= 1e-12
        assert name_of(model, x) == "fast"


class Axis(Routed):
    axis = 1

    def forward(self, x):
        return self.h(torch.tanh(self.experts[0](x.movedim(1, self.axis))).sum(self.axis))


class Order(Axis):
    def forward(self, x):
        order = (0, 1, 2) if self.axis else (1, 0, 2)
        rows = torch.tanh(self.experts[0](x.permute(order).reshape(-1, 5)))
        return self.h(rows.reshape(*x.permute(order).shape[:2], 6).sum(self.axis))


@BOTH
@pytest.mark.parametrize(("build", "positions"), [(Axis, 4), (Order, 7), (Order, 4)])
def test_an_axis_that_is_switched_is_another_way(build, positions):
    model, x = build(), normal(4, positions, 5)
    for axis in (1, 0, 1):
        model.axis = axis
        assert error(model, x) <= 1e-12


class Counting(Routed):
    """Another way at every call."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.h(torch.tanh(self.experts[0](x)).roll(self.calls, 1).roll(-self.calls, 1))


@BOTH
def test_a_model_with_ever_new_ways_is_exact_and_not_proven_for_ever():
    model, x = Counting(), normal(4, 5)
    for _ in range(20):
        assert error(model, x) <= 1e-12


class Quiet(nn.Module):
    """A branch, time first, behind a scale of its own that starts small."""

    def __init__(self, scale: float):
        super().__init__()
        self.e, self.l, self.h = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.full((8,), scale))

    def forward(self, x):
        z = self.e(x)
        return self.h((z + self.scale * torch.tanh(self.l(z.transpose(0, 1))).transpose(0, 1)).mean(1))


class QuietByData(nn.Module):
    """The same weights once more, behind a gate that each example opens by its first number."""

    def __init__(self):
        super().__init__()
        self.l, self.h = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        side = torch.tanh(self.l(x.transpose(0, 1))).sum(0)
        return self.h(torch.tanh(self.l(x.mean(1))) + torch.sigmoid(x[:, 0, :1]) * side)


@BOTH
@pytest.mark.parametrize(("scale", "dtype"), [(1e-4, torch.float32), (1e-6, torch.float32), (1e-9, torch.float64)])
def test_a_branch_behind_a_small_scale_is_compared_before_it_grows(scale, dtype):
    model, x = Quiet(scale).to(dtype), normal(4, 4, 5).to(dtype)  # as many positions as examples
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert error(model, x) <= bound
    with torch.no_grad():
        model.scale.fill_(0.3)
    assert error(model, x) <= bound


@BOTH
@pytest.mark.parametrize(("value", "dtype"), [(-10, torch.float32), (-25, torch.float64)])
def test_a_use_that_was_quiet_beside_another_is_compared_when_it_speaks(value, dtype):
    model, x = QuietByData().to(dtype), normal(4, 4, 5).to(dtype)
    bound, heard_from = (1e-12, 2e-8) if dtype == torch.float64 else (1e-5, 4e-3)
    x[:, 0, 0] = value
    assert error(model, x) <= heard_from  # of its weights' gradient it is a share that rounding may have
    x[:, 0, 0] = 1
    assert error(model, x) <= bound


class OpensAway(nn.Module):
    """A gate that is shut at w and open at w + eps, before weights that are used once more without it."""

    def __init__(self):
        super().__init__()
        self.l, self.h = nn.Linear(5, 6), nn.Linear(6, 3)
        self.u = nn.Parameter(torch.ones(5))
        self.double()

    def forward(self, x):
        gate = ((x.mean(1) * self.u).sum(1, keepdim=True) * 0.1 - 0.3).relu()
        side = torch.tanh(self.l(x.transpose(0, 1))).sum(0)
        return self.h(torch.tanh(self.l(x.mean(1))) + gate * side)


@BOTH
@pytest.mark.parametrize("rho", [0.3, 3.0])
@pytest.mark.parametrize("term", ["1-sam", "l-sam", "j-sam"])
def test_a_gate_that_opens_at_the_perturbed_weights_is_no_surprise(rho, term):
    model, x = OpensAway(), normal(4, 4, 5)
    points = {"1-sam": ("perturbed", "perturbed"), "l-sam": ("w", "perturbed"), "j-sam": ("perturbed", "w")}[term]
    found = mixed_point_gradient(model, x, LABELS, rho=rho, jacobian_at=points[0], residual_at=points[1])
    assert relative_error(found, mean_term(example_terms(model, x, LABELS, rho), term)) <= 1e-12


class DerivedTwice(nn.Module):
    """One derived weight, used plainly and, time first, behind a gate."""

    def __init__(self):
        super().__init__()
        self.w, self.h = nn.Parameter(torch.randn(6, 5)), nn.Linear(6, 3)
        self.register_buffer("mask", (torch.rand(6, 5) > 0.3).double())
        self.double()

    def forward(self, x):
        weight = self.w * self.mask
        gate = (x[:, 0, 0] > 0).to(x)[:, None]
        side = torch.tanh(nn.functional.linear(x.transpose(0, 1), weight)).sum(0)
        return self.h(torch.tanh(nn.functional.linear(x.mean(1), weight)) + gate * side)


@BOTH
def test_uses_of_a_derived_weight_are_heard_one_by_one():
    model, x = DerivedTwice(), normal(4, 4, 5)
    for gate in (-1, 1):
        x[:, 0, 0] = gate
        assert error(model, x) <= 1e-12


CHANGES = {
    "clipped": lambda gradient: gradient.clamp(-0.05, 0.05),
    "sign": torch.sign,
    "normalised": lambda gradient: gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-9),
}


class Hooked(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.l, self.h, self.change = nn.Linear(5, 6), nn.Linear(6, 3), change

    def forward(self, x):
        z = torch.tanh(self.l(x))
        if z.requires_grad:
            z.register_hook(self.change)
        return self.h(z)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_reverse_pass_that_is_not_linear_is_refused(change, engine):
    with pytest.raises(InputError, match="reverse pass of Hooked is not linear"):
        mixed_point_gradient(Hooked(CHANGES[change]).double(), normal(4, 5), LABELS, engine=engine, **ONE_SAM)


@pytest.mark.parametrize("change", CHANGES)
def test_a_frozen_number_of_sixteen_bits_hides_no_reverse_pass_that_is_not_linear(change):
    model = Hooked(CHANGES[change]).double()
    model.scale = nn.Parameter(torch.ones((), dtype=torch.float16), requires_grad=False)
    with pytest.raises(InputError, match="reverse pass of Hooked is not linear"):
        mixed_point_gradient(model, normal(4, 5), LABELS, **ONE_SAM)


@BOTH  # its own rounding may take it to the slower engine
def test_a_frozen_layer_of_sixteen_bits_on_the_way_is_linear():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(5, 5).half().requires_grad_(False)
            self.l, self.h = nn.Linear(5, 5).double(), nn.Linear(5, 3).double()

        def forward(self, x):
            return self.h(torch.tanh(self.base(torch.tanh(self.l(x)).half()).double()))

    for _ in range(5):
        assert error(Half(), normal(4, 5)) <= 10 * torch.finfo(torch.float16).eps


def test_a_reverse_pass_that_scales_is_linear():
    assert error(Hooked(lambda gradient: -0.3 * gradient).double(), normal(4, 5)) <= 1e-12


def test_a_layer_in_another_precision_rounds_and_is_linear_all_the_same():
    class Rounded(Routed):
        def __init__(self):
            super().__init__()
            self.experts[0].float()

        def forward(self, x):
            return self.h(torch.tanh(self.experts[0](x.float())).double())

    for _ in range(10):  # whether a batch and an example alone round alike is a matter of luck
        model, inputs = Rounded(), normal(4, 5)
        assert error(model, inputs) <= 1e-6  # of float32
        assert name_of(model, inputs) == "fast"


def test_parameters_that_are_only_added_have_one_gradient_of_an_example_and_are_linear_all_the_same():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.h = nn.Linear(5, 6), nn.Linear(6, 3)
            self.place, self.kind, self.sums = (nn.Parameter(normal(1, k)) for k in (6, 6, 4))

        def forward(self, x):
            return self.h(torch.tanh(self.l(x) + self.place + self.kind)) + self.sums.sum()

    for examples in (1, 4):
        assert error(Added().double(), normal(examples, 5), LABELS[:examples]) <= 1e-12


class LooksFirst(Hooked):
    """Registers its hook at every call, which looks only, or not at all, until it is told to change something."""

    def __init__(self, change, *, from_the_start):
        super().__init__(change)
        self.at_work, self.from_the_start, self.seen = False, from_the_start, 0

    def forward(self, x):
        z = torch.tanh(self.l(x))
        if z.requires_grad and (self.at_work or self.from_the_start):
            z.register_hook(self.look)
        return self.h(z)

    def look(self, gradient):
        self.seen += 1
        return self.change(gradient) if self.at_work else None


@pytest.mark.parametrize("from_the_start", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_hook_that_begins_to_change_gradients_is_proven_then(change, from_the_start):
    model, x = LooksFirst(CHANGES[change], from_the_start=from_the_start).double(), normal(4, 5)
    assert error(model, x) <= 1e-12
    model.at_work = True
    with pytest.raises(InputError, match="reverse pass of LooksFirst is not linear"):
        mixed_point_gradient(model, x, LABELS, **ONE_SAM)
    model.at_work = False
    assert error(model, x) <= 1e-12


@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_hook_may_begin_and_cease_to_scale(from_the_start):
    model, x = LooksFirst(lambda gradient: -0.3 * gradient, from_the_start=from_the_start).double(), normal(4, 5)
    for model.at_work in (False, True, False, True):
        assert error(model, x) <= 1e-12
        assert engine_for(model, x).name == "fast"


def test_a_hook_that_looks_only_has_nothing_proven_again():
    model, x = LooksFirst(torch.sign, from_the_start=True).double(), normal(4, 5)
    error(model, x)
    looked = []
    for _ in range(2):
        model.seen = 0
        mixed_point_gradient(model, x, LABELS, **ONE_SAM)
        looked.append(model.seen)
    assert looked == [2, 2]


class WritesToItsInput(Routed):
    def forward(self, x):
        return self.h(torch.tanh(self.experts[0](x.sub_(0.5))))


def test_a_model_that_writes_to_its_inputs_is_refused():
    with pytest.raises(InputError, match=r"writes to its inputs.*x = x - 0\.5"):
        mixed_point_gradient(WritesToItsInput(), normal(4, 5), LABELS, **ONE_SAM)


@pytest.mark.parametrize("examples", [*range(2, 40), 128])
def test_of_any_two_examples_a_group_has_the_first_without_the_second(examples):
    groups = [set(rows) for rows in _splits(examples)]
    assert len(groups) <= 10
    for first in range(examples):
        for second in range(examples):
            assert first == second or any(first in group and second not in group for group in groups)


class Friends(nn.Module):
    """Two of the examples see each other."""

    def __init__(self, first: int, second: int):
        super().__init__()
        self.h, self.pair = nn.Linear(5, 3), (first, second)
        self.double()

    def forward(self, x):
        z, (first, second) = self.h(x), self.pair
        if len(x) < 8:
            return z
        mixed = z[first] + 0.01 * torch.tanh(z[second])
        return torch.cat([z[:first], mixed[None], z[first + 1 :]])


@pytest.mark.parametrize(("first", "second"), [(1, 3), (3, 1), (5, 6), (2, 6), (6, 4)])
def test_any_two_examples_that_mix_are_found(first, second):
    with pytest.raises(InputError, match="mixes the examples"):
        mixed_point_gradient(Friends(first, second), normal(8, 5), LABELS.repeat(2), **ONE_SAM)


class TokenFriends(nn.Module):
    """Tokens, which have no gradient: the second example looks at the sixth."""

    def __init__(self):
        super().__init__()
        self.e, self.h = nn.Embedding(9, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, tokens):
        shift = torch.zeros(len(tokens), 1, dtype=torch.float64)
        if len(tokens) > 5:
            shift[1] = tokens[5, 0]
        return self.h(self.e(tokens).mean(1) + shift)


def test_tokens_that_mix_are_found_though_they_have_no_gradient():
    with pytest.raises(InputError, match=r"mixes the examples|size of the batch"):
        mixed_point_gradient(TokenFriends(), torch.randint(1, 9, (8, 4)), LABELS.repeat(2), **ONE_SAM)


def test_a_loss_that_mixes_by_numbers_without_a_gradient_is_refused():
    def focal(logits, targets):
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return losses * losses.detach() / losses.detach().mean()

    with pytest.raises(InputError, match="'focal' mixes the examples"):
        mixed_point_gradient(nn.Linear(5, 3).double(), normal(4, 5), LABELS, loss=focal, **ONE_SAM)


class OneAxis(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.h = nn.Linear(5, 6), nn.Linear(6, 1)
        self.double()

    def forward(self, x):
        return self.h(torch.tanh(self.l(x))).squeeze(-1)


@pytest.mark.parametrize("loss", ["logistic", "mse"])
@pytest.mark.parametrize("chunk_size", [None, 1, 3, "auto"])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_logits_of_one_axis_are_the_same_as_of_one_column(loss, chunk_size, engine):
    model, x, y = OneAxis(), normal(4, 5), torch.tensor([0, 1, 1, 0])
    column = nn.Sequential(model.l, nn.Tanh(), model.h)
    targets = y if loss == "logistic" else y.double()
    options = {"loss": loss, "chunk_size": chunk_size, "engine": engine}
    found = mixed_point_gradient(model, x, targets, **ONE_SAM, **options)
    expected = mixed_point_gradient(column, x, targets, **ONE_SAM, **options)
    renamed = {name.replace("0.", "l.").replace("2.", "h."): gradient for name, gradient in expected.items()}
    assert relative_error(found, renamed) <= 1e-12
    one, other = (decompose(which, x, targets, rho=0.3, **options) for which in (model, column))
    for part in ("residual_norm", "gradient_norm", "logit_weight", "jacobian_weight"):
        assert relative_error({"": getattr(one, part)}, {"": getattr(other, part)}) <= 1e-12


class Squeezed(OneAxis):
    def forward(self, x):
        return self.h(torch.tanh(self.l(x))).squeeze()


def test_outputs_that_lose_their_example_axis_are_refused_in_words():
    with pytest.raises(InputError, match=r"returned shape \(\) for 1 examples"):
        mixed_point_gradient(Squeezed(), normal(1, 5), torch.tensor([1]), loss="logistic", **ONE_SAM)


class Nodes(nn.Module):
    """A graph whose nodes are the examples."""

    def __init__(self):
        super().__init__()
        self.h = nn.Linear(5, 3)
        self.register_buffer("adjacency", torch.eye(4))

    def forward(self, x):
        return self.adjacency @ self.h(x)


def test_a_model_for_one_batch_size_is_refused_in_words():
    with pytest.raises(InputError, match="but not on one of its examples alone"):
        mixed_point_gradient(Nodes(), torch.randn(4, 5), LABELS, **ONE_SAM)


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.h = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        self.attention = torch.softmax(self.l(x), -1)
        return self.h(self.attention)


@pytest.mark.filterwarnings("ignore:.*exact, but slow")
def test_a_module_that_keeps_what_it_has_computed_can_be_read_and_saved_afterwards(tmp_path):
    model, x = Keeps(), torch.randn(4, 5)
    model(x)
    mixed_point_gradient(model, x, LABELS, engine="reference", **ONE_SAM)
    assert float(model.attention.detach().sum()) > 0
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.save(model.attention.detach(), tmp_path / "attention.pt")


def test_another_thread_may_draw_with_numpys_generator():
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            np.random.rand()  # noqa: NPY002

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(5):
            noisesam.OneSAM(nn.Linear(5, 3), rho=0.1).backward(torch.randn(4, 5), LABELS)
    finally:
        stop.set()
        thread.join()
