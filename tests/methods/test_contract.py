"""What every method of the registry keeps: weights, gradients, randomness, BatchNorm, groups, state."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loop import norm, relative_error
from torch import nn

import noisesam
from noisesam.errors import InputError
from noisesam.methods import describe

METHODS = ("sgd", "sam", "m-sam", "1-sam", "l-sam", "j-sam", "reg-sgd")
"""Whose step is a function of weights and batch alone; the whole family goes through `noisesam.testing`."""
PER_EXAMPLE = ("1-sam", "l-sam", "j-sam")
BATCH = tuple(name for name in METHODS if name not in PER_EXAMPLE)


def make(name: str, model: nn.Module, **options):
    """A method in its first epoch; its examples are numbered by their rows where a test gives no index."""
    method = noisesam.methods.make(name, model, **options)
    method.start_epoch(0)
    for call in ("backward", "perturbation", "step_terms", "step_gradient"):
        setattr(method, call, _numbered(getattr(method, call)))
    return method


def _numbered(call):
    def numbered(x, y, index=None, **options):
        return call(x, y, index=torch.arange(len(x)) if index is None else index, **options)

    return numbered


def network(dropout: float = 0.0, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    extra = [nn.BatchNorm1d(7)] if batch_norm else []
    return nn.Sequential(
        nn.Linear(5, 7), *extra, nn.ReLU(), nn.Dropout(dropout), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()


def batch(n: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, dtype=torch.float64, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def bits(model: nn.Module) -> list[bytes]:
    return [value.detach().numpy().tobytes() for value in model.state_dict().values()]


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def test_backward_adds_to_grad_and_leaves_the_weights_to_the_last_bit(name):
    model, (x, y) = network(), batch()
    before, places = bits(model), [p.data_ptr() for p in model.parameters()]
    method = make(name, model)
    method.backward(x, y)
    once = gradients(model)
    method.backward(x, y)
    assert relative_error(gradients(model), {k: 2 * v for k, v in once.items()}) <= 1e-14
    assert bits(model) == before
    assert [p.data_ptr() for p in model.parameters()] == places


class Breaks(nn.Module):
    """Raises at a chosen forward."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body, self.calls, self.limit = body, 0, 10**9

    def forward(self, x):
        self.calls += 1
        if self.calls > self.limit:
            raise RuntimeError("midway")
        return self.body(x)


@pytest.mark.parametrize("limit", [0, 1])
def test_an_exception_midway_leaves_weights_gradients_and_state_as_they_were(name, limit):
    model, (x, y) = Breaks(network()), batch()
    method = make(name, model)
    method.backward(x, y)  # the examples are proven apart before the model breaks
    passes = 1 if describe(name).passes[0] == "1" else 2
    if limit >= passes:
        limit = passes - 1
    state, weights, grads = method.state_dict(), bits(model), gradients(model)
    model.calls, model.limit = 0, limit
    with pytest.raises(RuntimeError, match="midway"):
        method.backward(x, y)
    assert model.calls == limit + 1  # it did break where it was meant to
    assert bits(model) == weights
    assert all(torch.equal(value, grads[key]) for key, value in gradients(model).items())
    assert method.state_dict() == state
    model.limit = 10**9
    method.backward(x, y)


def test_both_passes_have_the_same_dropout_masks_and_the_generator_moves_by_one_pass(name):
    model, (x, y) = network(dropout=0.5), batch()
    method = make(name, model)
    method.backward(x, y)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model[2].register_forward_hook(lambda _m, i, o: seen.append((i[0], o)))  # what it computed would count as another way
    torch.manual_seed(5)
    method.backward(x, y)
    after = torch.rand(4)
    masks = [(o == 0) & (i != 0) for i, o in seen]
    assert all(torch.equal(mask, masks[0]) for mask in masks) or name == "m-sam"
    torch.manual_seed(5)
    if name == "m-sam":  # its shards are evaluated one after the other, each twice with the same mask
        assert all(torch.equal(first, second) for first, second in zip(masks[::2], masks[1::2], strict=True))
        for start in range(0, 8, method.examples_per_shard):
            model(x[start : start + method.examples_per_shard])
    else:
        model(x)
    assert torch.equal(torch.rand(4), after)


