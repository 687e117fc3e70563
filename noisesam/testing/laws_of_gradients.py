"""What arrives in `.grad`, whatever scale, weights and numbers are handed in, and what is said of it without a step."""

from __future__ import annotations

import copy

import torch
from torch import nn

from noisesam.methods import Method
from noisesam.testing import problem
from noisesam.testing.problem import (
    ROUNDING,
    Factory,
    batch,
    bits,
    distance,
    gradients,
    network,
    same_bits,
    same_state,
    step,
    twin,
    warmed,
)


def scale_multiplies_the_gradient_alone(factory: Factory) -> str:
    """`scale` is the caller's factor on the final gradient; eps does not see it."""
    model = network()
    method = warmed(factory, model)
    other, copied = twin(factory, model, method)
    step(method, batch())
    step(copied, batch(), scale=0.25)
    expected = {name: 0.25 * value for name, value in gradients(model).items()}
    return "" if distance(gradients(other), expected) <= ROUNDING else "0.25 times the gradient was expected"


def with_a_scaler_grad_is_its_scale_times_the_gradient(factory: Factory) -> str:
    """As after scaler.scale(loss).backward(); the rule, its averages included, does not see the scale."""
    model = network(dtype=torch.float32)
    method = warmed(factory, model)
    other, copied = twin(factory, model, method)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in range(3):
        for one in (model, other):
            one.zero_grad()
        step(method, batch(number, dtype=torch.float32))
        step(copied, batch(number, dtype=torch.float32), scaler=scaler)
        expected = {name: 1024 * value for name, value in gradients(model).items()}
        if distance(gradients(other), expected) > 1e-5:  # float32, and other roundings at another scale
            return f"step {number + 1}: 1024 times the gradient was expected"
    return ""


def a_non_finite_pass_is_skipped_by_a_scaler_and_refused_without(factory: Factory) -> str:
    """`.grad` is filled with inf and no state advances; without a scaler FloatingPointError names the rows."""
    model = network()
    method = warmed(factory, model)
    broken = batch()
    broken.inputs[:, 0] = torch.nan
    state = copy.deepcopy(method.state_dict())
    try:
        step(method, broken)
    except FloatingPointError as error:
        if "row" not in str(error):
            return "the error names no rows"
    else:
        return "a loss that is not a number is accepted without a scaler"
    if gradients(model) or not same_state(method.state_dict(), state):
        return "a refused step leaves a gradient or another state"
    step(method, broken, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    if not all(bool(value.isinf().all()) for value in gradients(model).values()) or not gradients(model):
        return "with a scaler .grad is not filled with inf"
    return "" if same_state(method.state_dict(), state) else "a skipped step advances the state"


def a_zero_gradient_gives_a_finite_step(factory: Factory) -> str:
    """No NaN and no division by zero where the gradient vanishes."""
    model = nn.Sequential(nn.Linear(problem.FEATURES, 4), nn.ReLU(), nn.Linear(4, problem.CLASSES)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        list(model.parameters())[-1].copy_(torch.tensor([1e4, 0.0, 0.0]))  # every example fitted: the residual is exactly 0
    examples = batch()
    examples.targets.zero_()
    method = factory(model)
    method.start_epoch(0)
    for _ in range(2):
        step(method, examples)
    finite = all(bool(value.isfinite().all()) for value in gradients(model).values())
    return "" if finite else "the gradient is not finite"


def frozen_and_tied_parameters_are_right(factory: Factory) -> str:
    """A frozen parameter receives nothing; a weight used twice receives one gradient."""
    model = network()
    frozen = next(model.parameters()).requires_grad_(False)
    method = factory(model)
    method.start_epoch(0)
    weight = frozen.detach().clone()
    step(method, batch())
    if frozen.grad is not None or not torch.equal(frozen.detach(), weight):
        return "a frozen parameter received something"
    tied = problem.with_fixed_weights(problem.TiedNetwork().double())
    method = factory(tied)
    method.start_epoch(0)
    step(method, batch())
    return "" if set(gradients(tied)) == {name for name, _ in tied.named_parameters()} else "a tied parameter is missed"


def half_precision_weights_get_half_precision_gradients(factory: Factory) -> str:
    """bfloat16 weights are restored to the bit, and their gradients are finite."""
    model = network(dtype=torch.bfloat16)
    before = bits(model)
    method = factory(model)
    method.start_epoch(0)
    step(method, batch(dtype=torch.bfloat16))
    if not same_bits(bits(model), before):
        return "the weights have changed"
    found = gradients(model)
    ok = bool(found) and all(g.dtype == torch.bfloat16 and bool(g.isfinite().all()) for g in found.values())
    return "" if ok else "a gradient is missing, not finite, or of another type"


def micro_batches_after_the_first_leave_the_counters(factory: Factory) -> str:
    """new_step=False: the step counter and what is averaged by step hold still, and `.grad` is added to."""
    model = network()
    method = warmed(factory, model)
    step(method, batch(), scale=0.5)
    steps, once = method.steps, gradients(model)
    step(method, batch(1), scale=0.5, new_step=False)
    if method.steps != steps:
        return "the step counter moved"
    return "" if distance(gradients(model), once) > 0 else "nothing was added to .grad"


def what_is_asked_of_a_method_changes_nothing(factory: Factory) -> str:
    """step_gradient, perturbation and step_terms leave weights, buffers, generators and state; step_gradient foretells."""
    model = network(dropout=0.5)
    method = warmed(factory, model)
    examples = batch()
    state, weights, generator = copy.deepcopy(method.state_dict()), bits(model), torch.get_rng_state()
    arguments = (examples.inputs, examples.targets, examples.index)
    foretold = method.step_gradient(*arguments)
    method.perturbation(*arguments)
    method.step_terms(*arguments)
    if not same_state(method.state_dict(), state):
        return "the state has changed"
    if not same_bits(bits(model), weights) or not torch.equal(torch.get_rng_state(), generator):
        return "weights, buffers or torch's generator have changed"
    step(method, examples)
    return "" if distance(gradients(model), foretold) <= ROUNDING else "step_gradient foretold another gradient"


def rows_that_were_not_evaluated_are_nan(factory: Factory) -> str:
    """Evaluated rows hold losses and logits at w, the others NaN; `loss` is the mean over the evaluated ones."""
    model = network()
    method: Method = warmed(factory, model)
    result = step(method, batch())
    seen = result.evaluated
    if bool(result.losses[~seen].isfinite().any()) or bool(result.logits[~seen].isfinite().any()):
        return "a row that was not evaluated holds numbers"
    expected = model(batch().inputs).detach()[seen]
    if not torch.allclose(result.logits[seen], expected, rtol=1e-9):
        return "the logits are not those at w"
    mean_is_right = not bool(seen.any()) or torch.allclose(result.loss, result.losses[seen].mean())
    return "" if mean_is_right else "loss is not the mean over the evaluated rows"
