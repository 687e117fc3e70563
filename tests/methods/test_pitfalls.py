"""Ten ways in which implementations of sharpness-aware methods go wrong, each beside a naive twin that does.

The numbers are those of the pitfalls: 1 gradient scaling, 2 running statistics, 3 perturb and restore, 4 random masks, 5 zero
gradients, 6 state, 7 clipping, 8 top-k, 10 accumulation, 11 kinds of parameters. The ninth, caches that differ between ranks,
comes with distributed training. A law holds here for our method and is shown to fail for the twin.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from reference.loop import relative_error
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import Batch
from noisesam.methods import Method, make, names
from noisesam.methods.looksam import LookSAM
from noisesam.methods.result import Outcome, StepCall
from noisesam.methods.vasso import VaSSO
from noisesam.testing import check_method
from noisesam.testing.laws import LAWS
from noisesam.testing.problem import TiedNetwork, batch, bits, gradients, network, same_bits, step, with_fixed_weights

RHO = 0.1


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, targets)


class Port(Method):
    """SAM as it is ported over and over: rho/norm without a guard, `add_` and `sub_`, nothing kept and nothing put back."""

    name, title, rule, cost, passes, reference = "port", "A port", "", "2F + 2B", ("2", "2"), ""

    def __init__(self, model: nn.Module, rho: float = RHO) -> None:
        super().__init__(model)
        self.rho = rho

    def _pass(self, batch: Batch, parameters: dict[str, nn.Parameter]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logits = self.model(batch.inputs)
        losses = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        found = torch.autograd.grad(losses.mean(), list(parameters.values()), allow_unused=True)
        pairs = zip(parameters, found, strict=True)
        return logits.detach(), losses.detach(), {name: value for name, value in pairs if value is not None}

    def _move(self, parameters: dict[str, nn.Parameter], eps: dict[str, Tensor]) -> None:
        for name, value in eps.items():
            parameters[name].add_(value)

    def _step(self, batch: Batch, parameters: dict[str, nn.Parameter], call: StepCall) -> Outcome:
        logits, losses, first = self._pass(batch, parameters)
        norm = torch.stack([value.norm() for value in first.values()]).norm()
        eps = {name: self.rho / norm * value for name, value in first.items()}
        with torch.no_grad():
            self._move(parameters, eps)
        _, _, second = self._pass(batch, parameters)
        with torch.no_grad():
            self._move(parameters, {name: -eps[name] for name in second if name in eps})
        gradient = {name: call.total * value for name, value in second.items()}
        return Outcome(gradient, logits, losses, 2 * batch.size, 2 * batch.size)


def ours(model: nn.Module) -> Method:
    return make("sam", model, rho=RHO)


def law(name: str, factory: Callable[[nn.Module], Method]) -> str:
    """What a law of the public suite finds wrong with a method: nothing, or words."""
    return check_method(factory, skip=[other for other in LAWS if other != name], raises=False)[0].found


# ------------------------------------------------------------------ 1: gradient scaling


def scaled_update(scale: float, naive: bool) -> Tensor:
    """The change of the weights in one step of SGD with lr=1 through a scaler."""
    model, examples = network(dtype=torch.float32), batch(dtype=torch.float32)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    if naive:  # the closure of a SAM optimizer, handed to scaler.step
        scaler.scale(cross_entropy(model(examples.inputs), examples.targets)).backward()
        first = {p: p.grad / torch.stack([q.grad.norm() for q in model.parameters()]).norm() for p in model.parameters()}

        def closure() -> Tensor:
            with torch.no_grad():
                for p, value in first.items():
                    p.add_(RHO * value)
            optimizer.zero_grad()
            with torch.enable_grad():
                scaler.scale(cross_entropy(model(examples.inputs), examples.targets)).backward()
            with torch.no_grad():
                for p, value in first.items():
                    p.sub_(RHO * value)
            return torch.zeros(())

        scaler.step(optimizer, closure)
    else:
        step(ours(model), examples, scaler=scaler)
        scaler.step(optimizer)
    scaler.update()
    return torch.cat([p.detach().flatten() for p in model.parameters()]) - before


def test_pitfall_1_a_step_through_a_scaler_is_the_step_without_its_scale():
    model, examples = network(dtype=torch.float32), batch(dtype=torch.float32)
    step(ours(model), examples)
    expected = -torch.cat([p.grad.flatten() for p in model.parameters()])

    def far(update: Tensor) -> float:
        return float((update - expected).norm() / expected.norm())

    assert far(scaled_update(1024.0, naive=False)) <= 1e-6  # rounding of float32; a power of two adds none
    twin = scaled_update(1024.0, naive=True)
    assert far(twin) > 1000  # its second gradient is applied still scaled
    assert float(twin.norm() / expected.norm()) == pytest.approx(1024.0, rel=1e-3)


def test_pitfall_1_eps_of_the_unnormalised_rule_does_not_see_the_scale():
    model, examples = network(), batch()
    method = make("sam", model, rho=RHO, normalize=False)
    expected = {name: value.clone() for name, value in method.step_gradient(examples.inputs, examples.targets).items()}
    step(method, examples, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert relative_error({name: value / 1024 for name, value in gradients(model).items()}, expected) <= 1e-12

    twin = copy.deepcopy(model)
    scale, weights = 1024.0, {name: p.detach().clone() for name, p in twin.named_parameters()}
    twin.zero_grad()
    (scale * cross_entropy(twin(examples.inputs), examples.targets)).backward()
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(RHO * p.grad)  # the gradient still carries the scale
    twin.zero_grad()
    (scale * cross_entropy(twin(examples.inputs), examples.targets)).backward()
    found = {name: p.grad / scale for name, p in twin.named_parameters()}
    assert float((twin[0].weight.detach() - weights["0.weight"]).norm()) > 1.0
    assert relative_error(found, expected) > 0.1


class EagerAverage(VaSSO):
    """Advances its average while it computes, before it is known whether the step is taken."""

    def _ascent(self, clean, parameters, call):
        planned = super()._ascent(clean, parameters, call)
        planned.commit()
        return planned


NON_FINITE = "a non finite pass is skipped by a scaler and refused without"


def test_pitfall_1_a_pass_that_is_not_finite_is_skipped_and_no_state_advances():
    for name in ("sam", "vasso"):
        assert law(NON_FINITE, lambda model, name=name: make(name, model, rho=RHO)) == ""
    assert "state" in law(NON_FINITE, lambda model: EagerAverage(model, rho=RHO))


def test_pitfall_1_weights_survive_a_pass_that_is_not_finite():
    for factory, survive in ((ours, True), (Port, False)):
        model, examples = network(), batch()
        before = bits(model)
        examples.inputs[0] = torch.inf
        with pytest.raises(FloatingPointError, match=r"row\(s\) 0 of the batch"):
            step(factory(model), examples)
        assert same_bits(bits(model), before) == survive  # NaN was added and taken off again


class Overflows(nn.Module):
    """Finite at the weights it starts from, infinite a step of 1e-3 away: the second pass alone overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = with_fixed_weights(nn.Linear(5, 3)).double()
        self.start = self.body.weight.detach().clone()

    def forward(self, inputs: Tensor) -> Tensor:
        away = float((self.body.weight.detach() - self.start).norm())
        return self.body(inputs) * (torch.inf if away > 1e-3 else 1.0)


