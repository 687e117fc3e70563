"""What is handed to a stack: rows of methods and their data sets, checked and laid out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from noisesam.data.dataset import NoisyDataset
from noisesam.errors import InputError
from noisesam.methods.base import Method
from noisesam.training.stacked_methods import Rule, read_rule
from noisesam.training.stacked_terms import Examples


def rules_of(methods: list[list[Method]], data: list[NoisyDataset]) -> list[Rule]:
    """Return the rule of every column."""
    if not methods or not methods[0] or any(len(row) != len(methods[0]) for row in methods):
        raise InputError(
            f"Rows of {[len(row) for row in methods]} methods",
            expected="at least one row, all of the same length of at least 1",
            remedy="Hand in one row per data set, with the same kinds of methods in every row.",
        )
    if len(methods) != len(data):
        raise InputError(
            f"{len(methods)} rows of methods for {len(data)} data sets",
            expected="one data set per row",
            remedy="To train on one data set alone, pass one row and a list of one data set.",
        )
    rules = [[read_rule(method) for method in row] for row in methods]
    for group, row in enumerate(rules):
        for column, (rule, first) in enumerate(zip(row, rules[0], strict=True)):
            if rule != first:
                raise InputError(
                    f"Column {column} holds {methods[0][column].name!r} in row 0 and {methods[group][column].name!r} in row "
                    f"{group}, or the same with other options",
                    expected="one kind of method per column; rho may differ",
                    remedy="Put the methods of every row into the same order.",
                )
    return rules[0]


def slices_of(rules: Sequence[Rule]) -> list[tuple[Rule, slice]]:
    """Return every rule with its consecutive members."""
    found, start = [], 0
    for rule, members in groupby(rules):
        stop = start + len(list(members))
        found.append((rule, slice(start, stop)))
        start = stop
    return found


def stack_examples(data: Sequence[NoisyDataset], like: Tensor, *, flattens: bool) -> Examples:
    """Stack the examples of the groups as vectors."""
    features = like.shape[-1]
    for number, dataset in enumerate(data):
        inputs = dataset.inputs
        vectors = inputs.flatten(1) if flattens else inputs
        if vectors.shape != (len(data[0]), features) or dataset.labels.shape != data[0].labels.shape:
            raise InputError(
                f"Data set {number} with inputs of shape {tuple(inputs.shape)}",
                expected=f"{len(data[0])} examples, as in data set 0, of {features} numbers each, as the first layer takes",
                remedy="Take subsets of equal size, or train each size as a stack of its own.",
            )
        if inputs.dtype != like.dtype or inputs.device != like.device:
            raise InputError(
                f"Data set {number} in {str(inputs.dtype).removeprefix('torch.')} on {inputs.device}",
                expected=f"{str(like.dtype).removeprefix('torch.')} on {like.device}, as the models",
                remedy="Convert it with dataset.to(device, dtype).",
            )
    inputs = torch.stack([dataset.inputs.flatten(1) for dataset in data])
    return Examples(inputs, _squares(inputs), torch.stack([dataset.labels for dataset in data]))


def _squares(inputs: Float[Tensor, "groups n features"]) -> Float[Tensor, "groups 1 n 1"]:
    return torch.linalg.vector_norm(inputs, dim=2).square()[:, None, :, None]


def take_rows(examples: Examples, rows: Sequence[np.ndarray]) -> Examples:
    """Return some rows of every group's examples."""
    device = examples.inputs.device
    index = [torch.as_tensor(each, device=device) for each in rows]
    return Examples(
        torch.stack([examples.inputs[group, each] for group, each in enumerate(index)]),
        torch.stack([examples.squares[group][:, each] for group, each in enumerate(index)]),
        torch.stack([examples.targets[group, each] for group, each in enumerate(index)]),
    )
