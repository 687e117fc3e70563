"""Every method on a device that is not the CPU, by way of a stand-in: nothing is left on the CPU, the numbers are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference.method_settings import VARIANTS
from reference.stand_in import StandIn, hand_back, lend, on_stand_in
from torch import Tensor, nn

import noisesam

# The engine sums in another order there, and six steps carry it on; methods of batch gradients give the same bits.
TOLERANCE = 1e-12


def six_steps(
    model: nn.Module, name: str, options: dict[str, Any], inputs: Tensor, targets: Tensor, index: Tensor
) -> list[Tensor]:
    """Return the weights after three epochs of two batches, with the state of the method stored and loaded half-way."""
    method = noisesam.methods.make(name, model, **options)
    for step in range(6):
        if step % 2 == 0:
            method.start_epoch(step // 2)
        if step == 3:
            state, method = method.state_dict(), noisesam.methods.make(name, model, **options)
            method.start_epoch(step // 2)
            method.load_state_dict(state)
        rows = slice(0, 6) if step % 2 == 0 else slice(6, 12)
        model.zero_grad()
        method.backward(inputs[rows], targets[rows], index=index[rows])
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.5)
    return [parameter.detach().clone() for parameter in model.parameters()]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(1, 8), nn.ReLU(), nn.Flatten())
    return nn.Sequential(layers, nn.Linear(128, 8), nn.Tanh(), nn.Linear(8, 4)).double()


@pytest.mark.parametrize("index_there", [True, False])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(VARIANTS)])
def test_every_method_takes_the_same_steps_there(name, options, index_there):
    torch.manual_seed(1)
    inputs, targets, index = torch.randn(12, 2, 4, 4, dtype=torch.double), torch.arange(12) % 4, torch.arange(12)
    wanted = six_steps(network(), name, options, inputs, targets, index)
    model = network()
    with on_stand_in(model):
        found = six_steps(model, name, options, lend(inputs), lend(targets), lend(index) if index_there else index)
    assert all(isinstance(weights, StandIn) for weights in found)
    for there, here in zip(found, wanted, strict=True):
        assert float((hand_back(there) - here).norm()) <= TOLERANCE * float(here.norm())