def test_pitfall_1_an_overflow_of_the_second_pass_alone_is_noticed():
    model, examples = Overflows(), batch()
    method = make("f-sam", model, rho=RHO)
    state = copy.deepcopy(method.state_dict())
    step(method, examples, scaler=torch.amp.GradScaler("cpu"))
    assert all(bool(value.isinf().all()) for value in gradients(model).values())
    assert method.state_dict() == state
    with pytest.raises(FloatingPointError, match="perturbed weights is not finite at row"):
        step(method, examples)
    twin = Overflows()
    # A port's losses say that all is well; what every method inherits looks at the gradient.
    with pytest.raises(FloatingPointError, match="The losses are finite, and their gradient is not"):
        step(Port(twin), examples)
    assert all(value.grad is None for value in twin.parameters())


def test_pitfall_1_norms_of_half_precision_gradients_are_taken_in_float32():
    gradient = {"w": torch.full((1000,), 1e-4, dtype=torch.float16)}
    size = 1e-4 * 1000**0.5
    from noisesam.methods.weights import ascent, global_norm

    assert float(global_norm(gradient)) == pytest.approx(size, rel=1e-3)  # 1e-4 has 11 bits less than none in float16: 5e-4
    assert float(ascent(gradient, {"w": RHO})["w"].float().norm()) == pytest.approx(RHO, rel=1e-3)
    naive = gradient["w"].square().sum().sqrt()
    assert float(naive) == 0.0  # every square underflows, and eps is infinite
    large = {"w": torch.full((1000,), 300.0, dtype=torch.float16)}
    assert float(global_norm(large)) == pytest.approx(300 * 1000**0.5, rel=1e-3)
    assert not bool(large["w"].square().sum().sqrt().isfinite())


