"""Each rule against an independent twin, the family's identities, the outside oracle, scalers and autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from reference.loop import cross_entropy, example_terms, mean_term, relative_error
from torch import nn

import noisesam
from noisesam.methods import make
from noisesam.methods.weights import moved_weights


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, 3)).double()


def batch(n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, dtype=torch.float64, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def weights_of(model):
    return {key: p.detach() for key, p in model.named_parameters()}


def gradient_of(name, model, x, y, **options):
    model.zero_grad()
    make(name, model, **options).backward(x, y)
    found = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    return found


def loop_sam(model, x, y, rho, normalize=True):
    """SAM by hand, through functional calls: no weight is touched."""
    weights = dict(model.named_parameters())
    g = torch.autograd.grad(cross_entropy(model(x), y).mean(), list(weights.values()))
    size = torch.sqrt(sum(v.square().sum() for v in g)) if normalize else 1.0
    moved = {key: (p.detach() + rho * v / size).requires_grad_() for (key, p), v in zip(weights.items(), g, strict=True)}
    loss = cross_entropy(torch.func.functional_call(model, moved, (x,)), y).mean()
    return dict(zip(moved, torch.autograd.grad(loss, list(moved.values())), strict=True))


@pytest.mark.parametrize("normalize", [True, False])
def test_sam_equals_its_rule(normalize):
    model, (x, y) = network(), batch()
    assert (
        relative_error(gradient_of("sam", model, x, y, rho=0.3, normalize=normalize), loop_sam(model, x, y, 0.3, normalize))
        <= 1e-12
    )


@pytest.mark.parametrize("m", [1, 2, 3, 7, 9])
def test_m_sam_averages_its_shards_by_size_with_a_ragged_last_one(m):
    model, (x, y) = network(), batch()
    expected = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    for start in range(0, 7, m):
        rows = slice(start, start + m)
        shard = loop_sam(model, x[rows], y[rows], 0.3)
        for key in expected:
            expected[key] += shard[key] * len(x[rows]) / 7
    assert relative_error(gradient_of("m-sam", model, x, y, rho=0.3, examples_per_shard=m), expected) <= 1e-12


def test_the_family_meets_at_its_ends():
    model, (x, y) = network(), batch()
    sam, one = gradient_of("sam", model, x, y, rho=0.3), gradient_of("1-sam", model, x, y, rho=0.3)
    assert relative_error(gradient_of("m-sam", model, x, y, rho=0.3, examples_per_shard=7), sam) <= 1e-14
    assert relative_error(gradient_of("m-sam", model, x, y, rho=0.3, examples_per_shard=1), one) <= 1e-14
    assert relative_error(gradient_of("sam", model, x, y, rho=0.3, examples_per_shard=1), one) <= 1e-14
    assert (
        relative_error(gradient_of("sam", model, x[:1], y[:1], rho=0.3), gradient_of("1-sam", model, x[:1], y[:1], rho=0.3))
        <= 1e-12
    )
    unnormalised = gradient_of("sam", model, x, y, rho=0.3, examples_per_shard=1, normalize=False)
    expected = [loop_sam(model, x[i : i + 1], y[i : i + 1], 0.3, normalize=False) for i in range(7)]
    assert relative_error(unnormalised, {k: sum(row[k] for row in expected) / 7 for k in sam}) <= 1e-12


@pytest.mark.parametrize("name", ["1-sam", "l-sam", "j-sam"])
def test_twenty_five_steps_equal_the_loop_over_examples(name):
    model, twin = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    method = make(name, model, rho=0.1)
    for step in range(25):
        x, y = batch(5, seed=step)
        optimizer.zero_grad()
        method.backward(x, y)
        optimizer.step()
        gradient = mean_term(example_terms(twin, x, y, 0.1), name)
        with torch.no_grad():
            for key, p in twin.named_parameters():
                p -= 0.2 * gradient[key]
    assert relative_error(weights_of(model), weights_of(twin)) <= 1e-10


def test_sam_equals_pytorch_optimizer():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the oracle's own imports
        import pytorch_optimizer

    model, twin = network(), network()
    ours, method = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), make("sam", model, rho=0.2)
    oracle = pytorch_optimizer.SAM(twin.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9)
    for step in range(10):
        x, y = batch(seed=step)
        ours.zero_grad()
        method.backward(x, y)
        ours.step()
        cross_entropy(twin(x), y).mean().backward()
        oracle.first_step(zero_grad=True)
        cross_entropy(twin(x), y).mean().backward()
        oracle.second_step(zero_grad=True)
    # Its norm is reduced in float32: 6e-8 relative on eps, of size rho.
    assert relative_error(weights_of(model), weights_of(twin)) <= 1e-8


def test_regularised_sgd_is_autograd_of_the_penalised_loss():
    model, (x, y) = network(), batch()
    hidden = torch.nn.functional.softplus(model[0](x))
    objective = cross_entropy(model(x), y).mean() + 0.3 * hidden.square().sum(1).mean() + 0.2 * model[2].weight.square().sum()
    expected = dict(zip(dict(model.named_parameters()), torch.autograd.grad(objective, list(model.parameters())), strict=True))
    assert relative_error(gradient_of("reg-sgd", model, x, y, activation=0.3, weight=0.2), expected) <= 1e-12
    chunked = gradient_of("reg-sgd", model, x, y, activation=0.3, weight=0.2, chunk_size=3)
    assert relative_error(chunked, expected) <= 1e-12


def test_accumulated_micro_batches_are_m_sam():
    model, (x, y) = network(), batch()
    expected = gradient_of("m-sam", model, x, y, rho=0.3, examples_per_shard=4)
    method = make("sam", model, rho=0.3)
    method.backward(x[:4], y[:4], scale=4 / 7)
    method.backward(x[4:], y[4:], scale=3 / 7, new_step=False)
    assert relative_error({key: p.grad for key, p in model.named_parameters()}, expected) <= 1e-13
    assert method.steps == 1


@pytest.mark.parametrize("name", ["sgd", "sam", "m-sam", "1-sam", "l-sam", "j-sam", "reg-sgd"])
def test_a_scaler_receives_the_scaled_gradient_and_a_step_is_the_same(name):
    x, y = batch()
    model = network()
    expected = gradient_of(name, model, x, y)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    method = make(name, model)
    method.backward(x, y, scaler=scaler)
    assert relative_error({k: p.grad for k, p in model.named_parameters()}, {k: 1024 * v for k, v in expected.items()}) <= 1e-12
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    scaler.step(optimizer)
    scaler.update()
    step = {k: before[k] - p.detach() for k, p in model.named_parameters()}
    assert relative_error(step, expected) <= 1e-12


@pytest.mark.parametrize("name", ["sgd", "sam", "1-sam", "reg-sgd"])
def test_a_pass_that_is_not_finite_makes_the_scaler_skip_and_no_state_advances(name):
    model, (x, y) = network(), batch()
    before = copy.deepcopy(model.state_dict())
    x[2] = float("inf")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    method = make(name, model)
    method.backward(x, y, scaler=scaler)
    assert all(bool(p.grad.isinf().all()) for p in model.parameters())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert method.steps == 0


@pytest.mark.parametrize("name", ["sgd", "sam", "1-sam", "l-sam", "j-sam", "reg-sgd"])
def test_autocast_in_bfloat16_is_close_to_float32(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 3))
    x, y = (value.float() if value.is_floating_point() else value for value in batch(32))
    expected = gradient_of(name, model, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient_of(name, model, x, y)
    # bfloat16 keeps 8 bits: 0.4% a rounding, a few of them in a row.
    assert relative_error(found, expected) <= 0.03
    assert all(g.dtype == torch.float32 for g in found.values())


def test_autocast_keeps_copies_of_the_weights_that_an_in_place_perturbation_does_not_reach():
    layer, x = nn.Linear(5, 3), torch.randn(4, 5)
    eps = {"weight": torch.ones_like(layer.weight)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        at_w = layer(x)
        with torch.no_grad():
            layer.weight.add_(1.0)
        assert torch.equal(layer(x), at_w)  # the naive twin: the second pass runs at w
        with torch.no_grad():
            layer.weight.sub_(1.0)
        with moved_weights({"weight": layer.weight}, eps):
            assert not torch.equal(layer(x), at_w)
        assert torch.equal(layer(x), at_w)


def test_restoring_copies_where_adding_and_subtracting_would_drift():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(1000, dtype=torch.bfloat16))
    before, eps = weight.detach().clone(), torch.randn(1000, dtype=torch.bfloat16) * 0.05
    naive = (weight.detach() + eps) - eps
    assert not torch.equal(naive, before)  # the naive twin drifts
    with moved_weights({"w": weight}, {"w": eps}):
        assert not torch.equal(weight.detach(), before)
    assert torch.equal(weight.detach(), before)


def test_clipping_an_added_gradient_does_not_act_twice_on_parameters_that_share_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x + self.a + self.b

    model = Twice()
    noisesam.SGD(model).backward(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert model.a.grad.data_ptr() != model.b.grad.data_ptr()


def test_weight_decay_inside_the_loss_is_sam_of_the_penalised_loss():
    decay, rho, model, (x, y) = 0.3, 0.1, network(), batch()

    def penalised_gradient(weights):
        loss = cross_entropy(torch.func.functional_call(model, weights, (x,)), y).mean()
        loss = loss + 0.5 * decay * sum(w.square().sum() for w in weights.values())
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    first = penalised_gradient(dict(model.named_parameters()))
    norm = torch.sqrt(sum(g.square().sum() for g in first.values()))
    moved = {key: (p.detach() + rho * first[key] / norm).requires_grad_() for key, p in model.named_parameters()}
    expected = penalised_gradient(moved)
    assert relative_error(gradient_of("sam", model, x, y, rho=rho, weight_decay=decay), expected) <= 1e-12  # float64 rounding
    eps = make("sam", model, rho=rho, weight_decay=decay).perturbation(x, y)
    assert relative_error(eps, {key: rho * g / norm for key, g in first.items()}) <= 1e-12
    with pytest.raises(noisesam.errors.InputError, match="no per-example form"):
        make("sam", model, weight_decay=decay, examples_per_shard=1)


RELATIVES = [name for name in noisesam.methods.names() if "weight_decay" in noisesam.methods.describe(name).hyperparameters]


def test_every_relative_of_sam_with_two_passes_takes_a_weight_decay():
    assert set(RELATIVES) == {
        "sam", "m-sam", "looksam", "looklayersam", "ssam-f", "ssam-d", "f-sam", "ausam", "asam", "gsam", "saner", "vasso",
        "gnp",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in RELATIVES if name != "ssam-f"])  # whose Fisher diagonal knows no penalty
def test_weight_decay_inside_the_loss_is_the_method_on_a_loss_that_holds_the_penalty(name):
    decay, (x, y) = 0.3, batch()

    class WithPenalty(nn.Module):
        """Hands half the squared norm of its weights on as a further output, so that a loss can hold it."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            size = 0.5 * sum(w.square().sum() for w in self.inner.parameters())
            return torch.cat([self.inner(x), size.expand(len(x), 1)], 1)

    def penalised(outputs, targets):
        return cross_entropy(outputs[:, :-1], targets) + decay * outputs[:, -1]

    def course(penalty_in_the_loss):
        model = WithPenalty(network()) if penalty_in_the_loss else network()
        options = {"loss": penalised} if penalty_in_the_loss else {"weight_decay": decay}
        if name == "ausam":
            options["fraction"] = 1.0  # its draws look at losses, in which a penalty counts for whoever was drawn
        if name == "m-sam":
            options["examples_per_shard"] = 3
        method, optimizer = make(name, model, rho=0.1, **options), torch.optim.SGD(model.parameters(), lr=0.1)
        method.start_epoch(0)
        for _ in range(7):
            optimizer.zero_grad()
            method.backward(x, y, index=torch.arange(len(y)))
            optimizer.step()
        return {key.removeprefix("inner."): p.detach() for key, p in model.named_parameters()}

    assert relative_error(course(False), course(True)) <= 1e-10  # seven steps of float64 rounding


def test_groups_with_a_radius_are_refused_where_nothing_is_perturbed():
    model = network()
    groups = [{"params": list(model.parameters()), "rho": 0.1}]
    for kind in (noisesam.SGD, noisesam.RegularizedSGD, noisesam.SAF, noisesam.MESA):
        with pytest.raises(noisesam.errors.InputError, match="parameter_groups for"):
            kind(model, parameter_groups=groups)
        assert "parameter_groups" not in noisesam.methods.describe(kind.name).hyperparameters
