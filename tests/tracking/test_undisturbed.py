from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisesam import methods, models
from noisesam.data import NoisyDataset
from noisesam.errors import InputError
from noisesam.tracking import Tracker, every_epochs, every_steps, log_spaced, undisturbed


class Everything(torch.nn.Module):
    """Dropout, BatchNorm in both modes, a frozen layer, tied weights, and a buffer that counts calls."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = torch.nn.BatchNorm1d(4)
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)
        self.dropout = torch.nn.Dropout(0.5)
        self.last = torch.nn.Linear(4, 3)

    def forward(self, inputs):
        hidden = self.second(torch.tanh(self.first(inputs)))
        return self.last(self.frozen(self.dropout(self.norm(hidden))))


def probe(size=6, features=4, classes=3):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) % classes
    noisy = labels.clone()
    noisy[::2] = (noisy[::2] + 1) % classes
    return NoisyDataset(torch.randn(size, features, generator=generator), noisy, clean_labels=labels)


def everything_of(model):
    """Bits of parameters, buffers and gradients, training flags and the generator's state."""
    return (
        {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        {name: None if p.grad is None else (id(p.grad), p.grad.clone()) for name, p in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        {name: p.requires_grad for name, p in model.named_parameters()},
        torch.get_rng_state(),
        [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
    )


def assert_equal(before, after):
    state, gradients, modes, flags, generator, hooks = before
    assert all(torch.equal(value, after[0][name]) for name, value in state.items())
    for name, gradient in gradients.items():
        if gradient is None:
            assert after[1][name] is None
        else:
            assert gradient[0] == after[1][name][0]
            assert torch.equal(gradient[1], after[1][name][1])
    assert (modes, flags, hooks) == (after[2], after[3], after[5])
    assert torch.equal(generator, after[4])


def trained_a_little():
    torch_state = torch.get_rng_state()
    torch.default_generator.manual_seed(3)
    model = Everything()
    model.norm.eval()  # frozen by hand, as in fine-tuning
    model(torch.randn(5, 4)).sum().backward()
    torch.set_rng_state(torch_state)
    return model


def test_a_measurement_leaves_model_gradients_modes_and_generators_to_the_bit():
    model = trained_a_little()
    tracker = Tracker(model, probe(), rho=0.1, batch_size=4)
    before = everything_of(model)
    tracker.measure(0, 0)
    assert_equal(before, everything_of(model))


def test_a_failed_measurement_leaves_everything_too():
    model = trained_a_little()
    before = everything_of(model)

    def disturb():
        model(torch.randn(2, 4)).sum().backward()
        model.norm.running_mean.fill_(7)
        torch.rand(3)
        model.dropout.train()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), undisturbed(model):
        disturb()
    assert_equal(before, everything_of(model))


def test_measurements_see_the_evaluation_mode_whatever_the_model_is_in():
    model = trained_a_little()
    first, second = Tracker(model, probe(), rho=0.1), Tracker(model, probe(), rho=0.1)
    first.measure(0, 0)
    model.eval()
    second.measure(0, 0)
    np.testing.assert_array_equal(first.metrics["value"], second.metrics["value"])


@pytest.mark.parametrize("name", methods.names())
def test_the_step_of_a_users_own_loop_is_the_same_with_and_without_a_tracker(name):
    def train(*, tracked):
        model = models.make("mlp", input_shape=(4,), classes=3, seed=0, hidden=[6], dropout=0.4)
        method = methods.make(name, model)
        method.start_epoch(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        data = probe(12)
        tracker = Tracker(model, data, method=method, rho=0.1, schedule=every_steps(1)) if tracked else None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            for step in range(5):
                if tracker is not None:
                    assert tracker.observe(step, 0.0)
                optimizer.zero_grad()
                method.backward(data.inputs, data.labels, index=data.index)
                optimizer.step()
        return model, method

    (model, method), (other, other_method) = train(tracked=True), train(tracked=False)
    for value, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(value, expected)
    assert str(method.state_dict()) == str(other_method.state_dict())


@pytest.mark.parametrize("name", methods.names())
def test_step_quantities_are_the_methods_own_terms(name):
    model = models.make("mlp", input_shape=(4,), classes=3, seed=0, hidden=[6]).double()
    data = probe(12).to(dtype=torch.float64)
    method = methods.make(name, model)
    method.start_epoch(0)
    tracker = Tracker(model, data, method=method, rho=0.1)
    tracker.measure(0, 0)
    terms = method.step_terms(data.inputs, data.labels, data.index)
    np.testing.assert_allclose(tracker.examples["step_gradient_norm"], terms.gradient_norm.detach(), rtol=1e-12)
    np.testing.assert_allclose(tracker.examples["step_residual_norm"], terms.residual_norm.detach(), rtol=1e-12)
    for metric in ("step_gradient_norm", "step_residual_norm"):
        group_values = tracker.metrics[tracker.metrics["metric"] == metric].set_index("group")["value"]
        for group, rows in (("all", slice(None)), ("clean", ~data.is_noisy.numpy()), ("noisy", data.is_noisy.numpy())):
            assert group_values[group] == pytest.approx(tracker.examples[metric].to_numpy()[rows].mean(), rel=1e-12)
    # The cosine is with what backward adds, for the probe as the batch.
    method.backward(data.inputs, data.labels, index=data.index)
    step = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    for group, rows in (("clean", ~data.is_noisy), ("noisy", data.is_noisy)):
        loss = torch.nn.functional.cross_entropy(model(data.inputs[rows]), data.labels[rows])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        expected = float(step @ gradient / step.norm() / gradient.norm())
        cosines = tracker.metrics.query("metric == 'step_cosine'").set_index("group")["value"]
        found = cosines[group]
        assert found == pytest.approx(expected, abs=1e-10)  # a cosine in float64


@pytest.mark.parametrize(("name", "column"), [("1-sam", "one_sam"), ("l-sam", "l_sam"), ("j-sam", "j_sam")])
def test_at_the_methods_own_rho_its_step_term_is_the_tracked_one(name, column):
    model = models.make("mlp", input_shape=(4,), classes=3, seed=0, hidden=[6]).double()
    tracker = Tracker(model, probe(12).to(dtype=torch.float64), method=methods.make(name, model, rho=0.2))
    tracker.measure(0, 0)
    assert tracker.rho == 0.2
    own, tracked = tracker.examples["step_gradient_norm"], tracker.examples[f"{column}_gradient_norm"]
    np.testing.assert_allclose(own, tracked, rtol=1e-10)  # two float64 routes to one number


def test_without_a_radius_anywhere_the_default_is_used():
    model = models.make("linear", input_shape=(4,), classes=3)
    assert Tracker(model, probe(), method=methods.make("sgd", model)).rho == 0.1
    assert Tracker(model, probe(), method=methods.make("sam", model, rho=0.3), rho=0.2).rho == 0.2


def test_distance_counts_from_the_weights_at_construction():
    model = models.make("linear", input_shape=(4,), classes=3)
    tracker = Tracker(model, probe())
    tracker.measure(0, 0)
    with torch.no_grad():
        model.last_layer.bias += 2.0
    tracker.measure(1, 1)
    distances = tracker.metrics.query("metric == 'distance_from_initialisation'")["value"].tolist()
    assert distances == [0.0, pytest.approx(2 * 3**0.5, rel=1e-6)]  # float32 weights


@settings(deadline=None, max_examples=50)
@given(every=st.integers(1, 7), dense=st.integers(0, 6), steps_per_epoch=st.integers(1, 5))
def test_each_due_epoch_is_measured_exactly_once_however_often_it_is_observed(every, dense, steps_per_epoch):
    schedule, seen = every_epochs(every, dense=dense), []
    last = None
    for step in range(12 * steps_per_epoch):
        point = schedule(step, step / steps_per_epoch)
        if point is not None and point != last:
            seen.append(step / steps_per_epoch)
            last = point
    assert seen == [epoch for epoch in range(12) if epoch <= dense or epoch % every == 0]


def test_log_spaced_points_grow_by_a_constant_factor():
    schedule, first = log_spaced(4), {}
    for step in range(20_000):
        first.setdefault(schedule(step, 0.0), step)
    steps = list(first.values())
    assert steps[:2] == [0, 1]
    assert {10, 100, 1000, 10_000} <= set(steps)
    late = [step for step in steps if step >= 1000]
    assert np.diff(np.log10(late)) == pytest.approx(0.25, abs=1e-3)  # steps are whole numbers


def test_observe_measures_each_point_once():
    model = copy.deepcopy(models.make("linear", input_shape=(4,), classes=3))
    tracker = Tracker(model, probe(), schedule=every_epochs(2))
    assert [tracker.observe(step, step // 3) for step in range(9)] == [True] + [False] * 5 + [True] + [False] * 2


@pytest.mark.parametrize("make", [lambda: every_epochs(0), lambda: every_steps(0), lambda: log_spaced(0)])
def test_schedules_refuse_zero(make):
    with pytest.raises(InputError, match="at least 1"):
        make()