# ------------------------------------------------------------------ 2: running statistics


def test_pitfall_2_running_statistics_move_once_from_the_clean_pass():
    assert law("running statistics move once a step", ours) == ""
    assert law("running statistics move once a step", Port) == "they moved 2 times"


class MomentumTrick(Port):
    """Freezes the statistics in the second pass by momentum=0, with the momentum backed up in the layer."""

    def _freeze(self) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.backup, module.momentum = module.momentum, 0.0

    def _thaw(self) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = module.backup

    def _move(self, parameters, eps):
        self._thaw() if self.away else self._freeze()
        self.away = not self.away
        super()._move(parameters, eps)

    away = False


def moved_statistics(factory: Callable[[nn.Module], Method]) -> bool:
    """Whether a clean pass after a step still moves the statistics, when somebody looks into the second pass.

    The look is another step of the same kind inside the perturbed pass. It is not asked by `step_gradient`, which puts the
    attributes of modules back and so would repair what the trick leaves.
    """
    model, examples = network(batch_norm=True), batch()
    method, looker, calls = factory(model), factory(model), [0]

    def look(_module: nn.Module, _inputs: object) -> None:
        calls[0] += 1
        if calls[0] == 2:  # the perturbed pass is about to begin
            looker.backward(examples.inputs, examples.targets)

    handle = model.register_forward_pre_hook(look)
    step(method, examples)
    handle.remove()
    before = model[1].running_mean.clone()
    model(examples.inputs)
    return not torch.equal(model[1].running_mean, before) and model[1].momentum == 0.1


def test_pitfall_2_nested_perturbed_passes_do_not_freeze_the_statistics_for_ever():
    assert moved_statistics(ours)
    assert moved_statistics(lambda model: make("m-sam", model, rho=RHO, examples_per_shard=3))
    assert not moved_statistics(MomentumTrick)


@pytest.mark.parametrize("name", ["1-sam", "l-sam", "j-sam", "ssam-f"])
def test_pitfall_2_per_example_methods_refuse_what_mixes_the_examples(name):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).double()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 1, 6, 6, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 0])
    method = make(name, model)
    method.start_epoch(0)
    before = bits(model)
    with pytest.raises(InputError, match="LayerNorm or GroupNorm"):
        method.backward(x, y)
    assert same_bits(bits(model), before)
    # The twin, a loop over batches of one, is accepted by the layer, and computes the gradient of another function.
    whole = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    each = [torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters())) for i in range(4)]
    mean = [sum(values) / 4 for values in zip(*each, strict=True)]
    gap = sum(float((a - b).square().sum()) for a, b in zip(mean, whole, strict=True)) ** 0.5
    assert gap > 0.1 * sum(float(value.square().sum()) for value in whole) ** 0.5
    assert int(model[1].num_batches_tracked) == 5  # and its statistics moved with every example


# ------------------------------------------------------------------ 3: perturb and restore

RESTORED = "weights are restored to the bit and in place"
EXCEPTION = "an exception in any pass leaves everything as it was"


class ReplacesData(Port):
    """Keeps the weights exactly, and puts other memory under them."""

    def _move(self, parameters, eps):
        if self.kept:
            for name, value in self.kept.items():
                parameters[name].data = value
            self.kept = {}
        else:
            self.kept = {name: parameters[name].data for name in eps}
            for name, value in eps.items():
                parameters[name].data = parameters[name].data + value

    kept: dict = {}  # noqa: RUF012


def drift(factory: Callable[[nn.Module], Method], steps: int) -> float:
    """How far bfloat16 weights are from where they were after steps whose gradient nobody applies."""
    model = network(dtype=torch.bfloat16)
    method, before = factory(model), bits(model)
    for number in range(steps):
        model.zero_grad()
        step(method, batch(number, dtype=torch.bfloat16))
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(bits(model), before, strict=True))


