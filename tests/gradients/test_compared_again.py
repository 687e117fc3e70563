"""What was proven of one batch is compared again on later ones: the net under what no function of torch tells."""

from __future__ import annotations

import warnings

import numpy
import pytest
import torch
from reference.exactness import engine_met, one_sam_error
from reference.own_functions import ByOwnKernel, LearnedScale
from reference.routed import CLASSES, EXAMPLES, LABELS, TOKENS, WIDTH
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for, recheck
from noisesam.gradients.engine import proven as proven_engine
from noisesam.gradients.engine.recheck import is_due, last_due

LARGE = 5.0
SHOWN = "treats the examples of batch {} otherwise"
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine", "ignore:.*cannot be vectorised"),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Hidden(nn.Module):
    """A kernel of its own brings tokens with large numbers to the end, and all back: nothing tells of it, nor do other data."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.reshape(-1, WIDTH)
        order, back = torch.empty(2, len(tokens), dtype=torch.long)
        order.numpy()[:] = numpy.argsort(tokens.detach().numpy()[:, 0] > LARGE, kind="stable")
        back.numpy()[:] = numpy.argsort(order.numpy())
        done = self.body(ByOwnKernel.apply(tokens, order)).tanh()
        return self.head(ByOwnKernel.apply(done, back).reshape(inputs.shape).mean(1))


class Neighbours(nn.Module):
    """Examples that lie close together meet where numbers are large. Nothing is done in another order then."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs).tanh()
        near = inputs.new_empty(len(inputs), len(inputs))
        places = inputs.detach().numpy()
        meet = numpy.linalg.norm(places[:, None] - places[None], axis=2) < 0.1 * (places.max(1) > LARGE)
        near.numpy()[:] = meet | numpy.eye(len(places), dtype=bool)
        return self.head((near[:, :, None] * hidden[None]).sum(1) / near.sum(1, keepdim=True))


def ordinary() -> Tensor:
    return torch.randn(EXAMPLES, TOKENS, WIDTH).clamp(max=4)


def with_large_numbers() -> Tensor:
    """Return a batch whose first examples send their tokens behind all others."""
    found = ordinary()
    found[:2, :, 0] = LARGE + 1
    return found


def step(model: nn.Module, inputs: Tensor, engine: str = "auto") -> None:
    mixed_point_gradient(model, inputs, LABELS, rho=0.3, jacobian_at="perturbed", residual_at="perturbed", engine=engine)


def apart() -> Tensor:
    return 3.0 * torch.eye(EXAMPLES, WIDTH) + torch.randn(EXAMPLES, WIDTH) / 9


def test_the_batches_that_are_compared_become_seldom():
    assert [batch for batch in range(1, 4000) if is_due(batch)] == [4, 16, 64, 256, 1024, 2048, 3072]
    assert [last_due(batch) for batch in (4, 16, 1024, 2048, 3072)] == [1, 4, 256, 1024, 2048]


def proven(model: nn.Module, inputs: Tensor, engine: str = "auto") -> None:
    """Take the steps up to the first comparison."""
    for _ in range(3):
        step(model, inputs, engine)


def test_rows_that_nothing_tells_of_are_found_out_at_the_next_comparison_and_said():
    model = Hidden()
    step(model, ordinary())
    wrong = [one_sam_error(model, with_large_numbers(), LABELS) for _ in (2, 3)]
    assert min(wrong) > 1e-3  # nothing tells of them between two comparisons: it is what is said now
    with pytest.warns(UserWarning, match=f"{SHOWN.format(4)}.* since batch 1 may have been computed wrongly"):
        assert one_sam_error(model, with_large_numbers(), LABELS) < 1e-12
    assert engine_met(model, with_large_numbers()) == "reference"
    assert one_sam_error(model, with_large_numbers(), LABELS) < 1e-12


def test_what_has_held_at_one_comparison_is_compared_at_the_next():
    model = Hidden()
    for _ in range(15):
        step(model, ordinary())
    with pytest.warns(UserWarning, match=f"{SHOWN.format(16)}.* since batch 4 may"):
        assert one_sam_error(model, with_large_numbers(), LABELS) < 1e-12


