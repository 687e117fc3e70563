"""Masks of stochastic depth and noise that forward draws stay on the fast engine, the same ones at w and at w + eps_i."""

from __future__ import annotations

import pytest
import torch
from reference.loop import example_terms, mean_term, relative_error
from torch import Tensor, nn

from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for

EXAMPLES, TOKENS, WIDTH, CLASSES, KEEP = 5, 4, 6, 3, 0.7
pytestmark = pytest.mark.usefixtures("double")

DRAWS = {
    "as timm draws": lambda z, shape: z.new_empty(shape).bernoulli_(KEEP).div_(KEEP),
    "as torchvision draws": lambda z, shape: torch.empty(shape, dtype=z.dtype).bernoulli_(KEEP) / KEEP,
    "as transformers draws": lambda z, shape: (KEEP + torch.rand(shape, dtype=z.dtype)).floor_() / KEEP,
    "by a comparison": lambda z, shape: (torch.rand(shape) < KEEP).double(),
    "noise on every activation": lambda z, shape: 1 + 0.1 * torch.randn_like(z),
    "noise of a range": lambda z, shape: torch.empty_like(z).uniform_(0.5, 1.5),
}


class Block(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.normalisation, self.inner, self.outer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.draw, self.given, self.drawn = draw, None, None

    def forward(self, x):
        branch = self.outer(torch.tanh(self.inner(self.normalisation(x))))
        mask = self.draw(branch, (len(x), 1, 1)) if self.given is None else self.given
        self.drawn = mask
        return x + branch * mask


class Deep(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.blocks, self.head = nn.Sequential(*(Block(draw) for _ in range(3))), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(x).mean(1))


def expected(model: Deep, inputs: Tensor, labels: Tensor, masks: list[Tensor]) -> dict[str, Tensor]:
    """Return 1-SAM's gradient by the loop, every example with its row of the masks."""
    rows = []
    for row in range(len(inputs)):
        for block, mask in zip(model.blocks, masks, strict=True):
            block.given = mask[row : row + 1]
        rows += example_terms(model, inputs[row : row + 1], labels[row : row + 1], 0.3)
    for block in model.blocks:
        block.given = None
    return mean_term(rows, "1-sam")


@pytest.mark.parametrize("way", DRAWS)
def test_every_example_has_the_mask_that_the_batch_has_drawn_for_it_in_both_passes(way):
    torch.manual_seed(0)
    model, labels = Deep(DRAWS[way]), torch.arange(EXAMPLES) % CLASSES
    for _ in range(3):
        inputs = torch.randn(EXAMPLES, TOKENS, WIDTH)
        engine = engine_for(model, inputs)
        engine.at(inputs)
        assert engine.name == "fast"
        state = torch.get_rng_state()
        found = mixed_point_gradient(model, inputs, labels, rho=0.3, jacobian_at="perturbed", residual_at="perturbed")
        torch.set_rng_state(state)
        model(inputs)
        assert relative_error(found, expected(model, inputs, labels, [block.drawn for block in model.blocks])) < 1e-12


def test_examples_that_are_mixed_with_a_probability_are_refused():
    class Mixed(Deep):
        def forward(self, x):
            return super().forward(torch.where(torch.rand(len(x), 1, 1) < 0.3, x.flip(0), x))

    torch.manual_seed(0)
    with pytest.raises(InputError, match="mixes the examples"):
        engine_for(Mixed(DRAWS["as timm draws"]), torch.randn(32, TOKENS, WIDTH))


def test_draws_of_the_models_own_generator_are_heard():
    class Own(Deep):
        def __init__(self, draw):
            super().__init__(draw)
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x):
            return super().forward(x + torch.randn(x.shape, generator=self.generator))

    torch.manual_seed(0)
    with pytest.raises(InputError, match=r"draws|repeated"):
        engine_for(Own(DRAWS["as timm draws"]), torch.randn(EXAMPLES, TOKENS, WIDTH))
