"""What no call with other weights sees, and checkpoints, which are set aside; every weight, gradient and draw stays."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.utils.checkpoint as torch_checkpoint
from reference.loop import PLACES, example_terms, mean_term, relative_error
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from noisesam import decompose, per_example_gradients
from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient, recomputation
from noisesam.gradients.engine import engine_for
from noisesam.gradients.moved_weights import MovedWeightsEngine
from noisesam.methods import make

SAID = "own weights moved for one example after the other, which is exact, but slow"


pytestmark = pytest.mark.usefixtures("double")


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
    how = False

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.how)


class KeepsACopyBehindAReentrantOne(KeepsACopyBehindACheckpoint):
    how = True


class KeepsSavedValues(KeepsAView):
    """A copy whose operation has saved something: a second reverse pass would find it gone."""

    def __init__(self):
        super().__init__()
        self.transposed = torch.tanh(self.layer.weight).t()


class KeepsADetachedView(KeepsAView):
    """What has no gradient moves all the same, as it does under batch SAM."""

    def __init__(self):
        super().__init__()
        self.transposed, self.part = self.layer.weight.detach().t(), self.layer.weight.data[1:][:, :4]


class Again(torch.autograd.Function):
    """Somebody's own checkpoint: the block is computed again in the reverse pass."""

    @staticmethod
    def forward(ctx, block, x, *parameters):
        ctx.block = block
        ctx.save_for_backward(x, *parameters)
        return block(x)

    @staticmethod
    def backward(ctx, *gradients):
        x = ctx.saved_tensors[0]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            found = torch.autograd.grad(ctx.block(leaf), (leaf, *ctx.block.parameters()), gradients[0])
        return None, *found


class ComputesAgain(nn.Module):
    def __init__(self, own: bool = True):
        super().__init__()
        self.own, self.stem, self.head = own, nn.Linear(6, 6), nn.Linear(6, 3)
        self.block = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        return self.head(Again.apply(self.block, x, *self.block.parameters()) if self.own else self.block(x))


class KeepsAScale(nn.Module):
    """The length of each row, taken as a constant and kept until torch counts a change of the weights, or taken anew."""

    def __init__(self, keeps: bool = True):
        super().__init__()
        self.layer, self.weight, self.keeps = nn.Linear(6, 6), nn.Parameter(torch.randn(3, 6)), keeps
        self.kept: tuple[int, Tensor] | None = None

    def forward(self, x):
        version = self.weight._version if self.keeps else -1
        if not self.keeps or self.kept is None or self.kept[0] != version:
            self.kept = version, self.weight.detach().norm(dim=1, keepdim=True)
        return functional.linear(torch.tanh(self.layer(x)), self.weight / self.kept[1])


class ChangedBefore(KeepsAScale):
    """Its weights have had a version already, and the scale belongs to it."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.weight.mul_(2.0)
        self(torch.zeros(1, 6))


class OutputIsAView(nn.Module):
    """One class's logit is a weight itself, through a view that the model keeps."""

    def __init__(self):
        super().__init__()
        self.layer, self.bias = nn.Linear(6, 2), nn.Parameter(torch.randn(3))
        self.kept = self.bias[None]

    def forward(self, x):
        return self.kept.expand(len(x), -1)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 6), torch.arange(4) % 3


def same_weights(model: nn.Module, twin: nn.Module) -> nn.Module:
    twin.load_state_dict(model.state_dict())
    return twin