def test_pitfall_3_weights_are_put_back_to_the_bit():
    assert law(RESTORED, ours) == ""
    assert law(RESTORED, Port) == "the weights have changed"
    assert drift(ours, 20) == 0.0
    assert drift(Port, 1) > 0.0
    assert drift(Port, 20) > drift(Port, 1)  # it accumulates


class PlacesSeen(nn.Module):
    """Writes down where its weight lies in every pass, as a captured graph remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.places = network(), set()

    def forward(self, inputs: Tensor) -> Tensor:
        self.places.add(self.body[0].weight.data_ptr())
        return self.body(inputs)


def test_pitfall_3_the_weights_lie_in_the_same_memory_in_every_pass():
    for factory, number in ((ours, 1), (lambda model: make("mesa", model, start_epoch=0), 1), (ReplacesData, 2)):
        model = PlacesSeen()
        method = factory(model)
        method.start_epoch(1)
        step(method, batch())
        assert len(model.places) == number


def test_pitfall_3_weights_are_put_back_when_the_second_pass_raises():
    assert law(EXCEPTION, ours) == ""
    assert "leaves other weights" in law(EXCEPTION, Port)


class FirstPassOnly(nn.Module):
    """A parameter that takes part in every other pass: an exit that is drawn, an expert that is not chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.sometimes, self.calls = network(), nn.Parameter(torch.ones(3, dtype=torch.float64)), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.body(inputs) + (self.sometimes if self.calls % 2 else 0)


def test_pitfall_3_a_parameter_without_a_gradient_in_the_second_pass_is_put_back():
    for factory in (ours, *(lambda m, n=n: make(n, m) for n in ("asam", "esam", "gsam", "gnp", "saner", "looksam", "f-sam"))):
        model = FirstPassOnly()
        step(factory(model), batch())
        assert torch.equal(model.sometimes.detach(), torch.ones(3, dtype=torch.float64))
    twin = FirstPassOnly()
    step(Port(twin), batch())
    assert float((twin.sometimes.detach() - 1).norm()) > 0.01 * RHO  # it stays where the first pass sent it


# ------------------------------------------------------------------ 4: random masks


def test_pitfall_4_dropout_has_the_same_masks_in_both_passes():
    name = "dropout masks are the same in every pass over the batch"
    assert law(name, ours) == ""
    assert law(name, Port) == "the masks differ between passes over the batch"


class DrawnDepth(nn.Module):
    """Stochastic depth: each of eight layers is left out with probability a half, drawn from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(8)]).double()
        self.head = nn.Linear(5, 3).double()
        with_fixed_weights(self)
        self.drawn: list[list[bool]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        kept = (torch.rand(8) < 0.5).tolist()
        self.drawn.append(kept)
        for layer, chosen in zip(self.layers, kept, strict=True):
            inputs = inputs + torch.tanh(layer(inputs)) if chosen else inputs
        return self.head(inputs)


def test_pitfall_4_stochastic_depth_is_the_same_in_both_passes_and_another_in_the_next_step():
    for factory, same in ((ours, True), (Port, False)):
        model = DrawnDepth()
        method = factory(model)
        torch.manual_seed(1)
        step(method, batch())
        step(method, batch())
        assert len(model.drawn) == 4
        assert (model.drawn[0] == model.drawn[1] and model.drawn[2] == model.drawn[3]) == same
        assert model.drawn[0] != model.drawn[2]


# ------------------------------------------------------------------ 5: zero gradients


def test_pitfall_5_a_zero_gradient_gives_a_finite_step():
    assert law("a zero gradient gives a finite step", ours) == ""
    assert "their gradient is not" in law("a zero gradient gives a finite step", Port)  # rho/0 times 0


class NothingToLearn(nn.Module):
    """Every gradient is None: the only trainable parameter plays no part."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.idle = nn.Linear(5, 3).double().requires_grad_(False), nn.Parameter(torch.ones(2).double())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)


@pytest.mark.parametrize("name", names())
def test_pitfall_5_gradients_that_are_all_none_are_a_clear_error(name):
    method = make(name, NothingToLearn())
    method.start_epoch(0)
    with pytest.raises(InputError, match=r"takes part in its output.*requires_grad=True.*frozen, detached"):
        step(method, batch())
    with pytest.raises(RuntimeError, match="does not require grad"):  # the twin's: autograd's own words about its tensors
        step(Port(NothingToLearn()), batch())


