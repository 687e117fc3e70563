"""Mixed precision, low-precision weights, accumulation, weight decay, and the kinds of parameters, over the whole family."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from reference.loop import example_terms, mean_term, relative_error
from reference.method_settings import OPTIONS
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.methods import Method, make, names
from noisesam.methods.registry import method_class
from noisesam.testing.problem import (
    Examples,
    TiedNetwork,
    batch,
    bits,
    gradients,
    network,
    same_bits,
    step,
    warmed,
    with_fixed_weights,
)

PER_EXAMPLE = ("1-sam", "l-sam", "j-sam")
UNPERTURBED = ("sgd", "reg-sgd", "saf", "mesa")
TWO_PASSES = tuple(name for name in names() if name not in (*PER_EXAMPLE, *UNPERTURBED, "m-sam", "random-sam"))
"""One eps for the batch, taken from the batch, by moving the weights."""


def build(name: str, model: nn.Module, **options) -> Method:
    """A method that has been told of its first epoch, with settings in which all of its rule is at work."""
    method = make(name, model, **(OPTIONS.get(name, {}) | options))
    method.start_epoch(0)
    return method


def taken(name: str, model: nn.Module, examples: Examples, **options) -> dict[str, Tensor]:
    """The gradient that a first step leaves."""
    model.zero_grad()
    step(build(name, model), examples, **options)
    return gradients(model)


@pytest.fixture(params=names())
def name(request):
    return request.param


# ------------------------------------------------------------------ autocast and scalers


def test_under_autocast_a_scaler_multiplies_the_gradient_and_changes_nothing_else(name):
    model, other = network(dtype=torch.float32), network(dtype=torch.float32)
    method, scaled = build(name, model), build(name, other)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(2):
        examples = batch(number, dtype=torch.float32)
        for one in (model, other):
            one.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step(method, examples)
            step(scaled, examples, scaler=scaler)
        found = {key: value / 1024 for key, value in gradients(other).items()}
        # A power of two shifts exponents and no digits, in bfloat16 too: what is left is float32 in the sums of eps.
        assert relative_error(found, gradients(model)) <= 1e-6
        assert all(value.dtype == torch.float32 for value in gradients(model).values())


# Where a rule compares numbers, rounding can turn the comparison: those parts are switched off, or the method is left out.
SMOOTH = {"esam": {"gamma": 1.0}, "ssam-f": {"sparsity": 0.0}, "saner": {"alpha": 1.0}}


def test_autocast_in_bfloat16_is_close_to_float32_in_every_rule(name):
    examples = batch(dtype=torch.float32)
    model = network(dtype=torch.float32)
    expected = build(name, model, **SMOOTH.get(name, {})).step_gradient(examples.inputs, examples.targets, examples.index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = build(name, model, **SMOOTH.get(name, {})).step_gradient(examples.inputs, examples.targets, examples.index)
    # bfloat16 keeps 8 bits, 0.4% a rounding, and there are some in a row through three layers, twice.
    assert relative_error(found, expected) <= 0.04


def trained_with_a_scaler(name: str, with_overflow: bool) -> tuple[nn.Module, Method, float]:
    model = network(dtype=torch.float32)
    method, optimizer = build(name, model), torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(5):
        if number == 2:
            method.start_epoch(1)
        for broken in (True, False) if with_overflow and number == 3 else (False,):
            examples = batch(number, dtype=torch.float32)
            if broken:
                examples.inputs[5] = torch.inf
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                step(method, examples, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
    return model, method, scaler.get_scale()


def test_a_run_with_an_overflow_is_the_run_without_that_batch(name):
    model, method, scale = trained_with_a_scaler(name, with_overflow=True)
    other, plain, unbroken = trained_with_a_scaler(name, with_overflow=False)
    assert (scale, unbroken) == (512.0, 1024.0)
    assert method.steps == plain.steps == 5
    weights, expected = (dict(one.state_dict()) for one in (model, other))
    # Another power of two as the scale: float32 rounds alike but for sums of eps; bfloat16 may then round one number apart.
    assert relative_error(weights, expected) <= 1e-4


@pytest.mark.parametrize("broken", [False, True])
def test_a_scaler_that_is_switched_off_counts_as_none(broken):
    model, examples = network(), batch()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    expected = build("sam", model).step_gradient(examples.inputs, examples.targets)
    if broken:  # its step() would take the infinite gradient: nothing would skip it
        examples.inputs[2] = torch.inf
        with pytest.raises(FloatingPointError, match=r"row\(s\) 2"):
            step(build("sam", model), examples, scaler=scaler)
        assert not gradients(model)
    else:
        assert relative_error(taken("sam", model, examples, scaler=scaler), expected) <= 1e-14


def test_under_autocast_running_statistics_move_once_a_call(name):
    if name in (*PER_EXAMPLE, "ssam-f"):
        pytest.skip("refuses BatchNorm in training mode, as its limits say")
    model = network(batch_norm=True, dtype=torch.float32)
    method = build(name, model)
    scaler = torch.amp.GradScaler("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for number in range(3):  # a step, then a step of two micro-batches
            step(method, batch(number, dtype=torch.float32), scaler=scaler, new_step=number < 2)
            assert int(model[1].num_batches_tracked) == number + 1
    assert model[1].running_mean.dtype == torch.float32


# ------------------------------------------------------------------ weights in low precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_put_back_and_their_state_is_in_float32(name, dtype):
    model = network(dtype=dtype)
    method = build(name, model)
    before = bits(model)
    for number in range(2):
        step(method, batch(number, dtype=dtype))
    assert same_bits(bits(model), before)
    assert all(value.dtype == dtype and bool(value.isfinite().all()) for value in gradients(model).values())
    for key in ("average", "direction", "fisher", "logits"):
        kept = method.state_dict().get(key, {})
        values = kept.values() if isinstance(kept, dict) else [kept]
        assert all(value.dtype in (torch.float32, torch.float64) for value in values)
        if key == {"f-sam": "average", "vasso": "average", "mesa": "average", "looksam": "direction"}.get(name):
            assert len(values) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ["sgd", "sam", "asam", "vasso", "f-sam", "gnp"])
def test_half_precision_gradients_are_close_to_those_of_the_same_weights_in_float32(rule, dtype):
    model = network(dtype=dtype)
    exact = copy.deepcopy(model).float()
    examples = batch(dtype=dtype)
    same = Examples(examples.inputs.float(), examples.targets, examples.index)
    # Weights of size 1 with eight (eleven) bits: eps is rounded to 0.4% (0.05%) of the weight, and so are the activations.
    tolerance = {torch.bfloat16: 0.05, torch.float16: 0.006}[dtype]
    assert relative_error(taken(rule, model, examples), taken(rule, exact, same)) <= tolerance


def test_an_average_of_bfloat16_weights_moves_by_less_than_their_last_bit():
    model = network(dtype=torch.bfloat16)
    method = make("mesa", model, ema_decay=0.999, start_epoch=0)
    method.start_epoch(1)
    decay, expected, naive = 0.999, None, None
    for number in range(20):
        step(method, batch(number, dtype=torch.bfloat16))
        present = model[0].weight.detach()
        expected = present.double() if expected is None else decay * expected + (1 - decay) * present.double()
        naive = present.clone() if naive is None else decay * naive + (1 - decay) * present
        if number == 0:
            start = present.clone()
        with torch.no_grad():
            model[0].weight.add_(0.02)
    found = method.state_dict()["average"]["0.weight"]
    moved = expected - start.double()
    assert float((found.double() - expected).norm() / moved.norm()) <= 1e-3  # 2^-24 of weights of size 1 against 4e-3
    assert float((naive.double() - expected).norm() / moved.norm()) > 0.5  # the twin stays where it was: 8 bits


# ------------------------------------------------------------------ weight decay and accumulation


def test_weight_decay_of_the_optimizer_acts_at_w_and_not_in_eps(name):
    decay, rate = 0.3, 0.1
    model, examples = network(), batch()
    method = build(name, model)
    expected = method.step_gradient(examples.inputs, examples.targets, examples.index)
    weights = {key: p.detach().clone() for key, p in model.named_parameters()}
    step(method, examples)
    torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay).step()
    found = {key: (weights[key] - p.detach()) / rate - decay * weights[key] for key, p in model.named_parameters()}
    assert relative_error(found, expected) <= 1e-12


def test_chunks_are_two_sweeps_of_the_same_rule(name):
    model, other = network(), network()
    whole = warmed(lambda m: make(name, m, **OPTIONS.get(name, {})), model)
    swept = warmed(lambda m: make(name, m, **OPTIONS.get(name, {}), chunk_size=3), other)
    for number in range(2):
        results = [step(method, batch(number)) for method in (whole, swept)]
        assert results[0].forward_examples == results[1].forward_examples
        assert results[0].backward_examples == results[1].backward_examples
    assert relative_error(gradients(other), gradients(model)) <= 1e-10  # sums in another order, over six steps


def in_two(name: str, model: nn.Module, **options) -> dict[str, Tensor]:
    """The gradient of one step in micro-batches of five and three examples."""
    examples, method = batch(), build(name, model, **options)
    for rows in (slice(0, 5), slice(5, 8)):
        share = (rows.stop - rows.start) / 8
        part = (examples.inputs[rows], examples.targets[rows])
        method.backward(*part, index=examples.index[rows], scale=share, new_step=rows.start == 0)
    assert method.steps == 1
    return gradients(model)


@pytest.mark.parametrize("rule", [*UNPERTURBED, *PER_EXAMPLE, "random-sam"])
def test_micro_batches_are_the_batch_where_eps_does_not_come_from_the_batch(rule):
    examples, model = batch(), network()
    expected = build(rule, model).step_gradient(examples.inputs, examples.targets, examples.index)
    assert relative_error(in_two(rule, model), expected) <= 1e-12


@pytest.mark.parametrize("rule", ["sam", "asam", "gsam", "gnp", "saner"])
def test_micro_batches_of_rules_without_a_memory_are_the_rule_on_each_of_them(rule):
    examples, model = batch(), network()
    expected: dict[str, Tensor] = {}
    for rows in (slice(0, 5), slice(5, 8)):
        part = build(rule, model).step_gradient(examples.inputs[rows], examples.targets[rows])
        for key, value in part.items():
            share = (rows.stop - rows.start) / 8
            expected[key] = expected[key] + share * value if key in expected else share * value
    assert relative_error(in_two(rule, model), expected) <= 1e-12
    whole = build(rule, model).step_gradient(examples.inputs, examples.targets)
    assert relative_error(gradients(model), whole) > 1e-4  # m-SAM, not SAM: the other meaning is chunk_size


# ------------------------------------------------------------------ groups of parameters, frozen, tied and sparse ones


class Watched(nn.Module):
    """Writes down its weights in every pass."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.seen = body, []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append({key: p.detach().clone() for key, p in self.named_parameters()})
        return self.body(inputs)


