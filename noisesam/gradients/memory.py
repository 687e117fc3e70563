"""How many examples are computed at once: by a stated budget, never by what happens to be free, so that bits repeat."""

from __future__ import annotations

import weakref
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients.batch import ChunkSize, Inputs, batch_size, call_model, devices_of, take, trainable
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.interception import UnsupportedParameterUse
from noisesam.gradients.randomness import RandomState

MEMORY_BUDGET = 2**31
"""Bytes that chunk_size="auto" allows the per-example passes to add to the model: two GiB."""

_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, int]] = weakref.WeakKeyDictionary()


def check_memory_budget(budget: int) -> int:
    """Refuse a budget that is not a positive number of bytes."""
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise InputError(f"memory_budget={budget!r}", expected="a positive number of bytes", remedy="For a gigabyte: 2**30.")
    return budget


def chunk_for(model: nn.Module, inputs: Inputs, chunk_size: ChunkSize, budget: int = MEMORY_BUDGET) -> int | None:
    """Return the number of examples that a chunk size stands for, None for the whole batch."""
    return automatic_chunk(model, inputs, budget) if chunk_size == "auto" else chunk_size


def automatic_chunk(model: nn.Module, inputs: Inputs, budget: int = MEMORY_BUDGET) -> int:
    """Return how many examples fit into the budget, at least one.

    An example is taken to need four times what autograd keeps of it in a pass and its gradient in the form in which the
    engine keeps it: both passes and their temporaries. Without a rule for some layer the gradient is two copies of the weights.

    Args:
        model: The model, whose shapes decide; nothing is timed and no free memory is asked for.
        inputs: A batch; its first example is run alone once per model and shape.
        budget: Bytes.

    Returns:
        A number of examples between 1 and the batch size.
    """
    known = _KNOWN.setdefault(model, {})
    examples = batch_size(inputs)
    first = take(inputs, slice(0, 1))
    values = [first] if isinstance(first, Tensor) else first.values() if isinstance(first, dict) else first
    signature = tuple((tuple(v.shape), v.dtype) for v in values if isinstance(v, Tensor))
    if signature in known and budget // max(known[signature], 1) >= examples:
        return examples
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules()):
        return examples  # they belong together: a batch method needs them all, the others refuse the model
    if signature not in known:
        known[signature] = _bytes_of_an_example(model, first)
    return max(1, min(examples, budget // max(known[signature], 1)))


def _bytes_of_an_example(model: nn.Module, first: Inputs) -> int:
    parameters = trainable(model)
    state = RandomState.capture(devices_of(model))
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def count(value: Tensor) -> Tensor:
        if value.data_ptr() not in own:
            kept[value.data_ptr()] = value.numel() * value.element_size()
        return value

    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            output = call_model(model, first)
        activations = sum(kept.values())
        try:
            with torch.enable_grad():
                point = FastEngine(model, parameters).at(first)
                factors = point.per_example_gradient(torch.ones_like(output)).factors.values()
            gradient = sum(factor.bytes_kept() for factor in factors)
        except UnsupportedParameterUse:
            gradient = 2 * sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    finally:
        state.restore()
        with torch.no_grad():
            for buffer, copy in buffers:
                buffer.copy_(copy)
    return 4 * (activations + gradient)
