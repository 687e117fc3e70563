"""Every law of the public suite finds a method that breaks it, and what a loop of one's own may ask of a method."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from noisesam.errors import InputError
from noisesam.methods import make, names
from noisesam.methods.example_store import LARGEST_INDEX, ExampleStore
from noisesam.methods.sam import SAM
from noisesam.methods.vasso import VaSSO
from noisesam.testing import MethodCheckError, check_method, problem
from noisesam.testing.laws import LAWS


class Drifts(SAM):
    def _step(self, batch, parameters, call):
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(0.1).sub_(0.1)
        return super()._step(batch, parameters, call)


class CountsTooEarly(SAM):
    def _step(self, batch, parameters, call):
        self.steps += 1
        outcome = super()._step(batch, parameters, call)
        self.steps -= 1
        return outcome


class ForgetsItsAverage(VaSSO):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._average = {}


class SavesWeights(SAM):
    def state_dict(self):
        return {**super().state_dict(), "copy": next(self.model.parameters()).detach().clone()}


class Miscounts(SAM):
    def _step(self, batch, parameters, call):
        return replace(super()._step(batch, parameters, call), forward_examples=batch.size)


class Undeclared(SAM):
    limits = ("needs index",)


class MindsTheOrder(SAM):
    def _step(self, batch, parameters, call):
        return super()._step(batch.take(slice(0, batch.size - 1)), parameters, call)


class DrawsGlobally(SAM):
    def _step(self, batch, parameters, call):
        torch.rand(1)
        return super()._step(batch, parameters, call)


class MovesStatisticsTwice(SAM):
    def _step(self, batch, parameters, call):
        self._evaluate(batch)
        return super()._step(batch, parameters, call)


class DrawsNewMasks(SAM):
    def _step(self, batch, parameters, call):
        self._evaluate(batch)
        return super()._step(batch, parameters, call)


class SeesTheScale(SAM):
    def _step(self, batch, parameters, call):
        self.rho = 0.05 * call.final
        return super()._step(batch, parameters, call)


class SeesTheLossScale(SAM):
    def _step(self, batch, parameters, call):
        self.rho = 0.05 * call.loss
        return super()._step(batch, parameters, call)


class AdvancesOnOverflow(SAM):
    def _step(self, batch, parameters, call):
        self.steps += not bool(batch.inputs.isfinite().all())
        return super()._step(batch, parameters, call)


class DividesByZero(SAM):
    def _step(self, batch, parameters, call):
        outcome = super()._step(batch, parameters, call)
        size = torch.stack([value.norm() for value in outcome.gradient.values()]).norm()
        return replace(outcome, gradient={name: value / size * size for name, value in outcome.gradient.items()})


class MissesTheSharedWeight(SAM):
    def _step(self, batch, parameters, call):
        outcome = super()._step(batch, parameters, call)
        return replace(outcome, gradient={k: v for k, v in outcome.gradient.items() if not k.startswith("shared")})


class NormInHalf(SAM):
    def _step(self, batch, parameters, call):
        outcome = super()._step(batch, parameters, call)
        low = next(iter(parameters.values())).dtype == torch.bfloat16
        return replace(outcome, gradient={k: v * (torch.inf if low else 1) for k, v in outcome.gradient.items()})


class StepsOnMicroBatches(SAM):
    def backward(self, *arguments, **options):
        return super().backward(*arguments, **{**options, "new_step": True})


class MovesWhenAsked(SAM):
    def perturbation(self, inputs, targets, index=None):
        self.steps += 1
        return super().perturbation(inputs, targets, index)


class DrawsWhenAsked(SAM):
    def perturbation(self, inputs, targets, index=None):
        self.model(inputs)
        return super().perturbation(inputs, targets, index)


class LossesElsewhere(SAM):
    def _step(self, batch, parameters, call):
        outcome = super()._step(batch, parameters, call)
        return replace(outcome, logits=outcome.logits + 1)


BROKEN = {
    "weights are restored to the bit and in place": Drifts,
    "an exception in any pass leaves everything as it was": CountsTooEarly,
    "state goes round and the run goes on to the bit": ForgetsItsAverage,
    "state holds tensors numbers and text alone and no weights": SavesWeights,
    "counted passes are the passes that were made": Miscounts,
    "declared limits are the limits": Undeclared,
    "the order of a batch does not matter": MindsTheOrder,
    "repeated runs are equal to the bit and torchs generators serve the model alone": DrawsGlobally,
    "running statistics move once a step": MovesStatisticsTwice,
    "dropout masks are the same in every pass over the batch": DrawsNewMasks,
    "scale multiplies the gradient alone": SeesTheScale,
    "with a scaler grad is its scale times the gradient": SeesTheLossScale,
    "a non finite pass is skipped by a scaler and refused without": AdvancesOnOverflow,
    "a zero gradient gives a finite step": DividesByZero,
    "frozen and tied parameters are right": MissesTheSharedWeight,
    "half precision weights get half precision gradients": NormInHalf,
    "micro batches after the first leave the counters": StepsOnMicroBatches,
    "what is asked of a method changes nothing": MovesWhenAsked,
    "rows that were not evaluated are nan": LossesElsewhere,
}


@pytest.mark.parametrize("law", LAWS)
def test_every_law_finds_a_method_that_breaks_it_and_passes_its_parent(law):
    kind, others = BROKEN[law], [other for other in LAWS if other != law]
    with pytest.raises(MethodCheckError, match="1 of 1 laws are broken"):
        check_method(lambda model: kind(model, rho=0.05), skip=others)
    assert all(report.holds for report in check_method(lambda model: kind.__base__(model, rho=0.05), skip=others))


def test_a_query_that_draws_dropout_masks_is_found():
    with pytest.raises(MethodCheckError, match="what is asked"):
        check_method(lambda model: DrawsWhenAsked(model, rho=0.05))


def test_an_exception_of_any_type_is_a_finding_and_not_the_end_of_the_suite():
    def factory(model):
        raise RuntimeError("out of order")

    reports = check_method(factory, raises=False)
    assert len(reports) == len(LAWS)
    assert all(not report.holds and "RuntimeError: out of order" in report.found for report in reports)


SETTINGS = {
    "m-sam": {"examples_per_shard": 4},
    "saf": {"start_epoch": 0, "lag": 1},
    "mesa": {"start_epoch": 0},
    "ssam-d": {"epochs": 9},
    "looksam": {"k": 3},
    "ssam-f": {"num_samples": 12},
}


@pytest.mark.parametrize("name", names())
def test_what_is_asked_of_a_method_moves_no_generator_under_dropout(name):
    model = problem.network(dropout=0.5)
    method = problem.warmed(lambda model: make(name, model, **SETTINGS.get(name, {})), model)
    examples = problem.batch()
    for question in (method.perturbation, method.step_terms, method.step_gradient):
        before = torch.get_rng_state()
        question(examples.inputs, examples.targets, examples.index)
        assert torch.equal(torch.get_rng_state(), before)


def test_the_eps_of_half_precision_weights_is_kept_in_float32_as_the_step_adds_it():
    model = problem.network(dtype=torch.float16)
    examples = problem.batch(dtype=torch.float16)
    eps = SAM(model, rho=0.05).perturbation(examples.inputs, examples.targets)
    assert {value.dtype for value in eps.values()} == {torch.float32}


@pytest.mark.parametrize("name", names())
def test_a_parameter_that_is_frozen_or_freed_on_the_way_is_no_error_and_the_run_can_be_saved(name):
    model = problem.network()
    method = problem.warmed(lambda model: make(name, model, **SETTINGS.get(name, {})), model)
    first = next(model.parameters())
    first.requires_grad_(False)
    problem.step(method, problem.batch())
    assert first.grad is None
    other, copied = problem.twin(lambda model: make(name, model, **SETTINGS.get(name, {})), model, method)
    for one in (model, other):
        next(one.parameters()).requires_grad_(True)
        one.zero_grad()
    problem.step(method, problem.batch(1))
    problem.step(copied, problem.batch(1))
    assert problem.same_bits(list(problem.gradients(model).values()), list(problem.gradients(other).values()))
    assert first.grad is not None


@pytest.mark.parametrize("name", ["ssam-d", "ssam-f"])
def test_a_mask_reaches_a_parameter_that_was_frozen_when_it_was_drawn(name):
    def factory(model):
        return make(name, model, **SETTINGS.get(name, {}))

    model = problem.network()
    next(model.parameters()).requires_grad_(False)
    method = problem.warmed(factory, model)
    next(model.parameters()).requires_grad_(True)
    problem.step(method, problem.batch())
    _, copied = problem.twin(factory, model, method)
    assert list(copied.state_dict()["masks"]) == list(method.state_dict()["masks"])


@pytest.mark.parametrize("name", names())
def test_start_epoch_told_again_in_the_middle_of_an_epoch_changes_nothing(name):
    def factory(model):
        return make(name, model, **SETTINGS.get(name, {}))

    model = problem.network()
    method = problem.warmed(factory, model)
    problem.step(method, problem.batch())
    state = copy.deepcopy(method.state_dict())
    method.start_epoch(2)  # as a loop does that resumes in the middle of this epoch
    assert problem.same_state(method.state_dict(), state)


@pytest.mark.parametrize("budget", [0, 2**30])
def test_a_store_is_copied_and_pickled_whether_or_not_it_lies_in_a_file(budget):
    model = problem.network()
    method = problem.warmed(lambda model: make("saf", model, start_epoch=0, lag=1, store_budget=budget), model)
    state = copy.deepcopy(method.state_dict())
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert problem.same_state(other.state_dict(), state)
        problem.step(other, problem.batch(1))
        assert not problem.same_state(other.state_dict(), state)
        assert problem.same_state(method.state_dict(), state)  # the copy has rows of its own


def test_logits_beyond_float16_are_no_teacher_of_nan():
    model = nn.Sequential(nn.Linear(problem.FEATURES, problem.CLASSES)).double()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([2e5, 1.5e5, 0.0]))
    method = make("saf", model, start_epoch=0, lag=1, half_precision=True)
    for epoch in range(3):
        method.start_epoch(epoch)
        problem.step(method, problem.batch())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("fraction", [1e-12, 1e-6, 0.125])
def test_a_tiny_fraction_draws_one_example(fraction):
    result = problem.step(make("ausam", problem.network(), fraction=fraction), problem.batch())
    assert int(result.evaluated.sum()) == 1
    assert result.forward_examples == result.backward_examples == 2


WHOLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("name", ["sam", "saf", "ausam"])
@pytest.mark.parametrize("dtype", WHOLE)
def test_an_index_may_be_of_any_whole_type_and_appear_late(name, dtype):
    gradients, states = [], []
    for kind in (dtype, torch.int64):
        model = problem.network()
        method = problem.warmed(lambda model: make(name, model, **SETTINGS.get(name, {})), model)
        examples, index = problem.batch(), torch.tensor([120, 1, 0], dtype=kind)
        for epoch in (2, 3):
            method.start_epoch(epoch)
            method.backward(examples.inputs[:3], examples.targets[:3], index=index)
        method.perturbation(examples.inputs[:3], examples.targets[:3], index)
        method.step_gradient(examples.inputs[:3], examples.targets[:3], index)
        gradients.append(list(problem.gradients(model).values()))
        states.append(method.state_dict())
    assert problem.same_bits(*gradients)  # a uint8 index would select rows as a mask does
    assert problem.same_state(*states)


@pytest.mark.parametrize("name", ["sam", "saf", "ausam"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float16, torch.complex64])
def test_an_index_that_is_not_whole_is_refused_with_a_remedy(name, dtype):
    method = problem.warmed(lambda model: make(name, model, **SETTINGS.get(name, {})), problem.network())
    examples = problem.batch()
    with pytest.raises(InputError, match=re.escape(f"An index of dtype {dtype}")) as caught:
        method.backward(examples.inputs, examples.targets, index=torch.arange(len(examples.targets)).to(dtype))
    assert "whole numbers" in caught.value.expected
    assert "index.long()" in caught.value.remedy


@pytest.mark.parametrize("dtype", WHOLE)
def test_probabilities_and_stores_take_an_index_of_any_whole_type(dtype):
    store = ExampleStore((1,))
    store.write(torch.tensor([3, 1], dtype=dtype), torch.tensor([[3.0], [1.0]]))
    assert store.read(torch.tensor([1, 0, 3], dtype=dtype), "cpu").tolist() == [[1.0], [0.0], [3.0]]
    method = make("ausam", problem.network())
    assert method.probabilities(torch.tensor([1, 0, 3], dtype=dtype)).tolist() == [1.0] * 3
    with pytest.raises(InputError, match="An index of dtype"):
        method.probabilities(torch.tensor([True, False]))


@pytest.mark.parametrize("name", ["saf", "ausam"])
@pytest.mark.parametrize("given", [-1, LARGEST_INDEX + 1, 2**31 - 1, 2**62])
def test_ids_that_are_hashes_are_refused_before_anything_is_kept(name, given):
    model = problem.network()
    method = problem.warmed(lambda model: make(name, model, **SETTINGS.get(name, {})), model)
    state, examples = copy.deepcopy(method.state_dict()), problem.batch()
    model.zero_grad()
    with pytest.raises(InputError, match=rf"^index from {min(given, 1)} to {max(given, 1)}") as caught:
        method.backward(examples.inputs[:2], examples.targets[:2], index=torch.tensor([given, 1]))
    assert "examples from 0 on" in caught.value.expected
    assert f"{LARGEST_INDEX}" in caught.value.expected
    assert "torch.arange(len(dataset))" in caught.value.remedy
    assert "NoisyDataset.index" in caught.value.remedy
    assert problem.same_state(method.state_dict(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_store_refuses_what_its_table_has_no_room_for():
    store = ExampleStore((1,), memory_budget=0)
    with pytest.raises(InputError, match="index from"):
        store.write(torch.tensor([LARGEST_INDEX + 1]), torch.ones(1, 1))
    store.write(torch.tensor([LARGEST_INDEX]), torch.ones(1, 1))  # in a file, whose empty rows take no room
    assert store.read(torch.tensor([LARGEST_INDEX, 7]), "cpu").tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("s_min", [5e-324, 1e-45, 1e-39, 9.9e-5])
def test_weights_beyond_any_precision_are_refused(s_min):
    with pytest.raises(InputError, match=re.escape(f"s_min={s_min!r} with unbiased=True")) as caught:
        make("ausam", problem.network(), s_min=s_min, sampling="bernoulli", unbiased=True)
    assert "at least 0.0001" in caught.value.expected
    assert "10,000" in caught.value.expected
    assert "s_min=0.1" in caught.value.remedy
    make("ausam", problem.network(), s_min=s_min, sampling="bernoulli")  # without weights it is a small probability


def test_the_largest_weight_is_finite_in_float16():
    assert torch.tensor(1 / 1e-4, dtype=torch.float16).isfinite()
    make("ausam", problem.network(), s_min=1e-4, sampling="bernoulli", unbiased=True)


def test_micro_batches_after_the_first_add_nothing_to_the_fisher_diagonal():
    model = problem.network()
    method = make("ssam-f", model, num_samples=100)
    method.start_epoch(0)
    problem.step(method, problem.batch())
    state = copy.deepcopy(method.state_dict())
    result = problem.step(method, problem.batch(1), new_step=False)
    assert problem.same_state(method.state_dict(), state)
    assert result.forward_examples == 2 * len(problem.batch(1).targets)


def test_the_first_call_may_be_a_micro_batch():
    for name in names():
        model = problem.network()
        method = make(name, model, **SETTINGS.get(name, {}))
        method.start_epoch(0)
        problem.step(method, problem.batch(), new_step=False)
        assert method.steps == 0