# ------------------------------------------------------------------ 6: state


class KeepsCopies(Port):
    """Keeps the weights before the perturbation in its state, as optimizers that wrap another one do."""

    old: dict[str, Tensor] = {}  # noqa: RUF012

    def _step(self, batch, parameters, call):
        self.old = {name: p.detach().clone() for name, p in parameters.items()}
        return super()._step(batch, parameters, call)

    def state_dict(self):
        return {**super().state_dict(), "old_p": self.old or {n: p.detach().clone() for n, p in self.model.named_parameters()}}


class ForgetsItsStep(LookSAM):
    """Saves its direction but not where in its cycle it stands."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.steps = 0


def test_pitfall_6_state_holds_no_weights_and_a_run_goes_on_to_the_bit():
    holds_none, goes_on = (
        "state holds tensors numbers and text alone and no weights",
        "state goes round and the run goes on to the bit",
    )
    assert law(holds_none, ours) == ""
    assert "copy of weights" in law(holds_none, KeepsCopies)
    assert law(goes_on, lambda model: make("looksam", model, k=3)) == ""
    assert "after the hand-over differs" in law(goes_on, lambda model: ForgetsItsStep(model, k=3)) or "another state" in law(
        goes_on, lambda model: ForgetsItsStep(model, k=3)
    )


# ------------------------------------------------------------------ 7: clipping


def clipped_ascent(model: nn.Module, inputs: Tensor, targets: Tensor, limit: float, *, normalize: bool) -> dict[str, Tensor]:
    """SAM in a loop that clips after the first backward pass, where the two steps of a ported optimizer invite to."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    cross_entropy(model(inputs), targets).backward()
    nn.utils.clip_grad_norm_(model.parameters(), limit)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm() if normalize else 1.0
    with torch.no_grad():
        for p in model.parameters():
            p.add_(RHO * p.grad / norm)
    model.zero_grad()
    cross_entropy(model(inputs), targets).backward()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    return gradients(model)


def size(values: dict[str, Tensor]) -> float:
    return float(torch.stack([value.norm() for value in values.values()]).norm())


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_pitfall_7_clipping_acts_on_the_final_gradient_and_leaves_eps_alone(normalize, scaled):
    model, examples, limit = network(), batch(), 1e-3
    method = make("sam", model, rho=RHO, normalize=normalize)
    expected = method.step_gradient(examples.inputs, examples.targets)
    assert size(expected) > 10 * limit  # there is something to clip
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    step(method, examples, scaler=scaler)
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), limit)
    assert size(gradients(model)) == pytest.approx(limit, rel=1e-5)  # torch divides by the norm + 1e-6
    shrunk = {name: value * (size(gradients(model)) / size(expected)) for name, value in expected.items()}
    assert relative_error(gradients(model), shrunk) <= 1e-10  # the direction is that of the unclipped rule
    # The twin's step is as long as ever; its clipping is lost in the norm, or changes eps where there is none.
    twin = clipped_ascent(network(), examples.inputs, examples.targets, limit, normalize=normalize)
    assert size(twin) > 10 * limit
    assert (relative_error(twin, expected) <= 1e-10) == normalize


# ------------------------------------------------------------------ 8: top-k


def above_threshold(rises: Tensor, share: float) -> Tensor:
    """The rows above the k-th largest rise: k - 1 of them, fewer with ties."""
    count = max(1, int(share * len(rises)))
    return (rises > rises.sort(descending=True).values[count - 1]).nonzero().flatten()


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("tied", [False, True])
def test_pitfall_8_the_share_of_examples_is_kept_exactly_ties_or_not(gamma, tied):
    model, examples = network(), batch()
    inputs = examples.inputs[:1].expand(8, -1).clone() if tied else examples.inputs
    targets = examples.targets[:1].expand(8).clone() if tied else examples.targets
    result = make("esam", model, rho=RHO, gamma=gamma).backward(inputs, targets)
    kept = result.backward_examples - 8
    assert kept == max(1, int(gamma * 8))
    assert all(bool(value.isfinite().all()) for value in gradients(model).values())
    rises = torch.zeros(8) if tied else torch.arange(8.0)
    rows = above_threshold(rises, gamma)
    assert len(rows) == (0 if tied else kept - 1)
    assert bool(rises[rows].mean().isnan()) == (len(rows) == 0)  # the twin's loss is then a mean over no example


