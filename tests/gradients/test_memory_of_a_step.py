"""What a step keeps alive: nothing after it was counted, one graph while it is proven, no weights that have served."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from reference.loop import relative_error
from torch import nn

from noisesam.bench.profiling import REVERSE, _Allocations
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for, products
from noisesam.gradients.engine.fast import FastEngine
from noisesam.gradients.engine.proof import prove
from noisesam.gradients.engine.rules.linear import product_factors
from noisesam.gradients.factors import Dense, OuterProducts
from noisesam.gradients.memory import bytes_of_an_example
from noisesam.gradients.per_example_gradient import PerExampleGradient

ONE_SAM = {"rho": 0.1, "jacobian_at": "perturbed", "residual_at": "perturbed"}
WIDTH, TOKENS, EXAMPLES = 64, 22, 9
EACH = EXAMPLES * WIDTH * WIDTH * 4
"""Bytes of all examples' weights of one layer."""


class Layers(nn.Module):
    """Linear maps whose gradients per example are multiplied out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.mean(1)


def test_counting_an_examples_memory_leaves_nothing_behind():
    outputs = []
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.Sigmoid(), nn.Softmax(1))
    for layer in model:
        layer.register_forward_hook(lambda *found: outputs.append(weakref.ref(found[2])))
    bytes_of_an_example(model, torch.randn(1, 5))
    gc.collect()
    assert len(outputs) >= 5
    assert [one for one in outputs if one() is not None] == []


def test_the_proof_holds_no_more_at_once_than_the_step_that_follows():
    layers = [part for channels in (3, 16, 16) for part in (nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    x, y = torch.randn(32, 3, 16, 16), torch.arange(32) % 4
    one_sam(model, x, y)  # proven before: what is counted below is either
    peaks = []
    for step in (lambda: prove(FastEngine(model, dict(model.named_parameters())), x), lambda: one_sam(model, x, y)):
        with _Allocations() as seen:
            step()
        peaks.append(sum(seen.at_peak.values()))
    # Two graphs would be half as much again; some examples' weights and gradients are compared beside the one.
    assert peaks[0] <= 1.1 * peaks[1]


def test_a_pass_without_gradients_holds_two_layers_at_once_as_the_plain_model_does():
    model = nn.Sequential(*[part for _ in range(6) for part in (nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU())])
    x, peaks = torch.randn(32, 8, 16, 16), []
    for evaluate in (lambda: FastEngine(model, dict(model.named_parameters())).at(x), lambda: model(x)):
        with torch.no_grad(), _Allocations() as seen:
            evaluate()
        peaks.append(sum(seen.at_peak.values()))
    assert peaks[0] <= 1.1 * peaks[1]  # the kernels' other memory order is beside


@pytest.mark.parametrize("points", [("perturbed", "perturbed"), ("perturbed", "w"), ("w", "perturbed")])
def test_of_a_gradient_only_the_perturbation_is_left_when_the_perturbed_pass_starts(points):
    model = nn.Sequential(nn.Embedding(7, 6), nn.LayerNorm(6), nn.Flatten(), nn.Linear(30, 4))
    tokens, y = torch.randint(0, 7, (EXAMPLES, 5)), torch.arange(EXAMPLES) % 4
    options = {"rho": 0.1, "jacobian_at": points[0], "residual_at": points[1]}
    mixed_point_gradient(model, tokens, y, **options)  # proven before
    alive: list[int] = []

    def count(*_: object) -> None:
        alive.append(sum(type(one) is PerExampleGradient for one in gc.get_objects()))

    gc.collect()
    model.register_forward_pre_hook(count)
    mixed_point_gradient(model, tokens, y, **options)
    assert alive == [alive[0]] * 2


def one_sam(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    return mixed_point_gradient(model, x, y, **ONE_SAM)


def test_weights_of_the_examples_are_gone_once_the_reverse_pass_is_through_their_layer():
    model, x, y = Layers(), torch.randn(EXAMPLES, TOKENS, WIDTH), torch.arange(EXAMPLES)
    one_sam(model, x, y)  # proven before
    alive: list[int] = []

    def watch(_: nn.Module, __: object, output: torch.Tensor) -> None:
        output.register_hook(lambda _: alive.append(seen.now["aten.bmm", REVERSE]))

    for layer in model.layers:
        layer.register_forward_hook(watch)
    with _Allocations() as seen:
        one_sam(model, x, y)
    assert len(alive) == 8
    last, *_, first = alive[4:]  # of the pass at w + eps_i
    assert last >= 3 * EACH  # the first layer is a map of the data
    assert first < EACH


@pytest.mark.parametrize(
    ("tokens", "sizes", "forms", "elsewhere"),
    [
        (1, (3, 2), "fff", "fff"),  # one position is an outer product
        (6, (12, 12), "ppp", "ppp"),  # as large as its factors
        (9, (24, 24), "fpp", "fpp"),  # four thirds
        (8, (24, 24), "ffp", "ffp"),  # three halves
        (6, (20, 20), "ffp", "fff"),  # five thirds
        (5, (20, 20), "fff", "fff"),
    ],
)
@pytest.mark.parametrize("at_home", [True, False], ids=["where MKL is at home", "elsewhere"])
def test_a_product_is_formed_while_it_is_not_much_larger_than_its_factors(
    tokens, sizes, forms, elsewhere, at_home, monkeypatch
):
    monkeypatch.setattr(products, "mkl_is_at_home", lambda: at_home)
    forms = forms if at_home else elsewhere
    left, right = torch.randn(2, tokens, sizes[0]), torch.randn(2, tokens, sizes[1])
    found = [product_factors(left, right, later_uses=uses) for uses in (0, 1, 2)]
    assert [type(one) for one in found] == [OuterProducts if form == "f" else Dense for form in forms]
    assert all(relative_error({"": one.dense()}, {"": found[0].dense()}) <= 1e-5 for one in found)


def test_a_map_of_the_data_keeps_factors_for_the_passes_that_follow_and_the_product_where_it_is_summed():
    model, x = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24)), torch.randn(3, 8, 24)  # half again
    point = engine_for(model, x).at(x)
    alone = point.per_example_gradient(torch.ones(3, 8, 24), keep=True).factors
    assert [type(alone[name]) for name in ("0.weight", "2.weight")] == [OuterProducts, Dense]
    _, beside = point.both_gradients(torch.ones(3, 8, 24))
    assert [type(beside.factors[name]) for name in ("0.weight", "2.weight")] == [Dense, Dense]