@pytest.mark.parametrize("name", BATCH)
def test_running_statistics_move_once_from_the_clean_pass(name):
    model, (x, y) = network(batch_norm=True), batch()
    twin = copy.deepcopy(model)
    method = make(name, model, **({"examples_per_shard": 3} if name == "m-sam" else {}))
    method.backward(x, y)
    twin(x)
    assert torch.equal(model[1].running_mean, twin[1].running_mean)
    assert torch.equal(model[1].running_var, twin[1].running_var)
    assert int(model[1].num_batches_tracked) == 1
    method.backward(x, y)
    assert int(model[1].num_batches_tracked) == 2  # and it is not frozen for ever


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_per_example_methods_refuse_batch_normalisation_before_anything_moves(name):
    model, (x, y) = network(batch_norm=True), batch()
    before = bits(model)
    with pytest.raises(InputError, match=r"normalises over the batch.*LayerNorm or GroupNorm"):
        make(name, model).backward(x, y)
    assert bits(model) == before
    assert not gradients(model)


def test_chunks_of_a_batch_with_batch_normalisation_are_refused():
    with pytest.raises(InputError, match=r"chunk_size=3.*in training mode"):
        make("sam", network(batch_norm=True), chunk_size=3).backward(*batch())


def test_frozen_parameters_receive_nothing_and_are_not_perturbed(name):
    model, (x, y) = network(), batch()
    model[0].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    method = make(name, model)
    method.backward(x, y)
    assert set(gradients(model)) == {"0.bias", "3.weight", "5.weight", "5.bias"}
    eps = method.perturbation(x, y)
    assert eps is None or set(eps) <= set(gradients(model))


@settings(max_examples=30)
@given(
    name=st.sampled_from(METHODS),
    n=st.integers(1, 9),
    chunk=st.integers(1, 10),
    seed=st.integers(0, 99),
    one_class=st.booleans(),
)
def test_chunks_change_nothing_beyond_rounding(name, n, chunk, seed, one_class):
    model, (x, y) = network(), batch(n, seed)
    if one_class:
        y = torch.zeros_like(y)
    whole, pieces = make(name, model), make(name, model, chunk_size=chunk)
    first = whole.backward(x, y)
    expected = gradients(model)
    model.zero_grad()
    second = pieces.backward(x, y)
    assert relative_error(gradients(model), expected) <= 1e-11
    torch.testing.assert_close(first.losses, second.losses, rtol=1e-12, atol=1e-14)
    assert first.forward_examples == second.forward_examples
    assert first.backward_examples == second.backward_examples


def test_counted_passes_equal_the_calls_counted_from_outside(name):
    model, (x, y) = network(), batch()
    method = make(name, model)
    method.backward(x, y)  # the proof of the example axis is made once, before the first step
    seen = {"forward": 0, "backward": 0}

    def count_forward(_module, _inputs, output):
        seen["forward"] += output.shape[0]
        if output.requires_grad:
            output.register_hook(lambda g: seen.__setitem__("backward", seen["backward"] + g.shape[0]))

    model.register_forward_hook(count_forward)
    result = method.backward(x, y)
    assert (result.forward_examples, result.backward_examples) == (seen["forward"], seen["backward"])
    forward, backward = describe(name).passes
    assert (result.forward_examples, result.backward_examples) == (int(forward) * 8, int(backward) * 8)


