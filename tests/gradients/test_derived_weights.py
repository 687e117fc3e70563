"""Weights that a model computes from its parameters alone, on the fast engine: against the loop over examples, float64."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from reference.derived_weights import HAND_WRITTEN, IMAGES, LAYERS, ROWS, StandardisedConv2d, Written, convolutions
from reference.exactness import TOLERANCE, check
from reference.loop import norm
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import noisesam
from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient, register_rule
from noisesam.gradients.engine import engine_for, interception
from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.constants import Constants
from noisesam.gradients.engine.each_example import each
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.factors import Dense, OuterProducts

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_a_weight_computed_from_parameters_alone_is_exact_on_the_fast_engine(name):
    forward, parameters, shape = HAND_WRITTEN[name]
    model, x = Written(forward, **parameters), torch.randn(*shape)
    check(model, x)
    check(model, x[:1])


@pytest.mark.parametrize("name", LAYERS)
def test_a_reparametrised_layer_is_exact_on_the_fast_engine(name):
    build, shape = LAYERS[name]
    model, x = build(), torch.randn(*shape)
    check(model, x)
    check(model, x[:1])


def test_under_a_batch_perturbation_every_example_has_the_gradient_of_the_moved_parameter():
    model, x, y = Written(lambda m, x: x @ (m.w * m.w).exp(), w=(3, 4)), torch.randn(*ROWS), torch.arange(5) % 4
    found = noisesam.SAM(model, rho=0.1).step_terms(x, y).gradient_norm
    weight = model.w.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(x @ (weight * weight).exp(), y), weight)
    moved = (weight + 0.1 * slope / slope.norm()).detach().requires_grad_()
    losses = F.cross_entropy(x @ (moved * moved).exp(), y, reduction="none")
    expected = torch.stack([norm({"w": torch.autograd.grad(loss, moved, retain_graph=True)[0]}) for loss in losses])
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=0)


class StraightThrough(torch.autograd.Function):
    """Rounded on the way forward, passed through on the way back."""

    @staticmethod
    def forward(ctx, weight):
        del ctx
        return (weight * 2).round() / 2

    @staticmethod
    def backward(ctx, *output_gradients):
        del ctx
        return output_gradients[0]


def clamped(weight: Tensor, clamp: Callable[[Tensor], object]) -> Tensor:
    """Written to by another name, at an upper bound that is not reached when the model is looked at."""
    table = weight * 2
    clamp(table)
    return table


def clamp_without_gradient(table: Tensor) -> None:
    with torch.no_grad():
        table.clamp_(max=9.0)


def later_constant(m: Written, x: Tensor) -> Tensor:
    table = torch.ones(3, 4)
    product = x @ (m.w.exp() + table)
    table.add_(1.0)
    return product


SLOWER: dict[str, Callable[[Written, Tensor], Tensor]] = {
    "numbers that decide": lambda m, x: x @ (m.w if m.w.sum() > 100 else 2 * m.w),
    "a number of Python's": lambda m, x: x @ m.w * float(m.w.detach().abs().max()),
    "what an example chooses": lambda m, x: x @ m.w.index_select(0, torch.zeros_like(x[0], dtype=torch.long)),
    "a constant that was written to": lambda m, x: x @ (m.w * torch.zeros(3, 4).copy_(torch.ones_like(x[0, :1]))),
    "a constant that is written to later": later_constant,
    "a parameter that is changed": lambda m, x: x @ m.w.data.mul_(1.0),
    "written to through a view": lambda m, x: x @ clamped(m.w, lambda table: table.view(-1).clamp_(max=9.0)),
    "written to through a row": lambda m, x: x @ clamped(m.w, lambda table: table[0].clamp_(max=9.0)),
    "written to through its data": lambda m, x: x @ clamped(m.w, lambda table: table.data.clamp_(max=9.0)),
    "written to without gradient": lambda m, x: x @ clamped(m.w, clamp_without_gradient),
    "detached in place": lambda m, x: x @ (clamped(m.w, lambda table: table.detach_()) * m.w),
    "another reverse pass": lambda m, x: x @ StraightThrough.apply(m.w),
    "random numbers": lambda m, x: x @ (m.w + 1e-9 * torch.empty_like(m.w).normal_()),
    "statistics that are kept": lambda m, x: x @ F.batch_norm(m.w, torch.zeros(4), torch.ones(4), training=True),
    "entries at places in memory": lambda m, x: x @ m.w.as_strided((3, 4), (4, 1), 0),
    "comparisons that decide": lambda m, x: torch.where(m.w[:, 0] > 0, x, -x) @ m.w,
}


WITHOUT_TWIN = ("random numbers", "a parameter that is changed")
"""Models whose examples, run alone one after the other, do not see the same weights."""


@pytest.mark.parametrize("name", SLOWER)
def test_what_depends_on_more_than_parameters_is_no_derived_weight(name):
    model, x = Written(SLOWER[name], w=(3, 4)), torch.randn(*ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slower is said in one way or another
        engine = engine_for(model, x).name
        assert engine != "fast"
        if name not in WITHOUT_TWIN:
            check(model, x, engine=engine)


BEHIND_A_GATE: dict[str, Callable[[Tensor], Tensor]] = {
    "another reverse pass": StraightThrough.apply,
    "vectorised by the model": lambda w: torch.vmap(torch.exp)(w),
}


@pytest.mark.parametrize("name", BEHIND_A_GATE)
def test_a_parameter_whose_gradient_is_zero_at_the_start_is_looked_at_a_step_away(name):
    model = Written(lambda m, x: (x + m.gate * (x @ BEHIND_A_GATE[name](m.w)).tanh()) @ m.v, gate=(1,), w=(3, 3), v=(3, 4))
    model.gate.data.zero_()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert engine_for(model, torch.randn(*ROWS)).name != "fast"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    low_rank = Written(lambda m, x: F.linear(x, m.w + m.b @ m.a), w=(4, 3), b=(4, 2), a=(2, 3))
    low_rank.b.data.zero_()
    assert engine_for(low_rank, torch.randn(*ROWS)).name == "fast"


def tensors_alive() -> int:
    # By type: isinstance asks an object for its class, which some modules answer with a warning.
    return sum(issubclass(type(value), Tensor) for value in gc.get_objects())


def test_a_step_leaves_nothing_behind_that_waits_for_the_garbage_collector():
    model, x, y = (
        Written(lambda m, x: x @ (m.w[:, :].exp() * torch.ones(3, 4)), w=(3, 4)),
        torch.randn(*ROWS),
        torch.arange(5) % 4,
    )
    method = noisesam.methods.make("1-sam", model)
    method.backward(x, y)
    gc.collect()
    gc.disable()
    try:
        before = tensors_alive()
        for _ in range(3):
            method.backward(x, y)
        assert tensors_alive() <= before
    finally:
        gc.enable()


def test_a_step_with_cached_weights_is_refused():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 6)), nn.Linear(6, 4))
    with parametrize.cached(), pytest.raises(InputError, match=r"parametrize\.cached"):
        noisesam.decompose(model, torch.randn(*ROWS), torch.arange(5) % 4)


def test_a_dropped_weight_keeps_its_mask_only_where_the_model_runs_as_it_is():
    model, x = Written(lambda m, x: x @ F.dropout(m.w, 0.5, m.training), w=(3, 4)), torch.randn(*ROWS)
    with pytest.warns(UserWarning, match="'dropout' uses the parameter 'w'"):
        assert engine_for(model, x).name == "reference"
    assert engine_for(model.eval(), x).name == "fast"
    check(model, x)


def test_a_rule_that_returns_a_sum_where_every_example_has_its_own_jacobian_is_found_out():
    def product(x: Tensor, weight: Tensor) -> Tensor:
        if torch.overrides.has_torch_function((x, weight)):
            return torch.overrides.handle_torch_function(product, (x, weight), x, weight)
        return x @ weight

    @register_rule(product)
    def careless(tape, function, x, weight):
        eps = tape.perturbation(weight)
        return x @ weight if eps is None else torch.bmm(x.unsqueeze(1), weight + eps.dense()).squeeze(1)

    try:
        model, x = Written(lambda m, x: product(x, m.w.exp()), w=(3, 4)), torch.randn(*ROWS)
        point = FastEngine(model, dict(model.named_parameters())).at(x, {"w": Dense(torch.randn(5, 3, 4))})
        # The rule lets autograd add the weight's gradient up, without asking whether that is what is wanted.
        with pytest.raises(RuntimeError, match=r"tape\.shares"):
            point.sum_gradient(torch.ones_like(point.logits))
    finally:
        interception._RULES.pop(product)


def call(constants, function, arguments, named=None):
    return constants.call(function, arguments, named or {}, tensors_in((arguments, named or {})))


def test_constants_are_what_no_example_has_written_to():
    held = torch.ones(3)
    constants = Constants([held])
    made = call(constants, torch.zeros, (3,))
    scaled = call(constants, torch.mul, (held, made))
    assert all(value in constants for value in (held, made, scaled))
    assert [constants.holds(value) for value in (held, made, scaled)] == [True, False, True]
    data = torch.randn(3)
    assert call(constants, torch.add, (held, data)) not in constants
    call(constants, torch.Tensor.copy_, (made, data))
    assert made not in constants
    view = call(constants, torch.Tensor.view, (held, 1, 3))
    assert view in constants
    call(constants, torch.Tensor.add_, (held, data))
    assert not any(value in constants for value in (held, view))


def test_a_derived_weight_is_the_same_in_parts_of_the_batch_and_twice():
    model, x, y = convolutions(StandardisedConv2d), torch.randn(*IMAGES), torch.arange(5) % 4
    whole, parts, again = (
        mixed_point_gradient(model, x, y, rho=0.1, jacobian_at="perturbed", residual_at="perturbed", chunk_size=size)
        for size in (None, 2, None)
    )
    for name, value in whole.items():
        assert torch.equal(value, again[name])
        torch.testing.assert_close(parts[name], value, rtol=1e-11, atol=1e-14)  # rounding of other sums


def test_transposes_copies_and_new_shapes_keep_the_form_of_their_gradient():
    """A transpose multiplied out would cost n times the weight; a function for every scale a call for each of them."""
    model = Written(lambda m, x: ((x @ m.w.t()) * m.g.view(1, -1)).tanh() @ m.v.clone(), w=(6, 3), g=(6,), v=(6, 4))
    x = torch.randn(*ROWS)
    point = FastEngine(model, dict(model.named_parameters())).at(x)
    factors = point.per_example_gradient(torch.ones_like(point.logits)).factors
    assert {name: type(factor) for name, factor in factors.items()} == {"w": OuterProducts, "g": Dense, "v": OuterProducts}
    forms = {weight.form for weight in point.tape._derived._found.values()}
    assert forms == {"transposed", "reshaped", "same"}


def test_a_function_that_vmap_has_no_rule_for_is_repeated_one_example_after_the_other():
    rows, shared = torch.randn(4, 3), torch.randn(3)
    found = each(lambda row, other: (row * float(row.sum()), other + row), (rows, True), (shared, False))
    torch.testing.assert_close(found[0], rows * rows.sum(1, keepdim=True), rtol=0, atol=0)
    torch.testing.assert_close(found[1], rows + shared, rtol=0, atol=0)
    assert torch.equal(each(lambda row: row * float(row.sum()), (rows, True)), found[0])


def test_an_einsum_that_is_a_linear_map_copies_no_weight_for_every_example():
    model, x = Written(lambda m, x: torch.einsum("bd,dp->bp", x, m.w), w=(3, 4)), torch.randn(*ROWS)
    point = FastEngine(model, dict(model.named_parameters())).at(x)
    factor = point.per_example_gradient(torch.ones_like(point.logits)).factors["w"]
    assert isinstance(factor, OuterProducts)


def test_what_receives_something_of_the_examples_at_any_depth_is_no_constant():
    table, of_the_data = torch.randn(4, 3), torch.tensor([1, 0])
    constants = Constants([table])
    assert call(constants, torch.Tensor.new_tensor, (table, 2)) in constants
    for arguments, named in (
        ((table, ([of_the_data], slice(None))), {}),
        ((table,), {"options": {"index": (of_the_data,)}}),
    ):
        assert call(constants, lambda table, *_, **__: table + 0, arguments, named) not in constants
    bounds = slice(of_the_data[1], of_the_data[0])  # numbers, as if .item() had been asked of them
    assert call(constants, torch.Tensor.__getitem__, (table, bounds)) in constants
    assert call(constants, torch.cat, ([table, table],)) in constants
    assert all(value in constants for value in call(constants, torch.Tensor.max, (table, 0)))


def test_a_bound_that_comes_of_the_data_cuts_tables_of_parameters_and_of_buffers_alike():
    def cut(model: Written, x: Tensor) -> Tensor:
        length = (x[..., 0] * 0).long().amax() + 4
        return x @ model.w[:, :length] * model.scale[:length]

    model = Written(cut, w=(3, 5))
    model.register_buffer("scale", torch.rand(5) + 0.5)
    check(model, torch.randn(*ROWS))
