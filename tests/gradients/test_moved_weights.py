"""What no call with other weights sees: activations computed again on the way back, views that a model keeps of its weights."""

from __future__ import annotations

import copy

import pytest
import torch
from reference.loop import PLACES, example_terms, mean_term, relative_error
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from noisesam import decompose, per_example_gradients
from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for
from noisesam.gradients.moved_weights import MovedWeightsEngine
from noisesam.gradients.recomputation import RecomputedActivationsError
from noisesam.methods import make

SAID = r"own weights moved for one example after the other, which is exact, but slow"


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Checkpointed(nn.Module):
    """Two layers of which the intermediate values are dropped; `how` is None (kept), False or True (re-entrant)."""

    def __init__(self, how: bool | None, rate: float = 0.0):
        super().__init__()
        self.how, self.stem = how, nn.Linear(6, 6)
        self.block = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(rate), nn.Linear(8, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        return self.head(torch.sin(self.block(x) if self.how is None else checkpoint(self.block, x, use_reentrant=self.how)))


class KeepsAView(nn.Module):
    """A transpose that is made once, and once more as a slice of a slice."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.transposed, self.part = self.layer.weight.t(), self.layer.weight[1:][:, :4]

    def forward(self, x):
        x = torch.tanh(functional.linear(torch.tanh(self.layer(x)), self.transposed))
        return self.head(x) + functional.linear(x[:, :4], self.part)[:, :3]


class KeepsACopy(KeepsAView):
    def __init__(self):
        super().__init__()
        self.transposed = self.layer.weight.t().contiguous()


class KeepsACopyBehindACheckpoint(KeepsACopy):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6), torch.arange(4) % 3


def same_weights(model: nn.Module, twin: nn.Module) -> nn.Module:
    twin.load_state_dict(model.state_dict())
    return twin


BUILT = {
    "checkpoints": (lambda: Checkpointed(False), lambda: Checkpointed(None)),
    "re-entrant checkpoints": (lambda: Checkpointed(True), lambda: Checkpointed(None)),
    "kept views": (KeepsAView, KeepsAView),
}


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("case", BUILT)
def test_the_weights_move_where_nothing_else_is_exact(case, engine):
    build, plain = BUILT[case]
    model, (x, y) = build(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = example_terms(same_weights(model, plain()), x, y, 0.3)
    with pytest.warns(UserWarning, match=SAID):
        assert engine_for(model, x, engine).name == "moved-weights"
    for method, (jacobian, residual) in PLACES.items():
        wanted = mean_term(rows, method)
        for chunk_size in (None, 3, "auto"):
            found = mixed_point_gradient(
                model, x, y, rho=0.3, jacobian_at=jacobian, residual_at=residual, engine=engine, chunk_size=chunk_size
            )
            # Rounding of float64; weights left at w are off by 1e-3 and more.
            assert relative_error({name: found[name] for name in wanted}, wanted) <= 1e-12, method
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("case", BUILT)
@pytest.mark.filterwarnings(f"ignore:.*{SAID}")
def test_every_quantity_is_there_for_such_a_model(case):
    build, plain = BUILT[case]
    model, (x, y) = build(), batch()
    twin = same_weights(model, plain())
    each = per_example_gradients(model, x, y)
    for name, parameter in twin.named_parameters():
        losses = functional.cross_entropy(twin(x), y, reduction="none")
        wanted = [torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses]
        torch.testing.assert_close(each[name], torch.stack(wanted), rtol=1e-12, atol=1e-14)
    norms = torch.sqrt(sum(g.flatten(1).square().sum(1) for g in each.values()))
    torch.testing.assert_close(decompose(model, x, y).gradient_norm, norms, rtol=1e-12, atol=0)
    torch.testing.assert_close(make("sgd", model, gradient_norms=True).backward(x, y).gradient_norms, norms, rtol=1e-12, atol=0)


def test_it_is_said_once():
    model, (x, y) = KeepsAView(), batch()
    method = make("1-sam", model, rho=0.1)
    with pytest.warns(UserWarning, match=r"'layer\.weight' by way of a view") as said:
        [method.backward(x, y) for _ in range(2)]
    assert len(said) == 1


@pytest.mark.parametrize("build", [KeepsAView, lambda: Checkpointed(False), lambda: Checkpointed(True)])
def test_the_fast_engine_alone_is_refused(build):
    with pytest.raises(InputError, match="engine='auto'"):
        make("1-sam", build(), rho=0.1, engine="fast").backward(*batch())


@pytest.mark.parametrize("build", [KeepsACopy, KeepsACopyBehindACheckpoint])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_copy_made_before_the_step_is_refused_and_named(build, engine):
    """It would be that of w at w + eps_i, whatever moves."""
    with pytest.raises(InputError, match=r"'layer\.weight'.*copy.*before the step.*Form it inside forward"):
        make("1-sam", build(), rho=0.1, engine=engine).backward(*batch())


@pytest.mark.parametrize("how", [False, True])
@pytest.mark.filterwarnings(f"ignore:.*{SAID}")
def test_dropout_behind_a_checkpoint_draws_the_same_masks_in_every_pass(how):
    """An example pulled back meets the masks that its output had; the generator goes on as after one forward pass."""
    model, (x, y) = Checkpointed(how, 0.5), batch()
    plain = same_weights(model, Checkpointed(None, 0.5))
    torch.manual_seed(3)
    losses = functional.cross_entropy(torch.cat([plain(row[None]) for row in x]), y)
    after = torch.get_rng_state()
    named = dict(plain.named_parameters())
    wanted = dict(zip(named, torch.autograd.grad(losses, list(named.values())), strict=True))
    mixed_point_gradient(model, x, y, rho=0.1, jacobian_at="w", residual_at="w")  # the model is looked at once
    for jacobian, residual in PLACES.values():
        torch.manual_seed(3)
        found = mixed_point_gradient(model, x, y, rho=0.0, jacobian_at=jacobian, residual_at=residual)
        assert relative_error(found, wanted) <= 1e-12
        assert torch.equal(torch.get_rng_state(), after)


def test_pulling_back_draws_nothing():
    model, (x, _) = Checkpointed(None, 0.5), batch()
    point = MovedWeightsEngine(model, dict(model.named_parameters())).at(x)
    torch.randn(3)  # somebody else's draws in between
    before = torch.get_rng_state()
    point.sum_gradient(torch.ones(4, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interruption_leaves_the_weights_as_they_were():
    model, (x, _) = KeepsAView(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = MovedWeightsEngine(model, dict(model.named_parameters()))
    eps = engine.at(x).per_example_gradient(torch.ones(4, 3)).factors
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    model.head.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.at(x, eps)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_that_were_there_before_stay():
    model, (x, y) = Checkpointed(True), batch()
    kept = {name: torch.full_like(parameter, 7.0) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = kept[name]
    with pytest.warns(UserWarning, match=SAID):
        mixed_point_gradient(model, x, y, rho=0.1, jacobian_at="perturbed", residual_at="w")
    assert all(parameter.grad is kept[name] and bool((kept[name] == 7).all()) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.filterwarnings(f"ignore:.*{SAID}")
@pytest.mark.filterwarnings("ignore:.*cannot be vectorised")
def test_checkpoints_switched_on_after_the_first_step_are_seen_and_the_remedy_holds(engine):
    model, (x, y) = Checkpointed(None), batch()
    method = make("1-sam", model, rho=0.1, engine=engine)
    method.backward(x, y)
    model.how = False
    with pytest.raises(RecomputedActivationsError, match=r"after the model's first step.*copy\.deepcopy"):
        method.backward(x, y)
    make("1-sam", copy.deepcopy(model), rho=0.1, engine=engine).backward(x, y)
    make("sam", model, rho=0.1).backward(x, y)  # moves the weights itself