def test_the_result_describes_the_batch_at_w(name):
    model, (x, y) = network(), batch()
    result = make(name, model).backward(x, y)
    logits = model(x)
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(result.logits, logits.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.losses, losses.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(result.loss, losses.mean().detach(), rtol=1e-12, atol=0)
    assert result.evaluated.all()
    assert not any(t.requires_grad for t in (result.loss, result.logits, result.losses))


def test_scale_multiplies_the_gradient_and_never_eps(name):
    model, (x, y) = network(), batch()
    method = make(name, model)
    method.backward(x, y)
    expected = gradients(model)
    model.zero_grad()
    method.backward(x, y, scale=0.25)
    assert relative_error(gradients(model), {k: 0.25 * v for k, v in expected.items()}) <= 1e-13


def test_a_permuted_batch_has_the_same_gradient(name):
    model, (x, y) = network(), batch()
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    options = {"examples_per_shard": 4} if name == "m-sam" else {}  # the permutation stays inside the shards
    first, second = make(name, model, **options), make(name, model, **options)
    first.backward(x, y)
    expected = gradients(model)
    model.zero_grad()
    second.backward(x[order], y[order])
    assert relative_error(gradients(model), expected) <= 1e-12


def test_a_zero_gradient_gives_a_zero_gradient(name):
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()

    def nothing(logits, targets):
        return (logits * 0).sum(1)

    options = {"activation": 0.0, "weight": 0.0} if name == "reg-sgd" else {}
    make(name, model, loss=nothing, **options).backward(*batch())
    assert all(bool((g == 0).all()) for g in gradients(model).values())


def test_parameter_groups_have_their_own_radius_and_one_global_norm():
    model, (x, y) = network(), batch()
    groups = [{"params": list(model[0].parameters()), "rho": 0.5}, {"params": model[5].weight, "rho": 0.0}]
    for name in ("sam", "1-sam"):
        eps = make(name, model, rho=0.1, parameter_groups=groups).perturbation(x, y)
        plain = make(name, model, rho=0.1).perturbation(x, y)
        for key in plain:
            factor = {"0": 5.0, "5.weight": 0.0}.get(key if key == "5.weight" else key.split(".")[0], 1.0)
            torch.testing.assert_close(eps[key], factor * plain[key], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("sgd", "reg-sgd")])
def test_a_vanishing_radius_gives_sgd(name):
    model, (x, y) = network(), batch()
    make("sgd", model).backward(x, y)
    expected = gradients(model)
    model.zero_grad()
    make(name, model, rho=0.0).backward(x, y)
    assert relative_error(gradients(model), expected) <= 1e-13


def test_state_goes_round_and_another_methods_state_is_refused(name):
    model, (x, y) = network(), batch()
    method = make(name, model)
    method.backward(x, y)
    method.backward(x, y, new_step=False)
    state = method.state_dict()
    assert state["steps"] == 1
    twin = make(name, copy.deepcopy(model))
    twin.load_state_dict(state)
    assert twin.state_dict() == state
    assert not any(torch.is_tensor(value) and value.shape in {p.shape for p in model.parameters()} for value in state.values())
    with pytest.raises(InputError, match=f"expected state of '{name}'|Expected state of '{name}'"):
        method.load_state_dict({"method": "other", "steps": 0})


def test_what_is_asked_of_a_method_changes_nothing(name):
    model, (x, y) = network(dropout=0.5), batch()
    method = make(name, model)
    method.backward(x, y)
    state, weights, grads, generator = method.state_dict(), bits(model), gradients(model), torch.get_rng_state()
    method.step_gradient(x, y)
    assert torch.equal(torch.get_rng_state(), generator)
    model.eval()
    method.perturbation(x, y)
    method.step_terms(x, y)
    gradient = method.step_gradient(x, y)
    assert bits(model) == weights
    assert method.state_dict() == state
    assert all(torch.equal(value, grads[key]) for key, value in gradients(model).items())
    model.zero_grad()
    method.backward(x, y)
    assert relative_error(gradient, gradients(model)) <= 1e-14


