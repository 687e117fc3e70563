"""What was proven of one batch is compared again on later ones: the net under what no function of torch tells."""

from __future__ import annotations

import warnings

import pytest
import torch
from reference.exactness import engine_met, one_sam_error
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for, selection
from noisesam.gradients.engine.recheck import is_due, last_due

EXAMPLES, TOKENS, WIDTH, CLASSES = 4, 4, 6, 3
LABELS = torch.tensor([0, 1, 2, 0])
SHOWN = "treats the examples of batch {} otherwise"
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine", "ignore:.*cannot be vectorised"),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Hidden(nn.Module):
    """Experts get their tokens by functions that are out of torch's own overrides: nothing tells of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.reshape(-1, WIDTH)
        with torch._C.DisableTorchFunction():
            order = (tokens[:, 0] > 0).long().argsort(stable=True)
            brought, first = tokens[order], int((tokens[:, 0] <= 0).sum())
        parts = brought.split([first, len(brought) - first])
        halves = [expert(part).tanh() for expert, part in zip(self.experts, parts, strict=True)]
        done = torch.cat(halves)
        with torch._C.DisableTorchFunction():
            back = done[order.argsort()]
        return self.head(back.reshape(inputs.shape).mean(1))


class Neighbours(nn.Module):
    """Examples that lie close together meet; in most batches none does. Nothing is done in another order then."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs).tanh()
        with torch._C.DisableTorchFunction():
            near = (torch.cdist(inputs.detach(), inputs.detach()) < 0.1).to(inputs.dtype)
        return self.head((near[:, :, None] * hidden[None]).sum(1) / near.sum(1, keepdim=True))


def in_order() -> Tensor:
    """Return a batch that asks both experts evenly with every example: equal shares for equal examples happen to be right."""
    found = torch.randn(EXAMPLES, TOKENS, WIDTH)
    found[:, : TOKENS // 2, 0], found[:, TOKENS // 2 :, 0] = -1, 1
    return found


def out_of_order() -> Tensor:
    """Return a batch that does so as a whole alone."""
    found = torch.randn(EXAMPLES, TOKENS, WIDTH)
    found[: EXAMPLES // 2, :, 0], found[EXAMPLES // 2 :, :, 0] = -1, 1
    return found


def step(model: nn.Module, inputs: Tensor, engine: str = "auto") -> None:
    mixed_point_gradient(model, inputs, LABELS, rho=0.3, jacobian_at="perturbed", residual_at="perturbed", engine=engine)


def apart(size: int = EXAMPLES) -> Tensor:
    return 3.0 * torch.eye(size, WIDTH) + torch.randn(size, WIDTH) / 9


def test_the_batches_that_are_compared_become_seldom():
    assert [batch for batch in range(1, 2000) if is_due(batch)] == [2, 8, 32, 128, 512, 1024, 1536]
    assert [last_due(batch) for batch in (2, 8, 512, 1024, 1536)] == [1, 2, 128, 512, 1024]


def test_rows_that_nothing_tells_of_are_found_out_on_the_second_batch():
    model = Hidden()
    step(model, in_order())
    with pytest.warns(UserWarning, match=SHOWN.format(2)):
        assert one_sam_error(model, out_of_order(), LABELS) < 1e-12
    assert engine_met(model, out_of_order()) == "reference"


def test_rows_that_change_later_are_found_out_at_the_next_comparison_and_said():
    model = Hidden()
    for _ in range(4):
        step(model, in_order())
    wrong = [one_sam_error(model, out_of_order(), LABELS) for _ in (5, 6, 7)]
    assert min(wrong) > 1e-3  # nothing tells of them between two comparisons: it is what is said now
    with pytest.warns(UserWarning, match="since batch 2 may have been computed wrongly"):
        assert one_sam_error(model, out_of_order(), LABELS) < 1e-12


def test_the_fast_engine_that_was_asked_for_is_refused_from_there_on():
    model = Hidden()
    step(model, in_order(), "fast")
    with pytest.warns(UserWarning, match=SHOWN.format(2)), pytest.raises(InputError, match="engine='fast' for Hidden"):
        step(model, out_of_order(), "fast")


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_examples_that_mix_only_in_a_later_batch_are_refused_there(engine: str):
    model = Neighbours()
    step(model, apart(), engine)
    close = apart()
    close[3] = close[2] + 1e-3
    with pytest.raises(InputError, match="mixes the examples"):
        step(model, close, engine)


def test_the_sum_hears_an_example_that_is_not_the_one_compared(monkeypatch: pytest.MonkeyPatch):
    for row in range(EXAMPLES):
        model = Hidden()
        step(model, in_order())
        monkeypatch.setattr("noisesam.gradients.engine.recheck._GOLDEN", (row + 0.5) / EXAMPLES / 2)
        with pytest.warns(UserWarning, match=SHOWN.format(2)):
            step(model, out_of_order())


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
    monkeypatch.setattr(selection, "is_due", lambda _batch: False)
    alone = run()
    assert all(torch.equal(one, other) for one, other in zip(compared[0], alone[0], strict=True))
    assert torch.equal(compared[1], alone[1])


def test_a_batch_that_is_not_finite_is_compared_with_nothing():
    model = nn.Linear(WIDTH, CLASSES)
    x = torch.randn(EXAMPLES, WIDTH)
    step(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine_met(model, torch.full_like(x, torch.inf)) == "fast"
