"""Norms of many numbers that keep float32's digits."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**12
"""Numbers whose squares are added up at once."""


def row_norms(rows: Float[Tensor, "n numbers"]) -> Float[Tensor, " n"]:
    """Return the l2 norm of every row.

    On a CPU torch adds the squares of a row up one after the other: in float32 that costs a row of three million numbers three
    of its seven digits. Here the norms of blocks are taken, and the norm of these.

    Example:
        >>> rows = torch.ones(1, 2**22) + 0.1
        >>> wanted = rows.double().norm()
        >>> abs(float(torch.linalg.vector_norm(rows, dim=1) / wanted - 1)) > 1e-5 > abs(float(row_norms(rows) / wanted - 1))
        True
    """
    length = rows.shape[1]
    whole = length // BLOCK * BLOCK
    if rows.device.type != "cpu" or whole <= BLOCK:  # a GPU adds up in a tree
        return torch.linalg.vector_norm(rows, dim=1)
    norms = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, BLOCK)), dim=2)
    if whole < length:
        norms = torch.cat([norms, torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True)], 1)
    return row_norms(norms)


def norm_of(values: Tensor) -> Float[Tensor, ""]:
    """Return the l2 norm of all entries of a tensor."""
    # In memory order, whatever order the axes are in: a norm does not mind, and nothing is written out anew.
    order = sorted(range(values.dim()), key=lambda axis: -values.stride(axis))
    return row_norms(values.permute(order).reshape(1, -1))[0]