def test_step_terms_are_the_terms_of_the_step(name):
    model, (x, y) = network(), batch()
    options = {"activation": 0.0, "weight": 0.0} if name == "reg-sgd" else {"examples_per_shard": 1} if name == "m-sam" else {}
    terms = make(name, model, **options).step_terms(x, y)
    if name == "sam":  # the term of example i at the eps that the whole batch shares
        eps = make(name, model).perturbation(x, y)
        moved = {key: p.detach() + eps[key] for key, p in model.named_parameters()}
        for i in range(8):
            leaves = {key: value.clone().requires_grad_() for key, value in moved.items()}
            loss = torch.nn.functional.cross_entropy(torch.func.functional_call(model, leaves, (x[i : i + 1],)), y[i : i + 1])
            expected = norm(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
            torch.testing.assert_close(terms.gradient_norm[i], expected, rtol=1e-11, atol=0)
    else:
        for i in range(8):
            model.zero_grad()
            make(name, model, **options).backward(x[i : i + 1], y[i : i + 1])
            torch.testing.assert_close(terms.gradient_norm[i], norm(gradients(model)), rtol=1e-11, atol=0)


# ---------------------------------------------------------------- bad input


def test_a_loss_that_is_not_finite_names_its_rows_and_leaves_grad_alone(name):
    model, (x, y) = network(), batch()
    x[3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"not finite at row\(s\) 3 of the batch.*NaN"):
        make(name, model).backward(x, y)
    assert not gradients(model)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(4, 5).double(), torch.tensor([0, 1, 2, 3]), "out of range"),
        (torch.zeros(4, 5).double(), torch.tensor([0, 1, 2]), r"shape \(3,\) for 4 examples"),
        (torch.zeros(4, 5, dtype=torch.long), torch.tensor([0, 1, 2, 1]), "dtype torch.int64.*float"),
        (torch.zeros(0, 5).double(), torch.zeros(0, dtype=torch.long), "empty batch"),
    ],
)
def test_bad_batches_are_refused_with_a_remedy(name, inputs, targets, message):
    model = network()
    with pytest.raises(InputError, match=message):
        make(name, model).backward(inputs, targets)
    assert not gradients(model)


def test_a_model_without_trainable_parameters_is_refused(name):
    model = network().requires_grad_(False)
    with pytest.raises(InputError, match="without trainable parameters"):
        make(name, model).backward(*batch())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sam", {"rho": -0.1}, "rho=-0.1"),
        ("1-sam", {"rho": float("inf")}, "rho=inf"),
        ("1-sam", {"rh": 0.1}, "Did you mean 'rho'"),
        ("m-sam", {"examples_per_shard": 0}, "counts the examples of a shard"),
        ("j-sam", {"engine": "quick"}, "engine"),
        ("sgd", {"chunk_size": -1}, "chunk_size=-1"),
        ("reg-sgd", {"mode": "adaptive"}, "rho"),
        ("reg-sgd", {"activation": -1.0}, "activation"),
        ("reg-sgd", {"last_layer": "head"}, "head"),
        ("reg-sgd", {"rho": 0.1}, "mode='adaptive'"),
        ("sam", {"parameter_groups": [{"params": []}]}, "'params' and 'rho'"),
        ("sam", {"parameter_groups": [{"params": [torch.zeros(1)], "rho": 0.1}]}, "no parameter of the model"),
        ("sams", {}, "Did you mean 'sam'"),
    ],
)
def test_bad_hyper_parameters_are_refused_with_a_remedy(name, options, message):
    with pytest.raises(InputError, match=message):
        make(name, network(), **options)


def test_every_method_is_described_and_importable_from_the_top(name):
    description = describe(name)
    assert description.name == name
    assert description.rule
    assert description.reference
    assert type(make(name, network())).__name__ in dir(noisesam)


def test_a_shards_method_is_described_with_the_defaults_of_its_family():
    assert describe("m-sam").hyperparameters["normalize"][0] is True
    assert describe("m-sam").hyperparameters["engine"][0] == "auto"
    assert describe("m-sam").hyperparameters["examples_per_shard"][0] == 8
