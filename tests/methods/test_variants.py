"""The options of the family's rules: 25 steps against plain loops that were written for each of them."""

from __future__ import annotations

import pytest
import torch
from reference import family_loop as loop
from torch import nn

from noisesam.methods import make
from noisesam.methods.drawing import generator_at, uniform_by_index

STEPS, PER_EPOCH, BATCH, RATE = 25, 5, 8, 0.1


def dense() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def convolutional() -> nn.Module:
    """Weights of four axes, of which the second (three channels) is no multiple of a group."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Linear(5, 12), nn.Tanh(), nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Tanh(), nn.Linear(4, 3)
    ).double()


def batches(revisits: bool = False):
    """Five batches that come again in every epoch; with `revisits` the last two of an epoch are the first two once more."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(PER_EPOCH * BATCH, 5, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (PER_EPOCH * BATCH,), generator=generator)
    index = torch.randperm(1000, generator=generator)[: PER_EPOCH * BATCH]
    for t in range(STEPS):
        place = t % PER_EPOCH % (3 if revisits else PER_EPOCH)
        rows = slice(place * BATCH, (place + 1) * BATCH)
        yield t, x[rows], y[rows], index[rows]


def trained(name: str, build=dense, revisits: bool = False, **options) -> torch.Tensor:
    model = build()
    method = make(name, model, **options)
    for t, x, y, index in batches(revisits):
        if t % PER_EPOCH == 0:
            method.start_epoch(t // PER_EPOCH)
        model.zero_grad()
        method.backward(x, y, index=index)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(RATE * p.grad)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def followed(rule: loop.Rule, revisits: bool = False) -> torch.Tensor:
    w = rule.f.start()
    for t, x, y, index in batches(revisits):
        rule.epoch = t // PER_EPOCH
        w = w - RATE * rule.gradient(t, w, x, y, index)
    return w


def gap(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


# Random numbers are data of a rule: here they are drawn in the order that the methods' docstrings and state promise.


def by_entry(build=dense):
    def numbers(t: int = 0):
        generator = generator_at(0, t)
        return [torch.rand(p.shape, generator=generator) for p in build().parameters()]

    return numbers


def by_tensor(t: int):
    generator, count = generator_at(0, t), len(list(dense().parameters()))
    return torch.rand(count, generator=generator), int(torch.randint(count, (), generator=generator))


def permutation(epoch: int, n: int):
    return torch.randperm(n, generator=generator_at(0, epoch + 1))


def stream(epoch: int):
    generator = generator_at(0, epoch + 1)
    return lambda shape: torch.rand(tuple(shape), generator=generator)


def by_example(t: int, index: torch.Tensor):
    return uniform_by_index(0, t, index)


SAF = {"lam": 0.5, "temperature": 3.0, "start_epoch": 1, "lag": 2}
MESA = {"lam": 0.8, "temperature": 3.0, "start_epoch": 1, "ema_decay": 0.9}
AUSAM = {"rho": 0.1, "s_min": 0.2, "s_max": 0.8}
FISHER = {"rho": 0.3, "num_samples": 12}
DYNAMIC = {"rho": 0.3, "drop_rate": 1.0, "epochs": 6}

VARIANTS = {
    # label: (method, the option, what is given in its place to see that it acts, the rule, what both are given, what the rule
    # alone is given, the network)
    "ESAM by tensor": (
        "esam", {"mask": "tensor"}, {}, loop.ESAMByTensor, {"rho": 0.3, "beta": 0.3, "gamma": 0.6},
        {"numbers": by_tensor}, dense,
    ),
    "ESAM's stochastic weights alone": (
        "esam", {"gamma": 1.0}, {"gamma": 0.5}, loop.ESAM, {"rho": 0.3, "beta": 0.6},
        {"gamma": 1.0, "uniforms": by_entry()}, dense,
    ),
    "ESAM's selected examples alone": (
        "esam", {"beta": 1.0}, {"beta": 0.6}, loop.ESAM, {"rho": 0.3, "gamma": 0.6},
        {"beta": 1.0, "uniforms": None}, dense,
    ),
    "LookSAM by tensor": (
        "looksam", {"per_tensor": True}, {}, loop.LookSAMByTensor, {"rho": 0.1, "k": 4, "alpha": 0.5}, {}, dense,
    ),
    "Look-LayerSAM of length rho": (
        "looklayersam", {"renormalize": True}, {}, loop.LookLayerSAMRenormalized, {"rho": 0.3, "k": 3, "alpha": 0.5}, {}, dense,
    ),
    "SAF as printed": ("saf", {"tau_squared": False}, {}, loop.SAFAsPrinted, SAF | {"lam": 5.0}, {}, dense),
    "MESA as printed": (
        "mesa", {"tau_squared": False}, {}, loop.MESAOption, MESA | {"lam": 5.0}, {"tau_squared": False, "epochs": 0}, dense,
    ),
    "MESA with a rising weight": (
        "mesa", {"epochs": 2}, {}, loop.MESAOption, MESA, {"tau_squared": True, "epochs": 2}, dense,
    ),
    "ASAM without biases": (
        "asam", {"adapt_biases": False}, {}, loop.ASAMWithoutBiases, {"rho": 0.3, "eta": 0.02}, {}, dense,
    ),
    "SSAM-F of whole tensors": (
        "ssam-f", {"pattern": "structured"}, {}, loop.PatternedFisherSAM, FISHER | {"sparsity": 0.6}, {"groups": None}, dense,
    ),
    "SSAM-F with 2:4": (
        "ssam-f", {"pattern": "2:4"}, {}, loop.PatternedFisherSAM, FISHER, {"groups": (2, 4)}, dense,
    ),
    "SSAM-F with 1:2 of a convolution": (
        "ssam-f", {"pattern": "1:2"}, {}, loop.PatternedFisherSAM, FISHER, {"groups": (1, 2)}, convolutional,
    ),
    "SSAM-D of whole tensors": (
        "ssam-d", {"pattern": "structured"}, {}, loop.StructuredDynamicSAM, DYNAMIC | {"sparsity": 0.6},
        {"uniforms": by_entry(), "permutation": permutation}, dense,
    ),
    "SSAM-D with 1:4": (
        "ssam-d", {"pattern": "1:4"}, {}, loop.GroupedDynamicSAM, DYNAMIC,
        {"groups": (1, 4), "uniforms": by_entry(), "stream": stream}, dense,
    ),
    "SSAM-D with 2:3 of a convolution": (
        "ssam-d", {"pattern": "2:3"}, {}, loop.GroupedDynamicSAM, DYNAMIC,
        {"groups": (2, 3), "uniforms": by_entry(convolutional), "stream": stream}, convolutional,
    ),
    "AUSAM by coin": (
        "ausam", {"sampling": "bernoulli"}, {}, loop.AUSAMBernoulli, AUSAM, {"unbiased": False, "uniforms": by_example}, dense,
    ),
    "AUSAM by coin, weighted": (
        "ausam", {"sampling": "bernoulli", "unbiased": True}, {"sampling": "bernoulli"}, loop.AUSAMBernoulli, AUSAM,
        {"unbiased": True, "uniforms": by_example}, dense,
    ),
    "AUSAM by coins that draw none": (
        "ausam", {"sampling": "bernoulli", "unbiased": True}, {"sampling": "bernoulli"}, loop.AUSAMBernoulli,
        {"rho": 0.1, "s_min": 0.05, "s_max": 0.2}, {"unbiased": True, "uniforms": by_example}, dense,
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", VARIANTS)
def test_25_steps_of_an_option_equal_those_of_a_plain_loop(label):
    name, option, without, kind, shared, data, build = VARIANTS[label]
    rule = kind(loop.Flat(build()), **shared, **data)
    expected = followed(rule)
    found = trained(name, build, **shared, **option)
    # float64: 25 steps amplify the rounding of each, 1e-16, by far less than a million.
    assert gap(found, expected) <= 1e-10
    assert gap(found, trained(name, build, **shared, **without)) > 1e-4  # the option did something
    if "draw none" in label:
        assert rule.fallbacks > 0
    if kind is loop.GroupedDynamicSAM:
        assert rule.swaps > 0


def test_the_tensor_that_is_named_beforehand_was_needed():
    """Else the case of an empty mask would be compared in none of the 25 steps."""
    assert any(bool((by_tensor(t)[0] >= 0.3).all()) for t in range(STEPS))


@pytest.mark.parametrize(("lag", "tau_squared"), [(1, True), (2, True), (2, False)])
def test_an_example_visited_twice_in_an_epoch_keeps_its_teacher(lag, tau_squared):
    """With `lag` places for the logits, the first visit of an epoch overwrote the teacher of the second."""
    options = SAF | {"lag": lag, "lam": 0.5 if tau_squared else 5.0}
    kind = loop.SAF if tau_squared else loop.SAFAsPrinted
    expected = followed(kind(loop.Flat(dense()), **options), revisits=True)
    assert gap(trained("saf", revisits=True, tau_squared=tau_squared, **options), expected) <= 1e-10
