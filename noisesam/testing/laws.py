"""The laws, one function each: it returns what it found wrong, in words, or an empty string."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.methods import Method
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

ROUNDING = 1e-10
"""Relative; float64 over sums of a few hundred products leaves much less."""

Law = Callable[[Factory], str]
LAWS: dict[str, Law] = {}


def law(function: Law) -> Law:
    """Add a law to the suite under the words of its name."""
    LAWS[function.__name__.replace("_", " ")] = function
    return function


@law
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


@law
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


@law
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


@law
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


@law
def counted_passes_are_the_passes_that_were_made(factory: Factory) -> str:
    """`forward_examples` and `backward_examples` equal what hooks on the model count from outside, step after step."""
    model = network()
    method = warmed(factory, model)
    seen = {"forward": 0, "backward": 0}

    def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen["forward"] += output.shape[0]
        if output.requires_grad:
            output.register_hook(lambda g: seen.__setitem__("backward", seen["backward"] + g.shape[0]))

    handle = model.register_forward_hook(count)
    for number in range(6):
        seen.update(forward=0, backward=0)
        result = step(method, batch(number))
        claimed = result.forward_examples, result.backward_examples
        if claimed != (seen["forward"], seen["backward"]):
            return f"step {number + 1} claims {claimed}, hooks count {(seen['forward'], seen['backward'])}"
    handle.remove()
    return ""


@law
def declared_limits_are_the_limits(factory: Factory) -> str:
    """Who needs `index` or `start_epoch`, or refuses BatchNorm in training mode, says so in `limits`; who says so does."""
    said = " ".join(type(factory(network())).limits)
    for word, attempt in (
        ("index", lambda: _without_index(factory)),
        ("start_epoch", lambda: _without_epoch(factory)),
        ("BatchNorm", lambda: _with_batch_norm(factory)),
    ):
        refused = attempt()
        if refused != (word in said):
            return f"{word}: {'refused, and not said' if refused else 'said, and not refused'} in limits"
    return ""


def _refuses(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except InputError:
        return True
    return False


def _without_index(factory: Factory) -> bool:
    method = factory(network())
    method.start_epoch(0)
    return _refuses(lambda: method.backward(batch().inputs, batch().targets))


def _without_epoch(factory: Factory) -> bool:
    method = factory(network())
    return _refuses(lambda: step(method, batch()))


def _with_batch_norm(factory: Factory) -> bool:
    method = factory(network(batch_norm=True))
    method.start_epoch(0)
    return _refuses(lambda: step(method, batch()))


@law
def the_order_of_a_batch_does_not_matter(factory: Factory) -> str:
    """The gradient is the same and the rows of the result move along (rules with shards keep theirs together)."""
    model = network()
    method = warmed(factory, model)
    other, copied = twin(factory, model, method)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])  # within the halves, in which shards of four lie
    first, second = step(method, batch()), step(copied, batch().permuted(order))
    if distance(gradients(other), gradients(model)) > ROUNDING:
        return "the gradient depends on the order"
    rows = torch.allclose(first.losses[order], second.losses, rtol=1e-9, equal_nan=True)
    return "" if rows and torch.equal(first.evaluated[order], second.evaluated) else "the rows do not move along"


@law
def repeated_runs_are_equal_to_the_bit_and_torchs_generators_serve_the_model_alone(factory: Factory) -> str:
    """What a method draws comes from its own seed: torch's generator moves as for one forward pass in the clean pass."""
    found: list[list[Tensor]] = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = network()
        step(warmed(factory, model), batch())
        found.append(list(gradients(model).values()))
    if not same_bits(*found):
        return "the gradient depends on torch's global generator though the model does not"
    model = network()
    method = warmed(factory, model)
    before = torch.get_rng_state()
    step(method, batch())
    return "" if torch.equal(before, torch.get_rng_state()) else "torch's global generator has moved"


@law
def running_statistics_move_once_a_step(factory: Factory) -> str:
    """BatchNorm's statistics come from one pass, the clean one where the whole batch is evaluated at w."""
    if _with_batch_norm(factory):
        return ""  # refused, as its limits say
    model = network(batch_norm=True)
    method = warmed(factory, model)
    reference = copy.deepcopy(model)
    layer, plain = model[1], reference[1]
    result = step(method, batch())
    reference(batch().inputs)
    if int(layer.num_batches_tracked) != int(plain.num_batches_tracked):  # pyright: ignore[reportArgumentType]
        moved = 1 + int(layer.num_batches_tracked) - int(plain.num_batches_tracked)  # pyright: ignore[reportArgumentType]
        return f"they moved {moved} times"
    if bool(result.evaluated.all()) and not torch.equal(layer.running_mean, plain.running_mean):  # pyright: ignore[reportArgumentType]
        return "they are not those of the clean pass"
    return ""


@law
def dropout_masks_are_the_same_in_every_pass_over_the_batch(factory: Factory) -> str:
    """All passes of a step over the whole batch see the masks of the first."""
    model = network(dropout=0.5)
    method = warmed(factory, model)
    masks: dict[int, list[Tensor]] = {}

    def see(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        masks.setdefault(output.shape[0], []).append(((output == 0) & (inputs[0] != 0)).detach())

    handle = next(m for m in model.modules() if isinstance(m, nn.Dropout)).register_forward_hook(see)
    torch.manual_seed(5)
    step(method, batch())
    handle.remove()
    whole = masks.get(problem.EXAMPLES, [])
    return "" if all(torch.equal(mask, whole[0]) for mask in whole) else "the masks differ between passes over the batch"


@law
def scale_multiplies_the_gradient_alone(factory: Factory) -> str:
    """`scale` is the caller's factor on the final gradient; eps does not see it."""
    model = network()
    method = warmed(factory, model)
    other, copied = twin(factory, model, method)
    step(method, batch())
    step(copied, batch(), scale=0.25)
    expected = {name: 0.25 * value for name, value in gradients(model).items()}
    return "" if distance(gradients(other), expected) <= ROUNDING else "0.25 times the gradient was expected"


@law
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


@law
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


@law
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


@law
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


@law
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


@law
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


@law
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


@law
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
