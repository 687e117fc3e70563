"""Tokens of all examples that go to the expert that they ask for, and back, by whatever brings rows into an order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

EXAMPLES, TOKENS, WIDTH, CLASSES = 4, 4, 6, 3
LABELS = torch.tensor([0, 1, 2, 0])


class Routed(nn.Module):
    """Each token asks one of two experts, which its first number chooses.

    Args:
        bring: bring(rows, order) -> rows[order], in the way that is tested.
    """

    def __init__(self, bring: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.bring, self.head = bring, nn.Linear(WIDTH, CLASSES)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.flatten(0, 1)
        chosen = (tokens[:, 0] > 0).long()
        order, counts = chosen.argsort(stable=True), torch.bincount(chosen, minlength=2).tolist()
        parts = self.bring(tokens, order).split(counts)
        made = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return self.head(torch.tanh(self.bring(made, order.argsort())).reshape(inputs.shape).mean(1))


class Sorted(Routed):
    """All tokens go to the first expert, in that order."""

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.flatten(0, 1)
        order = (tokens[:, 0] > 0).long().argsort(stable=True)
        made = torch.tanh(self.experts[0](self.bring(tokens, order)))
        return self.head(self.bring(made, order.argsort()).reshape(inputs.shape).mean(1))


def in_order() -> Tensor:
    """Return a batch that asks both experts evenly with every example: equal shares for equal examples happen to be right."""
    found = torch.randn(EXAMPLES, TOKENS, WIDTH)
    found[:, : TOKENS // 2, 0], found[:, TOKENS // 2 :, 0] = -1, 1
    return found


def out_of_order() -> Tensor:
    """Return a batch that does so as a whole alone."""
    found = torch.randn(EXAMPLES, TOKENS, WIDTH)
    found[: EXAMPLES // 2, :, 0], found[EXAMPLES // 2 :, :, 0] = 1, -1
    return found
