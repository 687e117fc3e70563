"""What a step leaves behind: weights to the bit, `.grad` added to, a state that is whole."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.testing import problem
from noisesam.testing.problem import (
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


def weights_are_restored_to_the_bit_and_in_place(factory: Factory) -> str:
    """The step adds to `.grad` and leaves the weights where and what they were."""
    model = network()
    method = warmed(factory, model)
    before, places = bits(model), [p.data_ptr() for p in model.parameters()]
    other, copied = twin(factory, model, method)
    step(method, batch())
    once = gradients(model)
    if not same_bits(bits(model), before):
        return "the weights have changed"
    if [p.data_ptr() for p in model.parameters()] != places:
        return "the weights lie in another memory"
    for parameter in other.parameters():
        parameter.grad = torch.ones_like(parameter)
    step(copied, batch())
    added = {name: value - 1 for name, value in gradients(other).items() if name in once}
    return "" if distance(added, once) <= 1e-8 else ".grad was not added to"


class _Breaks(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.calls, self.limit = body, 0, -1

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.limit:
            raise _BreakError
        return self.body(inputs)


class _BreakError(Exception):
    pass


def an_exception_in_any_pass_leaves_everything_as_it_was(factory: Factory) -> str:
    """Weights, `.grad` and state are as before, whichever forward pass raises."""
    model = _Breaks(network())
    method = warmed(factory, model)
    other, copied = twin(factory, model, method)
    assert isinstance(other, _Breaks)
    copied.step_gradient(batch().inputs, batch().targets, batch().index)  # what is looked at once per model is not counted
    other.calls = 0
    step(copied, batch())
    weights, state = bits(model), copy.deepcopy(method.state_dict())
    for limit in range(1, other.calls + 1):
        model.calls, model.limit = 0, limit
        try:
            step(method, batch())
        except _BreakError:
            pass
        else:
            return f"an exception in forward pass {limit} does not reach the caller"
        if not same_bits(bits(model), weights):
            return f"an exception in forward pass {limit} leaves other weights"
        if gradients(model):
            return f"an exception in forward pass {limit} leaves a gradient"
        if not same_state(method.state_dict(), state):
            return f"an exception in forward pass {limit} leaves another state"
    return ""


def state_goes_round_and_the_run_goes_on_to_the_bit(factory: Factory) -> str:
    """A method with the state of another continues as that one, over an epoch's start too."""
    model = network(dropout=0.3)
    method = warmed(factory, model)
    other, copied = twin(factory, model, method)
    if not same_state(copied.state_dict(), method.state_dict()):
        return "load_state_dict(state_dict()) gives another state"
    for number in range(4):
        if number == 2:
            for one in (method, copied):
                one.start_epoch(7)
        for one in (model, other):
            one.zero_grad()
        for one in (method, copied):
            torch.manual_seed(number)
            step(one, batch(number))
        if not same_bits(list(gradients(model).values()), list(gradients(other).values())):
            return f"step {number + 1} after the hand-over differs"
        with torch.no_grad():
            for one in (model, other):
                for parameter in one.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.05 * parameter.grad)
    return "" if same_state(copied.state_dict(), method.state_dict()) else "the states differ after four steps"


def state_holds_tensors_numbers_and_text_alone_and_no_weights(factory: Factory) -> str:
    """So that it can be saved without pickling code, and a checkpoint holds the weights once."""
    model = network()
    method = warmed(factory, model)
    step(method, batch())  # a copy that is kept in a step is one of the weights as they stand
    weights = bits(model)
    for path, value in problem.leaves(method.state_dict()):
        if not isinstance(value, (Tensor, bool, int, float, str, type(None))):
            return f"{path} is a {type(value).__name__}"
        if isinstance(value, Tensor) and any(value.shape == w.shape and torch.equal(value, w) for w in weights):
            return f"{path} is a copy of weights"
    try:
        method.load_state_dict({**method.state_dict(), "method": "another"})
    except InputError:
        return ""
    return "the state of another method is accepted"
