"""A batch as the model takes it: a tensor, a tuple or a dict, the first axis being the example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int, Integer, Shaped
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from noisesam.errors import InputError
from noisesam.gradients.frozen_batch_norm import written_out
from noisesam.gradients.losses import inherit_label_range, remember_label_range

Inputs = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]


def call_model(model: nn.Module, inputs: Inputs, under: AbstractContextManager[Any] | None = None) -> Tensor:
    """Return the logits of model(inputs), model(*inputs) or model(**inputs).

    Args:
        model: The model.
        inputs: The examples.
        under: What is active while the model runs; None writes its frozen BatchNorm layers out.
    """
    try:
        with written_out(model) if under is None else under:
            if isinstance(inputs, Tensor):
                output = model(inputs)
            elif isinstance(inputs, dict):
                output = model(**inputs)
            else:
                output = model(*inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        integers = sorted({str(t.dtype) for t in _tensors(inputs) if not (t.is_floating_point() or t.is_complex())})
        if integers and ("must have the same dtype" in str(error) or "Input type" in str(error)):
            raise InputError(
                f"Inputs of dtype {', '.join(integers)} to a model that computes in floating point",
                expected=f"inputs of dtype {next((str(p.dtype) for p in model.parameters()), 'torch.float32')}",
                remedy="Convert them first, for images inputs.float() / 255.",
            ) from error
        raise
    return logits_of(output)


def logits_of(output: Any) -> Tensor:
    """Return what a model has returned if it is a tensor, else its `logits`, as the classifiers of many libraries call it.

    Example:
        >>> from types import SimpleNamespace
        >>> logits_of(SimpleNamespace(loss=None, logits=torch.zeros(2, 3))).shape, logits_of({"logits": torch.ones(1)})
        (torch.Size([2, 3]), tensor([1.]))
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"The model returned {type(output).__name__}",
            expected="one tensor of logits, shape (n, ...), or an output with such a tensor as `logits`",
            remedy="Wrap the model so that it returns its logits.",
        )
    return logits


def batch_size(inputs: Inputs) -> int:
    """Return the number of examples: the first axis that all tensors of the inputs share."""
    for tensor in _tensors(inputs):
        if tensor.layout != torch.strided or tensor.is_nested:
            raise InputError(
                f"Inputs of the layout {str(tensor.layout).removeprefix('torch.')}{', nested' if tensor.is_nested else ''}",
                expected="dense tensors, whose first axis is the example",
                remedy="Pad examples of different lengths, with a mask beside; make a sparse tensor dense with .to_dense().",
            )
    sizes = {t.shape[0] for t in _tensors(inputs) if t.dim()}
    if len(sizes) != 1:
        raise InputError(
            f"Inputs whose first axes are {sorted(sizes)}" if sizes else "Inputs without a tensor that has an example axis",
            expected="one number of examples, as the first axis of every input tensor",
            remedy="Put the examples along the first axis; what belongs to all of them goes in as a plain value.",
        )
    size = sizes.pop()
    if size == 0:
        raise InputError("An empty batch", expected="at least one example", remedy="Pass over it, or load with drop_last.")
    return size


def take(inputs: Inputs, rows: slice | Tensor) -> Inputs:
    """Return the inputs of some examples; what is not a tensor, or has no axis, belongs to all of them."""
    return each_tensor(inputs, lambda value: value[rows] if value.dim() else value)