BUILT = {
    "a kept view": (KeepsAView, KeepsAView),
    "a detached view": (KeepsADetachedView, KeepsADetachedView),
    "a scale kept by version": (KeepsAScale, lambda: KeepsAScale(keeps=False)),
    "a scale kept by a later version": (ChangedBefore, lambda: KeepsAScale(keeps=False)),
    "a function of its own that computes again": (ComputesAgain, lambda: ComputesAgain(own=False)),
}
WEAK = "ignore:.*(own weights moved|cannot be vectorised)"


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("case", BUILT)
def test_the_weights_move_where_nothing_else_is_exact(case, engine):
    build, plain = BUILT[case]
    model, (x, y) = build(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = plain()
    for name, parameter in twin.named_parameters():
        parameter.data.copy_(model.get_parameter(name))
    rows = example_terms(twin, x, y, 0.3)
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
@pytest.mark.filterwarnings(WEAK)
def test_every_quantity_is_there_for_such_a_model(case):
    build, plain = BUILT[case]
    model, (x, y) = build(), batch()
    twin = plain()
    for name, parameter in twin.named_parameters():
        parameter.data.copy_(model.get_parameter(name))
    each = per_example_gradients(model, x, y)
    for name, parameter in twin.named_parameters():
        losses = functional.cross_entropy(twin(x), y, reduction="none")
        wanted = [torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses]
        torch.testing.assert_close(each[name], torch.stack(wanted), rtol=1e-12, atol=1e-14)
    norms = torch.sqrt(sum(g.flatten(1).square().sum(1) for g in each.values()))
    torch.testing.assert_close(decompose(model, x, y).gradient_norm, norms, rtol=1e-12, atol=0)
    step = make("sgd", model, gradient_norms=True).backward(x, y)
    torch.testing.assert_close(step.gradient_norms, norms, rtol=1e-12, atol=0)
    assert (step.forward_examples, step.backward_examples) == (8, 4)  # a pull-back repeats its forward pass


@pytest.mark.parametrize("engine", ["auto", "fast", "reference"])
@pytest.mark.parametrize("how", [False, True])
@pytest.mark.filterwarnings("error")
def test_checkpoints_are_set_aside_and_nothing_else_changes(how, engine):
    """A block that was computed again in the reverse pass would be so at w."""
    model, (x, y) = Checkpointed(how), batch()
    rows = example_terms(same_weights(model, Checkpointed(None)), x, y, 0.3)
    assert engine_for(model, x, engine).name == ("fast" if engine == "auto" else engine)
    for method, (jacobian, residual) in PLACES.items():
        found = mixed_point_gradient(model, x, y, rho=0.3, jacobian_at=jacobian, residual_at=residual, engine=engine)
        assert relative_error(found, mean_term(rows, method)) <= 1e-12, method
    assert all(parameter.grad is None for parameter in model.parameters())
    calls = []
    model.block.register_forward_pre_hook(lambda *_: calls.append(1))
    model(x).sum().backward()
    assert len(calls) == 2  # outside of per-example passes blocks are computed again, as before


@pytest.mark.parametrize("how", [False, True])
def test_dropout_behind_a_checkpoint_draws_the_same_masks_in_every_pass(how):
    model, (x, y) = Checkpointed(how, 0.5), batch()
    plain = same_weights(model, Checkpointed(None, 0.5))
    found = []
    for one in (model, plain):
        mixed_point_gradient(one, x, y, rho=0.1, jacobian_at="w", residual_at="w")  # the model is looked at once
        torch.manual_seed(3)
        found.append(mixed_point_gradient(one, x, y, rho=0.2, jacobian_at="perturbed", residual_at="perturbed"))
    assert relative_error(*found) == 0


@pytest.mark.parametrize("name", ["sam", "m-sam", "asam", "looksam"])
def test_batch_methods_recompute_and_say_which_kind_of_checkpoint_they_cannot_take(name):
    """They move the weights themselves, and what is computed again is so at the moved ones."""
    (x, y), plain = batch(), Checkpointed(None)
    results = []
    for how in (None, False):
        model = same_weights(plain, Checkpointed(how))
        make(name, model, rho=0.3).backward(x, y)
        results.append({key: parameter.grad for key, parameter in model.named_parameters()})
    assert relative_error(*results) <= 1e-12
    with pytest.raises(InputError, match=r"use_reentrant=True.*use_reentrant=False"):
        make(name, Checkpointed(True), rho=0.3).backward(x, y)


def test_checkpoints_by_other_means_are_refused():
    """torch's function under another name, as a library of one's own may have taken it at import."""
    model, (x, y) = Checkpointed(None), batch()
    generator = torch_checkpoint._checkpoint_without_reentrant_generator

    def own(values):
        inner = generator(model.block, True, lambda: (nullcontext(), nullcontext()), "default", False, True, values)
        next(inner)
        found = model.block(values)
        next(inner, None)
        return found

    model.forward = lambda values: model.head(torch.sin(own(torch.tanh(model.stem(values)))))
    for engine in ("auto", "reference"):
        with pytest.raises(InputError, match=r"by other means.*Switch checkpointing off"):
            make("1-sam", model, rho=0.1, engine=engine).backward(x, y)


def test_two_threads_inside_leave_torchs_checkpoints_as_they_were():
    before = (torch_checkpoint._checkpoint_without_reentrant_generator, torch_checkpoint.CheckpointFunction.apply)
    inner = recomputation._nothing_recomputed()
    with recomputation._nothing_recomputed():
        inner.__enter__()  # the second enters while the first is inside, and leaves after it
    inner.__exit__(None, None, None)
    after = (torch_checkpoint._checkpoint_without_reentrant_generator, torch_checkpoint.CheckpointFunction.apply)
    assert before == after


def test_it_is_said_once():
    model, (x, y) = KeepsAView(), batch()
    method = make("1-sam", model, rho=0.1)
    with pytest.warns(UserWarning, match=r"misses a use of 'layer\.weight'") as said:
        [method.backward(x, y) for _ in range(2)]
    assert len(said) == 1


@pytest.mark.parametrize("build", [KeepsAView, ComputesAgain])
def test_the_fast_engine_alone_is_refused(build):
    with pytest.raises(InputError, match="engine='auto'"):
        make("1-sam", build(), rho=0.1, engine="fast").backward(*batch())


@pytest.mark.parametrize("build", [KeepsACopy, KeepsACopyBehindACheckpoint, KeepsACopyBehindAReentrantOne, KeepsSavedValues])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_copy_made_before_the_step_is_refused_and_named(build, engine):
    """It would be that of w at w + eps_i, whatever moves."""
    with pytest.raises(InputError, match=r"'layer\.weight'.*copy.*before the step.*Form it inside forward"):
        make("1-sam", build(), rho=0.1, engine=engine).backward(*batch())


@pytest.mark.filterwarnings(WEAK)
def test_logits_that_are_a_view_of_a_weight_are_those_at_moved_weights():
    model, (x, _) = OutputIsAView(), batch()
    engine = MovedWeightsEngine(model, dict(model.named_parameters()))
    eps = engine.at(x).per_example_gradient(torch.eye(4, 3)).factors
    torch.testing.assert_close(engine.at(x, eps).logits, model(x).detach() + torch.eye(4, 3))


@pytest.mark.filterwarnings(WEAK)
def test_autocast_does_not_remember_the_weights_of_another_example():
    """It keeps a parameter's cast by the parameter's number."""
    torch.set_default_dtype(torch.float32)
    model, (x, y) = KeepsAView(), batch()
    exact = mixed_point_gradient(model, x, y, rho=1.0, jacobian_at="perturbed", residual_at="perturbed")
    with torch.autocast("cpu", torch.bfloat16):
        found = mixed_point_gradient(model, x, y, rho=1.0, jacobian_at="perturbed", residual_at="perturbed")
    # Eight bits over a dozen operations; another example's weights are off by 0.6.
    assert relative_error(found, exact) <= 3e-2


@pytest.mark.filterwarnings(WEAK)
def test_a_batch_that_tells_nothing_is_not_taken_for_a_proof():
    model, (x, y) = KeepsAView(), batch()
    rows = example_terms(model, x, y, 0.3)
    bad = torch.full_like(x, float("nan"))
    assert not engine_for(model, bad, "reference").at(bad).logits.isfinite().any()
    found = mixed_point_gradient(model, x, y, rho=0.3, jacobian_at="perturbed", residual_at="perturbed", engine="reference")
    assert relative_error(found, mean_term(rows, "1-sam")) <= 1e-12


class UnderTwoNames(nn.Module):
    """A layer registered twice, once inside another: exchanged by name it is left without its weights."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.again = nn.Sequential(self.stem, nn.Tanh())

    def forward(self, x):
        return self.head(self.again(torch.tanh(self.stem(x))))


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_layer_under_two_names_keeps_its_weights_and_has_them_moved_in_both_places(engine):
    model, (x, y) = UnderTwoNames(), batch()
    held = model.stem.weight
    rows = example_terms(model, x, y, 0.3)
    for method, (jacobian, residual) in PLACES.items():
        found = mixed_point_gradient(model, x, y, rho=0.3, jacobian_at=jacobian, residual_at=residual, engine=engine)
        assert relative_error(found, mean_term(rows, method)) <= 1e-12
    assert model.stem.weight is held
    assert model.again[0].weight is held


class AddsToGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, block, x):
        ctx.block = block
        ctx.save_for_backward(x)
        return block(x)

    @staticmethod
    def backward(ctx, *gradients):
        leaf = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.block(leaf).backward(gradients[0])
        return None, leaf.grad


class CallsBackward(ComputesAgain):
    def forward(self, x):
        return self.head(AddsToGrad.apply(self.block, torch.tanh(self.stem(x))))


def test_a_reverse_pass_that_adds_to_grad_by_itself_is_refused_and_leaves_no_trace():
    model, (x, y) = CallsBackward(), batch()
    kept = torch.ones_like(model.head.weight)
    model.head.weight.grad = kept
    with pytest.raises(InputError, match=r"calls backward\(\) in its own reverse pass"):
        make("1-sam", model, rho=0.1).backward(x, y)
    assert [p.grad is not None for p in model.parameters()].count(True) == 1
    assert model.head.weight.grad is kept


class CountsItsCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.randn(6, 3)), 0

    def forward(self, x):
        self.calls += 1
        return torch.tanh(x @ torch.sin(self.weight)) * self.calls


def test_a_model_that_does_not_repeat_itself_is_refused():
    with pytest.raises(InputError, match=r"other outputs when it is repeated.*counters out of forward"):
        make("1-sam", CountsItsCalls(), rho=0.1).backward(*batch())


def test_parameters_in_one_place_of_memory_are_refused():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(InputError, match=r"'0\.weight' and '1\.weight' lie in the same memory.*Tie them"):
        make("1-sam", model, rho=0.1).backward(*batch())
    model[1].weight = nn.Parameter(torch.randn(6, 1).expand(6, 6))
    with pytest.raises(InputError, match=r"'1\.weight' has entries in one place.*contiguous"):
        make("1-sam", model, rho=0.1).backward(*batch())


def test_inference_mode_is_refused_with_the_remedy():
    with torch.inference_mode(), pytest.raises(InputError, match="Leave inference_mode"):
        make("1-sam", nn.Linear(6, 3), rho=0.1).backward(*batch())


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


@pytest.mark.filterwarnings(WEAK)
def test_a_graph_from_before_the_step_is_whole_after_it():
    model, (x, y) = KeepsAView(), batch()
    weight = model.head.weight
    before, version = (weight**3).sum(), weight._version
    make("1-sam", model, rho=0.3).backward(x, y)
    assert engine_for(model, x).name == "moved-weights"
    assert weight._version == version
    (found,) = torch.autograd.grad(before, weight)  # torch refuses where what it has saved was changed
    assert torch.equal(found, 3 * weight.detach() ** 2)


class KeepsTheLatest(KeepsAScale):
    """Takes a greater version for the only sign of a change: once its weights were elsewhere, it stays there."""

    def forward(self, x):
        version = self.weight._version
        if self.kept is None or version > self.kept[0]:
            self.kept = version, self.weight.detach().norm(dim=1, keepdim=True)
        return functional.linear(torch.tanh(self.layer(x)), self.weight / self.kept[1])


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_model_that_does_not_come_back_is_refused_and_left_as_it_was(engine):
    model, (x, y) = KeepsTheLatest(), batch()
    before = model(x).detach()
    with pytest.raises(InputError, match="with `!=`"):
        make("1-sam", model, rho=0.3, engine=engine).backward(x, y)
    assert torch.equal(model(x), before)


@pytest.mark.filterwarnings(WEAK)
def test_outputs_that_are_not_finite_refuse_nobody():
    model, (x, _) = KeepsAScale(), batch()
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    assert engine_for(model, x, "reference").name in ("reference", "moved-weights")
