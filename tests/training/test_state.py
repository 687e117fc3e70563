from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisesam.errors import RunError
from noisesam.methods import StepResult
from noisesam.training.learning_rate import learning_rate
from noisesam.training.meter import StepMeter
from noisesam.training.state import pack, unpack

tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
    st.integers(0, 100),
)
keys = st.text("ab.$'", max_size=3) | st.integers(-5, 5) | st.sampled_from(["$tensor", "$entries", "$tuple"])
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
trees = st.recursive(
    plain | tensors,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, float) and math.isnan(left):
        assert math.isnan(right)
    else:
        assert left == right


@settings(deadline=None, max_examples=150)
@given(trees)
def test_unpack_undoes_pack_through_json(tree):
    stored, description = pack(tree)
    assert_same(unpack(stored, json.loads(json.dumps(description, allow_nan=False))), tree)


def test_tied_tensors_are_stored_once_and_views_are_stored_apart():
    weight = torch.arange(12.0).reshape(3, 4)
    tree = {"a": weight, "b": weight, "row": weight[1], "transposed": weight.T}
    stored, description = pack(tree)
    assert description["a"] == description["b"]
    assert_same(unpack(stored, description), tree)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam"])
def test_the_state_of_any_torch_optimizer_comes_back_to_the_bit(name):
    def make():
        torch_model = torch.nn.Linear(3, 2)
        return torch_model, getattr(torch.optim, name)(torch_model.parameters(), lr=0.1)

    model, optimizer = make()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, generator=generator)).square().sum().backward()
        optimizer.step()
    stored, description = pack(optimizer.state_dict())
    state = unpack(stored, json.loads(json.dumps(description)))
    other_model, other = make()
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(state)
    inputs = torch.randn(4, 3, generator=generator)
    for one, opt in ((model, optimizer), (other_model, other)):
        opt.zero_grad()
        one(inputs).square().sum().backward()
        opt.step()
    assert torch.equal(model.weight, other_model.weight)
    assert torch.equal(model.bias, other_model.bias)


def test_numpy_state_comes_back():
    generator = np.random.default_rng(3)
    generator.random(5)
    tree = {"generator": generator.bit_generator.state, "array": np.arange(3), "number": np.int64(3)}
    stored, description = pack(tree)
    back = unpack(stored, json.loads(json.dumps(description)))
    other = np.random.default_rng()
    other.bit_generator.state = back["generator"]
    assert other.random() == generator.random()
    np.testing.assert_array_equal(back["array"], np.arange(3))
    assert back["number"] == 3


def test_what_needs_a_pickle_is_refused_with_its_path():
    with pytest.raises(RunError, match=r"State 'method.cache.1' is of type Generator.*no pickle"):
        pack({"method": {"cache": [0, torch.Generator()]}})
    with pytest.raises(RunError, match="is of type tuple"):
        pack({(0, 1): 2})


def test_a_checkpoint_that_does_not_fit_its_description_is_refused():
    stored, _ = pack({"a": torch.ones(2)})
    with pytest.raises(RunError, match="cannot be put together"):
        unpack(stored, {"$tensor": "b"})
    with pytest.raises(RunError, match="cannot be put together"):
        unpack(stored[:20], {"$tensor": "a"})


def test_cosine_falls_from_the_base_to_zero_and_constant_stays():
    rates = [learning_rate("cosine", 0.5, step, 100) for step in range(100)]
    assert rates[0] == 0.5
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    assert learning_rate("cosine", 0.5, 100, 100) == 0.0
    assert rates[50] == pytest.approx(0.25)
    assert {learning_rate("constant", 0.5, step, 100) for step in range(100)} == {0.5}


def test_the_meter_resumes_in_the_middle_of_its_means():
    def step(forward):
        losses = torch.zeros(4)
        return StepResult(losses.mean(), torch.zeros(4, 2), losses, losses == 0, None, forward, 2 * forward)

    whole, first, second = StepMeter(), StepMeter(), StepMeter()
    for meter, forwards in ((whole, (4, 8, 12)), (first, (4,))):
        for forward in forwards:
            meter.add(step(forward), 4, forward / 8)
    second.load_state_dict(unpack(*pack(first.state_dict())))
    for forward in (8, 12):
        second.add(step(forward), 4, forward / 8)
    rows = second.take()
    assert rows == whole.take()
    assert {row["metric"]: row["value"] for row in rows} == {"forward_passes": 2, "backward_passes": 4, "step_seconds": 1.0}
    assert second.take() == []
