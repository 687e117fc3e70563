"""A table that a model fills when it first meets a length is there in both passes of a step, and stays whole afterwards."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from reference.loop import example_terms, mean_term, relative_error
from torch import Tensor, nn

from noisesam import methods
from noisesam.errors import InputError
from noisesam.gradients import decompose, mixed_point_gradient
from noisesam.gradients.engine import engine_for
from noisesam.gradients.module_state import ModuleState
from noisesam.tracking import undisturbed

WIDTH, WORDS = 4, 9
pytestmark = pytest.mark.usefixtures("double")


def rotation(length: int) -> Tensor:
    return torch.cos(torch.arange(float(length * WIDTH))).view(length, WIDTH)


class Text(nn.Module):
    """Tokens, each turned by a table of its place."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def table(self, length: int) -> Tensor:
        raise NotImplementedError

    def forward(self, tokens):
        turned = self.embedding(tokens) * self.table(tokens.shape[1])
        return self.head(torch.tanh(self.hidden(turned)).mean(1))


class RegisteredAnew(Text):
    """An attribute says how long the buffer is."""

    def __init__(self):
        super().__init__()
        self.longest = 0

    def table(self, length):
        if length > self.longest:
            self.longest = length
            self.register_buffer("cos", rotation(length), persistent=False)
        return self.cos[:length]


class OfItsLength(Text):
    """The buffer's own shape says for what it was made: two lengths in turn make it again and again."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cos", torch.zeros(1, WIDTH), persistent=False)

    def table(self, length):
        if len(self.cos) != length:
            self.cos = rotation(length)
        return self.cos


class FilledInPlace(Text):
    """A flag says that the buffer is filled."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cos", torch.zeros(64, WIDTH), persistent=False)
        self.filled = False

    def table(self, length):
        if not self.filled:
            self.cos.copy_(rotation(64))
            self.filled = True
        return self.cos[:length]


class NoneAtFirst(Text):
    def __init__(self):
        super().__init__()
        self.register_buffer("cos", None, persistent=False)

    def table(self, length):
        if self.cos is None or len(self.cos) < length:
            self.cos = rotation(length)
        return self.cos[:length]


class InAnAttribute(Text):
    """No buffer at all."""

    def __init__(self):
        super().__init__()
        self.cos = None

    def table(self, length):
        if self.cos is None or len(self.cos) < length:
            self.cos = rotation(length)
        return self.cos[:length]


KINDS = [RegisteredAnew, OfItsLength, FilledInPlace, NoneAtFirst, InAnAttribute]


