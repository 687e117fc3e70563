"""What is computed in parts of a batch, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def add_part(total: dict[str, Tensor], part: Mapping[str, Tensor]) -> None:
    """Add the tensors of a further part of a batch to those of the parts before, name by name.

    Nothing is added in place: autograd may hand out tensors that others hold too.
    """
    both = [name for name in part if name in total]
    if both:
        sums = torch._foreach_add([total[name] for name in both], [part[name] for name in both])  # pyright: ignore[reportPrivateImportUsage]
        total.update(zip(both, sums, strict=True))
    total.update({name: value for name, value in part.items() if name not in total})


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of all parts; of one part, its own."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