def test_the_fast_engine_that_was_asked_for_is_refused_from_there_on():
    model = Hidden()
    proven(model, ordinary(), "fast")
    with pytest.warns(UserWarning, match=SHOWN.format(4)), pytest.raises(InputError, match="engine='fast' for Hidden"):
        step(model, with_large_numbers(), "fast")


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_examples_that_mix_only_in_a_later_batch_are_refused_there(engine: str):
    model = Neighbours()
    proven(model, apart(), engine)
    close = apart()
    close[2] += LARGE + 3
    close[3] = close[2] + 1e-3
    with pytest.raises(InputError, match="mixes the examples"):
        step(model, close, engine)


@pytest.mark.parametrize("row", range(EXAMPLES))
def test_the_sum_hears_an_example_that_is_not_the_one_compared(row: int, monkeypatch: pytest.MonkeyPatch):
    model = Hidden()
    proven(model, ordinary())
    monkeypatch.setattr(recheck, "_GOLDEN", (row + 0.5) / EXAMPLES / 4)
    with pytest.warns(UserWarning, match=SHOWN.format(4)):
        step(model, with_large_numbers())


def test_what_a_step_comes_upon_by_itself_is_no_reason_to_doubt_those_before():
    class Thaws(nn.Module):
        frozen = True

        def __init__(self) -> None:
            super().__init__()
            self.head, self.scale = nn.Linear(WIDTH, CLASSES), nn.Parameter(torch.full((WIDTH,), 1.5))

        def forward(self, inputs: Tensor) -> Tensor:
            with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
                scaled = LearnedScale.apply(inputs, self.scale)
            return self.head(scaled)

    model, inputs = Thaws(), torch.rand(EXAMPLES, WIDTH)
    proven(model, inputs)
    model.frozen = False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert one_sam_error(model, inputs, LABELS) < 1e-12
    words = [str(one.message) for one in said]
    assert any("exact reference engine" in one or "exact, but slow" in one for one in words)
    assert not any("otherwise than those before" in one for one in words)


class Counts(nn.Module):
    """Counts its calls in a buffer, and fills a table where there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, 5), nn.Linear(5, CLASSES)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("table", torch.zeros(0))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if len(self.table) < len(inputs):
            self.table = torch.linspace(1.0, 2.0, len(inputs))
        return self.head(torch.tanh(self.body(inputs)) * self.table[0])


def test_buffers_move_once_in_a_step_that_compares():
    model, inputs, moved = Counts(), torch.randn(EXAMPLES, WIDTH), []
    for _ in range(5):
        before = float(model.calls)
        step(model, inputs)
        moved.append(float(model.calls) - before)
    assert moved[1:] == [1] * 4


def test_a_table_that_is_filled_in_a_step_that_compares_stays_and_the_engine_is_fast():
    model, inputs = Counts(), torch.randn(EXAMPLES, WIDTH)
    proven(model, inputs)
    model.table = torch.zeros(0)
    assert engine_met(model, inputs) == "fast"
    assert len(model.table) == EXAMPLES


def test_comparing_again_changes_no_bit_and_draws_nothing(monkeypatch: pytest.MonkeyPatch):
    def run() -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.4), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, CLASSES))
        found = []
        for batch in range(9):
            gradient = mixed_point_gradient(
                model, torch.randn(EXAMPLES, WIDTH), LABELS, rho=0.3, jacobian_at="perturbed", residual_at="perturbed"
            )
            found += list(gradient.values())
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter -= 0.1 * gradient[name]
            assert engine_for(model, torch.randn(2, WIDTH)).name == "fast", batch
        return found, torch.rand(3)

    compared = run()
    monkeypatch.setattr(proven_engine, "is_due", lambda _batch: False)
    alone = run()
    assert all(torch.equal(one, other) for one, other in zip(compared[0], alone[0], strict=True))
    assert torch.equal(compared[1], alone[1])


def test_a_batch_that_is_not_finite_is_compared_with_nothing():
    model = nn.Linear(WIDTH, CLASSES)
    x = torch.randn(EXAMPLES, WIDTH)
    proven(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine_met(model, torch.full_like(x, torch.inf)) == "fast"
