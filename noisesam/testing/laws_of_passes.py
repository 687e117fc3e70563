"""How the batch is passed through the network: counts, limits, order, random numbers, BatchNorm and dropout."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.testing import problem
from noisesam.testing.problem import (
    ROUNDING,
    Factory,
    batch,
    distance,
    gradients,
    network,
    same_bits,
    step,
    twin,
    warmed,
)


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


def dropout_masks_are_the_same_in_every_pass_over_the_batch(factory: Factory) -> str:
    """All passes of a step over the whole batch see the masks of the first."""
    model = network(dropout=0.5)
    method = warmed(factory, model)
    seen: list[tuple[Tensor, Tensor]] = []

    def see(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0], output))  # no more: a model whose hooks compute goes another way, and is proven again

    handle = next(m for m in model.modules() if isinstance(m, nn.Dropout)).register_forward_hook(see)
    torch.manual_seed(5)
    step(method, batch())
    handle.remove()
    whole = [(after == 0) & (before != 0) for before, after in seen if len(after) == problem.EXAMPLES]
    return "" if all(torch.equal(mask, whole[0]) for mask in whole) else "the masks differ between passes over the batch"