def each_tensor(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return the inputs with `change` of every tensor in its place; all else stays."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {name: changed(value) for name, value in inputs.items()}
    return tuple(changed(value) for value in inputs)


def _tensors(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    values = inputs.values() if isinstance(inputs, dict) else inputs
    for value in values:
        if isinstance(value, (list, tuple, dict)) and any(
            isinstance(one, Tensor) for one in (value.values() if isinstance(value, dict) else value)
        ):
            raise InputError(
                f"A {type(value).__name__} of tensors inside the inputs",
                expected="a tensor, or one tuple or dict of tensors: each is taken apart by example",
                remedy="Pass its tensors as inputs of their own, and let forward put them together.",
            )
    return [value for value in values if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Batch:
    """Inputs, targets and stable indices of the same examples."""

    inputs: Inputs
    targets: Tensor
    index: Integer[Tensor, " n"] | None
    size: int

    @classmethod
    def of(cls, inputs: Inputs, targets: Tensor, index: Tensor | None = None) -> Batch:
        """Check that inputs, targets and index hold the same number of examples."""
        size = batch_size(inputs)
        if not isinstance(targets, Tensor) or targets.shape[:1] != (size,):
            given = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
            raise InputError(
                f"Targets of shape {given} for {size} examples",
                expected=f"a tensor whose first axis is {size}",
                remedy="Inputs and targets must come from the same batch, the first axis being the example.",
            )
        device = _tensors(inputs)[0].device
        if targets.device != device:
            raise InputError(
                f"Targets on {targets.device} with inputs on {device}",
                expected="both on one device",
                remedy=f"Move the targets: targets.to('{device}').",
            )
        if index is not None and (not isinstance(index, Tensor) or index.shape != (size,)):
            given = f"of shape {tuple(index.shape)}" if isinstance(index, Tensor) else f"of type {type(index).__name__}"
            raise InputError(
                f"An index {given} for {size} examples",
                expected=f"a tensor of shape ({size},)",
                remedy="Pass the index of the same batch, one number for each example.",
            )
        return cls(inputs, targets, None if index is None else whole_index(index), size)

    def take(self, rows: slice | Tensor) -> Batch:
        """Return the examples at these rows."""
        # An index may be on the CPU while the rows were chosen on an accelerator.
        index = None if self.index is None else self.index[rows.to(self.index.device) if isinstance(rows, Tensor) else rows]
        targets = self.targets[rows]
        inherit_label_range(targets, self.targets)
        return Batch(take(self.inputs, rows), targets, index, targets.shape[0])

    def chunks(self, size: int | None) -> Iterator[tuple[slice, Batch]]:
        """Yield consecutive chunks of at most `size` examples, all of them when `size` is None."""
        if size is None or size >= self.size:
            yield slice(0, self.size), self
            return
        remember_label_range(self.targets)  # once for all parts
        for start in range(0, self.size, size):
            rows = slice(start, min(start + size, self.size))
            yield rows, self.take(rows)


def whole_index(index: Shaped[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return an index of any integer type as int64: a tensor of uint8 or bool would select rows as a mask does."""
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise InputError(
            f"An index of dtype {index.dtype}",
            expected="whole numbers, the stable place of each example in its data set",
            remedy="Pass the data set's own numbering, as NoisyDataset.batches() returns it, converted with index.long().",
        )
    return index.long()


ChunkSize = int | Literal["auto"] | None
"""Examples computed at once: a number, "auto" (by a memory budget), or None for the whole batch."""


def check_chunk_size(chunk_size: Any) -> ChunkSize:
    """Refuse a chunk size that is neither a positive whole number nor "auto" nor None."""
    if chunk_size is None or (isinstance(chunk_size, str) and chunk_size == "auto"):
        return chunk_size
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise InputError(
            f"chunk_size={chunk_size!r}",
            expected="a positive number of examples, 'auto', or None for the whole batch",
            remedy="Type chunk_size='auto' for as many examples as memory_budget holds.",
        )
    return chunk_size


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient, by name, each once also where it is tied."""
    if torch.is_inference_mode_enabled():
        raise InputError(
            "A call inside torch.inference_mode()",
            expected="gradients, which nothing that is made there can have",
            remedy="Leave inference_mode for this call; torch.no_grad() around it does no harm.",
        )
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    lazy = next((name for name, parameter in parameters.items() if isinstance(parameter, UninitializedParameter)), None)
    if lazy is not None:
        raise InputError(
            f"The parameter {lazy!r} of a lazy layer, which has no shape yet",
            expected="parameters with values",
            remedy="Run the model once on a batch before it is trained: model(inputs).",
        )
    if not parameters:
        raise InputError(
            f"A model without trainable parameters ({type(model).__name__})",
            expected="at least one parameter with requires_grad=True",
            remedy="Unfreeze what is to be trained: model.requires_grad_(True).",
        )
    return parameters


def sparse_gradient(name: str) -> InputError:
    """Build the error for a parameter whose gradient is sparse."""
    return InputError(
        f"A sparse gradient of {name!r}",
        expected="dense gradients: a perturbation has an entry for every weight",
        remedy="Build the embedding with sparse=False.",
    )


def devices_of(model: nn.Module) -> list[torch.device]:
    """Return the accelerator devices that hold the model's tensors, in a stable order."""
    if not torch.cuda.is_initialized():  # asked for at every step: no tensor can be there yet
        return []
    found = {tensor.device for tensor in [*model.parameters(), *model.buffers()] if tensor.device.type == "cuda"}
    return sorted(found, key=str)