def test_pitfall_8_at_one_half_of_two_examples_one_is_kept():
    model, examples = network(), batch()
    result = make("esam", model, rho=RHO, gamma=0.5).backward(examples.inputs[:2], examples.targets[:2])
    assert result.backward_examples == 3
    assert len(above_threshold(torch.tensor([0.1, 0.2]), 0.5)) == 0  # the largest is not larger than itself


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_pitfall_8_masks_keep_their_density_where_scores_are_tied(sparsity):
    from noisesam.methods.masks import top_masks

    scores = {"a": torch.zeros(4, 5), "b": torch.cat([torch.zeros(15), torch.ones(5)])}  # dead units: their Fisher is zero
    masks = top_masks(scores, "unstructured", sparsity)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == 40 - int(sparsity * 40)
    flat = torch.cat([score.flatten() for score in scores.values()])
    threshold = flat.sort(descending=True).values[kept - 1]
    assert int((flat > threshold).sum()) < kept
    assert int((flat >= threshold).sum()) > kept or sparsity == 0.9


# ------------------------------------------------------------------ 10: accumulation


def accumulated(model: nn.Module, parts: Iterator[tuple[Tensor, Tensor]], total: int, *, naive: bool) -> dict[str, Tensor]:
    """Gradients summed over micro-batches; the twin perturbs along what has been summed so far."""
    model.zero_grad()
    method = ours(model)
    for number, (x, y) in enumerate(parts):
        if not naive:
            method.backward(x, y, scale=len(x) / total, new_step=number == 0)
            continue
        (cross_entropy(model(x), y) * len(x) / total).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        weights = {p: p.detach().clone() for p in model.parameters()}
        with torch.no_grad():
            for p in model.parameters():
                p.add_(RHO * p.grad / norm)
        (cross_entropy(model(x), y) * len(x) / total).backward()
        with torch.no_grad():
            for p, before in weights.items():
                p.copy_(before)
    return gradients(model)


def test_pitfall_10_accumulation_is_offered_in_both_its_meanings():
    model, examples = network(), batch()
    x, y = examples.inputs[:7], examples.targets[:7]
    cuts = [slice(0, 3), slice(3, 6), slice(6, 7)]  # a ragged last one

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        return ((x[rows], y[rows]) for rows in cuts)

    per_micro_batch = make("m-sam", model, rho=RHO, examples_per_shard=3).step_gradient(x, y)
    whole_batch = ours(model).step_gradient(x, y)
    assert relative_error(per_micro_batch, whole_batch) > 1e-3  # they are two rules
    # One perturbation per micro-batch: new_step=False for all but the first.
    assert relative_error(accumulated(model, parts(), 7, naive=False), per_micro_batch) <= 1e-12
    # One perturbation for the batch in two sweeps over chunks that fit into memory.
    swept = make("sam", model, rho=RHO, chunk_size=3).step_gradient(x, y)
    assert relative_error(swept, whole_batch) <= 1e-12
    twin = accumulated(model, parts(), 7, naive=True)
    assert relative_error(twin, per_micro_batch) > 1e-2
    assert relative_error(twin, whole_batch) > 1e-2


def test_pitfall_10_a_ragged_micro_batch_counts_for_the_examples_it_holds():
    model, examples = network(), batch()
    x, y = examples.inputs[:7], examples.targets[:7]
    expected = make("m-sam", model, rho=RHO, examples_per_shard=6).step_gradient(x, y)
    parts = ((x[:6], y[:6]), (x[6:], y[6:]))
    assert relative_error(accumulated(model, iter(parts), 7, naive=False), expected) <= 1e-12
    model.zero_grad()
    for number, part in enumerate(parts):
        ours(model).backward(*part, scale=1 / 2, new_step=number == 0)  # the twin: every micro-batch counts alike
    assert relative_error(gradients(model), expected) > 0.05