def batch(length: int, size: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randint(0, WORDS, (size, length)), torch.arange(size) % 3


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_every_length_is_exact_and_no_fallback_is_said(kind, engine, size):
    torch.manual_seed(0)
    model = kind()
    twin = copy.deepcopy(model)
    for length in (6, 6, 8, 6, 3):
        tokens, labels = batch(length, size)
        found = mixed_point_gradient(
            model, tokens, labels, rho=0.3, jacobian_at="perturbed", residual_at="perturbed", engine=engine
        )
        expected = mean_term(example_terms(twin, tokens, labels, 0.3), "1-sam")
        assert relative_error(found, expected) < 1e-12
        if engine == "auto":
            chosen = engine_for(model, tokens)
            chosen.at(tokens)
            assert chosen.name == "fast"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("look", ["undisturbed", "decompose", "gradient"])
def test_a_look_at_the_model_leaves_a_table_and_what_says_that_it_is_there_together(kind, look):
    torch.manual_seed(0)
    model = kind()
    untouched, (tokens, labels) = copy.deepcopy(model), batch(6)
    if look == "undisturbed":
        with undisturbed(model):
            model(tokens)
    elif look == "decompose":
        decompose(model, tokens, labels, rho=0.1)
    else:
        methods.OneSAM(model, rho=0.1).step_gradient(tokens, labels)
    for length in (6, 8):
        tokens, _ = batch(length)
        assert torch.equal(model(tokens), untouched(tokens))


def test_running_statistics_and_counters_are_not_moved_by_the_search_for_tables():
    class Counting(Text):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
            self.seen = 0

        def table(self, length):
            self.calls += 1
            self.seen += 1
            return rotation(length)

    torch.manual_seed(0)
    model = Counting()
    engine_for(model, batch(6)[0])
    assert (int(model.calls), model.seen) == (0, 0)


def test_a_shift_by_the_first_batch_is_that_of_the_whole_batch_and_made_once():
    class ShiftedByTheFirst(Text):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.zeros(WIDTH))
            self.ready = False

        def forward(self, tokens):
            embedded = self.embedding(tokens)
            if not self.ready:
                self.shift.copy_(embedded.detach().mean((0, 1)))
                self.ready = True
            return self.head(torch.tanh(self.hidden(embedded - self.shift)).mean(1))

    torch.manual_seed(0)
    model = ShiftedByTheFirst()
    twin = copy.deepcopy(model)
    for step in range(2):
        tokens, labels = batch(6)
        if step == 0:
            twin(tokens)
        found = mixed_point_gradient(model, tokens, labels, rho=0.3, jacobian_at="perturbed", residual_at="perturbed")
        assert relative_error(found, mean_term(example_terms(twin, tokens, labels, 0.3), "1-sam")) < 1e-12
        assert torch.equal(model.shift, twin.shift)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("method", ["sam", "1-sam", "l-sam", "j-sam"])
def test_buffers_move_once_a_step_by_the_pass_at_w(method, engine):
    class Counting(Text):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("replaced", torch.zeros(()))

        def table(self, length):
            self.calls += 1
            self.replaced = self.replaced + 1
            return rotation(length)

    torch.manual_seed(0)
    model = Counting()
    options = {} if method == "sam" else {"engine": engine}
    stepper = methods.make(method, model, rho=0.1, **options)
    tokens, labels = batch(6, 1)
    for steps in (1, 2, 3):
        stepper.backward(tokens, labels)
        assert (float(model.calls), float(model.replaced)) == (steps, steps)


def test_a_workspace_that_both_passes_fill_is_refused_in_words_where_both_are_held():
    class Workspace(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.layer, self.head = torch.zeros(8, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x):
            self.kept[: len(x)].copy_(x)
            return self.head(torch.tanh(self.layer(self.kept[: len(x)])))

    torch.manual_seed(0)
    model, inputs, labels = Workspace(), torch.randn(3, WIDTH), torch.arange(3)
    twin = copy.deepcopy(model)
    found = mixed_point_gradient(model, inputs, labels, rho=0.3, jacobian_at="perturbed", residual_at="perturbed")
    assert relative_error(found, mean_term(example_terms(twin, inputs, labels, 0.3), "1-sam")) < 1e-12
    with pytest.raises(InputError, match=r"still needs.*\.clone\(\)"):
        mixed_point_gradient(model, inputs, labels, rho=0.3, jacobian_at="w", residual_at="perturbed")


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_buffers_are_kept_and_a_model_that_has_one_runs(layout):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(WIDTH, 3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls its compressed layouts a beta
                self.register_buffer("edges", getattr(torch.eye(WIDTH).roll(1, 0), layout)())

        def forward(self, x):
            return self.head(torch.tanh((self.edges @ x.t()).t()))

    torch.manual_seed(0)
    model, x, y = Graph().double(), torch.randn(4, WIDTH, dtype=torch.float64), torch.arange(4) % 3
    found = mixed_point_gradient(model, x, y, rho=0.3, jacobian_at="perturbed", residual_at="perturbed")
    assert relative_error(found, mean_term(example_terms(model, x, y, 0.3), "1-sam")) < 1e-12
    state = ModuleState(model)
    assert state.changed() == []
    model.edges = model.edges * 2
    assert state.changed() == [model]
