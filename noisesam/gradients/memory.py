"""How many examples are computed at once: by stated sizes, never by what happens to be free or fast, so that bits repeat."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from noisesam.errors import InputError
from noisesam.gradients.batch import ChunkSize, Inputs, batch_size, take, trainable
from noisesam.gradients.engine.arguments import tensors_in
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.unsupported import UnsupportedParameterUse
from noisesam.gradients.randomness import undisturbed
from noisesam.gradients.recomputation import evaluate
from noisesam.gradients.traversal import modules_of

MEMORY_BUDGET, ACCELERATOR_MEMORY_BUDGET = 2**31, 2**33
"""Bytes that chunk_size="auto" allows the per-example passes to add to the model: two GiB on a CPU, where parts cost little;
eight on an accelerator, where every further part costs its launches again."""


@dataclass(frozen=True)
class ExampleBytes:
    """What one example keeps: of its activations in a pass, and of its gradient in the form in which the engine keeps it."""

    activations: int
    gradient: int

    @property
    def needed(self) -> int:
        """Bytes for both passes with their temporaries."""
        return 4 * (self.activations + self.gradient)


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, ExampleBytes]] = weakref.WeakKeyDictionary()


def check_memory_budget(budget: int | None) -> int | None:
    """Refuse a budget that is not a positive number of bytes; None is that of the model's device."""
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise InputError(f"memory_budget={budget!r}", expected="a positive number of bytes", remedy="For a gigabyte: 2**30.")
    return budget


def chunk_for(model: nn.Module, inputs: Inputs, chunk_size: ChunkSize, budget: int | None = None) -> int | None:
    """Return the number of examples that a chunk size stands for, None for the whole batch."""
    return automatic_chunk(model, inputs, budget) if chunk_size == "auto" else chunk_size


def automatic_chunk(model: nn.Module, inputs: Inputs, budget: int | None = None) -> int:
    """Return how many examples are computed at once, at least one and as many as fit into the budget.

    An example is taken to need four times what autograd keeps of it in a pass and its gradient in the form in which the
    engine keeps it: both passes and their temporaries. Without a rule for some layer the gradient is two copies of the weights.

    Args:
        model: The model, whose shapes decide; nothing is timed and no free memory is asked for.
        inputs: A batch; its first example is run alone once per model and shape.
        budget: Bytes; None is two GiB on a CPU and eight on an accelerator.

    Returns:
        A number of examples between 1 and the batch size.
    """
    known = _KNOWN.setdefault(model, {})
    examples = batch_size(inputs)
    modules = modules_of(model)
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in modules):
        return examples  # they belong together: a batch method needs them all, the others refuse the model
    first = take(inputs, slice(0, 1))
    values = [first] if isinstance(first, Tensor) else first.values() if isinstance(first, dict) else first
    signature = tuple((tuple(v.shape), v.dtype, v.device.type) for v in values if isinstance(v, Tensor))
    if signature not in known:
        known[signature] = bytes_of_an_example(model, first)
    if budget is None:
        parameters = (parameter for module in modules for parameter in module._parameters.values() if parameter is not None)
        on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
        budget = MEMORY_BUDGET if on_cpu else ACCELERATOR_MEMORY_BUDGET
    return max(1, min(examples, budget // max(known[signature].needed, 1)))


def bytes_of_an_example(model: nn.Module, first: Inputs) -> ExampleBytes:
    """Run one example alone and count what it keeps; random draws and buffers are left as they were."""
    parameters = trainable(model)
    kept: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def count(value: Tensor) -> Tensor:
        if value.data_ptr() not in own:
            kept[value.data_ptr()] = value.numel() * value.element_size()
        return value.detach()  # an output that its own node kept with its graph would hold that node, and itself, for ever

    of_numpy = numpy.random.get_state(legacy=False)  # noqa: NPY002 - a model that draws with it is refused later
    with undisturbed(model), torch.enable_grad():
        try:
            with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
                output = evaluate(model, first)
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            # torch.func inside the model takes no such hooks: what all its functions return is more than it keeps.
            with _Results(count):
                output = evaluate(model, first)
        activations = sum(kept.values())
        gradient = _bytes_of_factors(FastEngine(model, parameters), first, output)
    numpy.random.set_state(of_numpy)  # noqa: NPY002
    if gradient is None:
        gradient = 2 * sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    return ExampleBytes(activations, gradient)


class _Results(TorchFunctionMode):
    """Show every tensor that a torch function returns."""

    def __init__(self, see: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and look at its result; inside torch.func's transforms tensors do not say where they lie."""
        result = func(*args, **(kwargs or {}))
        for value in tensors_in((result,)):
            if not torch._C._functorch.is_functorch_wrapped_tensor(value):  # pyright: ignore[reportAttributeAccessIssue]
                self.see(value.detach())
        return result


def _bytes_of_factors(engine: FastEngine, first: Inputs, output: Tensor) -> int | None:
    """Return what the fast engine keeps of a gradient and the largest that it sums up, None where it cannot compute it."""
    try:
        point = engine.at(first)
        factors = point.per_example_gradient(torch.ones_like(output), keep=True).factors.values()
        return sum(factor.bytes_kept() for factor in factors) + point.tape.temporary_bytes
    except (InputError, torch.OutOfMemoryError):
        raise
    except (UnsupportedParameterUse, RuntimeError, TypeError, ValueError, IndexError):
        return None  # the proof says why