def test_pitfall_10_micro_batches_advance_what_a_step_advances_once():
    examples = batch()

    def steps_and_direction(new_step: bool) -> tuple[int, Tensor]:
        model = network()
        method = make("vasso", model, rho=RHO, theta=0.3)
        step(method, examples, scale=0.5)
        step(method, batch(1), scale=0.5, new_step=new_step)
        return method.steps, method.state_dict()["average"]["0.weight"]

    once = make("vasso", network(), rho=RHO, theta=0.3)
    step(once, examples)
    steps, average = steps_and_direction(new_step=False)
    assert steps == 1
    assert torch.equal(average, once.state_dict()["average"]["0.weight"])
    steps, average = steps_and_direction(new_step=True)  # the twin: every micro-batch is a step
    assert steps == 2
    assert not torch.equal(average, once.state_dict()["average"]["0.weight"])


def test_pitfall_10_a_further_micro_batch_is_perturbed_along_the_average_as_it_stands():
    model, other = network(), batch(1)
    method = make("vasso", model, rho=RHO, theta=0.3)
    step(method, batch())
    average = method.state_dict()["average"]
    model.zero_grad()
    step(method, other, new_step=False)
    moved = {n: (p.detach() + RHO * average[n] / size(average)).requires_grad_() for n, p in model.named_parameters()}
    logits = torch.func.functional_call(model, moved, (other.inputs,))
    expected = torch.autograd.grad(cross_entropy(logits, other.targets), list(moved.values()))
    assert relative_error(gradients(model), dict(zip(moved, expected, strict=True))) <= 1e-12
    model.zero_grad()
    step(method, other)  # the twin: its average has moved on before it is used
    assert relative_error(gradients(model), dict(zip(moved, expected, strict=True))) > 1e-4


# ------------------------------------------------------------------ 11: kinds of parameters


class Kinds(nn.Module):
    """Parameters of no axis, one, two and four, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 2)
        self.normalisation = nn.GroupNorm(1, 3)
        self.head = nn.Linear(3 * 3 * 3, 3)
        self.temperature, self.offset = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.full((3,), 0.5), requires_grad=False)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.normalisation(self.convolution(images))).flatten(1)
        return self.head(hidden) * self.temperature * self.frozen + self.offset


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=generator), torch.arange(6) % 3


FAMILY = [name for name in names() if name not in ("sgd", "reg-sgd", "saf", "mesa")]


@pytest.mark.filterwarnings("ignore:Kinds runs on the exact reference engine")
@pytest.mark.parametrize(
    ("name", "options"), [(n, {}) for n in FAMILY] + [("ssam-f", {"pattern": "2:4"}), ("ssam-d", {"pattern": "1:4"})]
)
def test_pitfall_11_parameters_of_no_axis_and_of_one_are_perturbed_and_restored(name, options):
    torch.manual_seed(0)
    model, (x, y) = Kinds(), images()
    method = make(name, model, **options)
    method.start_epoch(0)
    before = bits(model)
    method.backward(x, y, index=torch.arange(6))
    assert same_bits(bits(model), before)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(gradients(model)) == trainable
    assert gradients(model)["temperature"].shape == ()
    eps = method.perturbation(x, y, torch.arange(6))
    assert set(eps) == trainable
    if options:  # N:M patterns keep tensors of one axis whole
        assert bool((eps["normalisation.weight"] != 0).all())
        assert bool((eps["temperature"] != 0).all())


def test_pitfall_11_naive_masks_and_norms_cannot_take_every_shape():
    model = Kinds()
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        [p.view(-1, 4) for p in model.parameters()]  # N:M by groups of four of the flat tensor
    with pytest.raises(IndexError):
        [p.norm(dim=1) for p in model.parameters()]  # norms by filter
    with pytest.raises(AttributeError):
        [p.grad.norm() for p in model.parameters()]  # of a frozen parameter


class Watched(nn.Module):
    """Writes down its weights in every pass."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.seen = body, []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append({name: p.detach().clone() for name, p in self.body.named_parameters()})
        return self.body(inputs)

    def displacement(self) -> dict[str, Tensor]:
        """How far the last pass is from the weights as they stand."""
        return {name: self.seen[-1][name] - p.detach() for name, p in self.body.named_parameters()}


class MovesAll(Port):
    """Draws a direction for every parameter of the model, the frozen ones too."""

    def _step(self, batch, parameters, call):
        everything = dict(self.model.named_parameters())
        noise = {name: torch.randn_like(p) for name, p in everything.items()}
        norm = torch.stack([value.norm() for value in noise.values()]).norm()
        with torch.no_grad():
            self._move(everything, {name: self.rho * value / norm for name, value in noise.items()})
        logits, losses, gradient = self._pass(batch, parameters)
        with torch.no_grad():
            self._move(everything, {name: -self.rho * value / norm for name, value in noise.items()})
        return Outcome(gradient, logits, losses, batch.size, batch.size)