@pytest.mark.parametrize("rule", [name for name in names() if name not in UNPERTURBED])
def test_a_groups_radius_multiplies_its_part_of_eps_alone(rule):
    model, examples = network(), batch()
    groups = [{"params": model[0].parameters(), "rho": 0.15}, {"params": model[3].bias, "rho": 0.0}]
    arguments = (examples.inputs, examples.targets, examples.index)
    plain = build(rule, model, rho=0.05).perturbation(*arguments)
    eps = build(rule, model, rho=0.05, parameter_groups=groups).perturbation(*arguments)
    for key, value in plain.items():
        factor = 3.0 if key.startswith("0.") else 0.0 if key == "3.bias" else 1.0
        torch.testing.assert_close(eps[key], factor * value, rtol=1e-12, atol=0)
    assert all(float(value.norm()) > 0 for key, value in eps.items() if key != "3.bias")


@pytest.mark.parametrize("rule", [*TWO_PASSES, "random-sam"])
def test_a_step_moves_the_weights_by_the_eps_that_was_asked_for(rule):
    model, examples = Watched(network()), batch()
    groups = [{"params": model.body[0].parameters(), "rho": 0.15}, {"params": model.body[3].bias, "rho": 0.0}]
    # The fast engine, which takes the Fisher diagonal, sees a model that reads its own weights.
    options = {"engine": "reference"} if rule == "ssam-f" else {}
    method = build(rule, model, rho=0.05, parameter_groups=groups, **options)
    for _ in range(2):
        eps = method.perturbation(examples.inputs, examples.targets, examples.index)
        model.seen.clear()
        step(method, examples)
        for key, parameter in model.named_parameters():
            moved = model.seen[-1][key] - parameter.detach()
            if key == "body.3.bias":
                assert torch.equal(model.seen[-1][key], parameter.detach())  # not moved at all, to the bit
            if rule not in ("looksam", "looklayersam") or method.steps == 1:  # the steps between have one pass
                torch.testing.assert_close(moved, eps[key], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("rule", [rule for rule in TWO_PASSES if rule != "esam"])
def test_a_penalty_inside_the_loss_takes_part_in_the_eps_that_is_asked_for(rule):
    model, examples = Watched(network()), batch()
    options = {"engine": "reference"} if rule == "ssam-f" else {}
    method = method_class(rule)(model, weight_decay=0.3, **options)
    method.start_epoch(0)
    eps = method.perturbation(examples.inputs, examples.targets, examples.index)
    model.seen.clear()
    step(method, examples)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(model.seen[-1][key] - parameter.detach(), eps[key], rtol=1e-9, atol=1e-14)


def test_a_deep_copy_of_model_and_method_keeps_the_radii_of_groups():
    model, examples = network(), batch()
    method = build("sam", model, parameter_groups=[{"params": model[0].parameters(), "rho": 0.5}])
    other = copy.deepcopy(method)
    assert other.model is not model
    expected = method.step_gradient(examples.inputs, examples.targets)
    assert relative_error(other.step_gradient(examples.inputs, examples.targets), expected) <= 1e-14


class Constant(nn.Module):
    """A linear layer whose weight is no parameter."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight, self.bias)


def test_a_frozen_weight_is_a_constant(name):
    model, other = network(), network()
    model[3].weight.requires_grad_(False)
    other[3] = Constant(other[3])
    found = [{}, {}]
    for place, one in enumerate((model, other)):
        method = warmed(lambda m: make(name, m, **OPTIONS.get(name, {})), one)
        step(method, batch())
        found[place] = gradients(one)
    assert set(found[0]) == {"0.weight", "0.bias", "3.bias", "5.weight", "5.bias"}
    if name in ("esam", "random-sam", "ssam-d"):
        pytest.skip("draws by parameter, of which the order is another: equal in law, not in number")
    assert relative_error(found[0], found[1]) <= 1e-11


@pytest.mark.parametrize("rule", PER_EXAMPLE)
def test_per_example_rules_of_a_tied_weight_are_those_of_a_loop_over_examples(rule):
    model, examples = with_fixed_weights(TiedNetwork().double()), batch()
    expected = mean_term(example_terms(model, examples.inputs, examples.targets, 0.05), rule)
    found = build(rule, model, rho=0.05).step_gradient(examples.inputs, examples.targets)
    assert relative_error(found, expected) <= 1e-11


class Tokens(nn.Module):
    """The mean of a few embedded tokens, and a linear layer."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3)
        with_fixed_weights(self.double())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.embedding(tokens).mean(1)))


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 7, (6, 5), generator=generator), torch.arange(6) % 3


def test_a_sparse_gradient_is_refused_by_name_and_nothing_is_left_behind(name):
    model, (x, y) = Tokens(sparse=True), tokens()
    method, before = build(name, model), bits(model)
    with pytest.raises(InputError, match=r"sparse gradient of 'embedding.weight'.*sparse=False"):
        method.backward(x, y, index=torch.arange(6))
    assert not gradients(model)
    assert method.steps == 0
    assert same_bits(bits(model), before)


@pytest.mark.filterwarnings("ignore:Tokens runs on the exact reference engine")
def test_an_embedding_works_dense_or_frozen(name):
    (x, y), index = tokens(), torch.arange(6)
    dense = Tokens(sparse=False)
    build(name, dense).backward(x, y, index=index)
    assert dense.embedding.weight.grad.layout == torch.strided
    never_seen = dense.embedding.weight.grad[7:]
    assert bool((never_seen == 0).all())
    assert math.isfinite(float(dense.embedding.weight.grad.norm()))
    frozen = Tokens(sparse=True)
    frozen.embedding.weight.requires_grad_(False)
    build(name, frozen).backward(x, y, index=index)
    assert set(gradients(frozen)) == {"last.weight", "last.bias"}