def test_pitfall_11_frozen_parameters_stay_where_they_are_in_every_pass():
    for factory, still in (
        (ours, True),
        (lambda model: make("random-sam", model, rho=RHO), True),
        (lambda model: make("asam", model, rho=RHO), True),
        (MovesAll, False),
    ):
        model = Watched(network())
        frozen = model.body[0].weight.requires_grad_(False)
        before = frozen.detach().clone()
        step(factory(model), batch())
        assert all(torch.equal(seen["0.weight"], before) for seen in model.seen) == still
        moved = size({name: value for name, value in model.seen[-1].items() if name != "0.weight"})
        assert moved > 0
        trainable = {name: value for name, value in model.displacement().items() if name != "0.weight"}
        if factory is ours:
            assert size(trainable) == pytest.approx(RHO, rel=1e-12)  # rho belongs to what is trained
        if factory is MovesAll:
            assert size(trainable) < 0.95 * RHO


class MovesByModule(Port):
    """Goes through the modules, and meets a weight that two of them share twice."""

    def _move(self, parameters, eps):
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                key = next((k for k, p in parameters.items() if p is parameter), None)
                if key is not None and key in eps:
                    parameter.add_(eps[key])


class Shares(nn.Module):
    """Two layers with one weight, as an embedding and the output layer of a language model have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)
        self.second.weight = self.first.weight
        self.double()
        with_fixed_weights(self)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


def test_pitfall_11_a_tied_weight_moves_once():
    examples = batch()
    for factory, times in ((ours, 1), (MovesByModule, 2)):
        model = Watched(Shares())
        eps = ours(model).perturbation(examples.inputs, examples.targets)["body.first.weight"]
        model.seen.clear()
        step(factory(model), examples)
        assert torch.allclose(model.displacement()["first.weight"], times * eps, rtol=1e-9, atol=1e-12)


def test_pitfall_11_the_gradient_of_a_tied_weight_is_that_of_both_its_places():
    model, examples = with_fixed_weights(TiedNetwork().double()), batch()
    method = ours(model)
    eps = method.perturbation(examples.inputs, examples.targets)
    weights = {name: (p.detach() + eps[name]).requires_grad_() for name, p in model.named_parameters()}
    logits = torch.func.functional_call(model, weights, (examples.inputs,))
    expected = torch.autograd.grad(cross_entropy(logits, examples.targets), list(weights.values()))
    found = method.step_gradient(examples.inputs, examples.targets)
    assert relative_error(found, dict(zip(weights, expected, strict=True))) <= 1e-12


class NormByGroup(Port):
    """Takes the norm of every parameter group alone, as a loop over an optimizer's groups does."""

    def _step(self, batch, parameters, call):
        logits, losses, first = self._pass(batch, parameters)
        eps = {}
        for rho, members in ((0.4, ("body.0.weight", "body.0.bias")), (RHO, tuple(n for n in parameters if "body.0" not in n))):
            norm = torch.stack([first[name].norm() for name in members]).norm()
            eps |= {name: rho * first[name] / norm for name in members}
        with torch.no_grad():
            self._move(parameters, eps)
        _, _, second = self._pass(batch, parameters)
        with torch.no_grad():
            self._move(parameters, {name: -value for name, value in eps.items()})
        return Outcome(second, logits, losses, 2 * batch.size, 2 * batch.size)


def test_pitfall_11_groups_have_their_own_radius_and_share_one_norm():
    def grouped(model: Watched) -> Method:
        return make("sam", model, rho=RHO, parameter_groups=[{"params": model.body[0].parameters(), "rho": 0.4}])

    examples = batch()
    plain = ours(Watched(network())).perturbation(examples.inputs, examples.targets)
    for factory, right in ((grouped, True), (NormByGroup, False)):
        model = Watched(network())
        step(factory(model), examples)
        moved = model.displacement()
        expected = {name: (4.0 if name.startswith("0.") else 1.0) * plain["body." + name] for name in moved}
        assert (relative_error(moved, expected) <= 1e-9) == right
