"""The family's rules: 25 steps against plain loops, the identities between members, and agreement with other libraries."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from reference import family_loop as loop
from torch import nn

from noisesam.methods import make
from noisesam.methods.drawing import generator_at, uniform_by_index

STEPS, PER_EPOCH, BATCH, RATE = 25, 5, 8, 0.1


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def batches(size: int = BATCH):
    """Five batches that come again in every epoch, with the examples' indices."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(PER_EPOCH * size, 5, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (PER_EPOCH * size,), generator=generator)
    index = torch.randperm(1000, generator=generator)[: PER_EPOCH * size]
    for t in range(STEPS):
        rows = slice((t % PER_EPOCH) * size, (t % PER_EPOCH + 1) * size)
        yield t, x[rows], y[rows], index[rows]


def trained(name: str, steps: int = STEPS, size: int = BATCH, **options) -> torch.Tensor:
    model = network()
    method = make(name, model, **options)
    for t, x, y, index in batches(size):
        if t >= steps:
            break
        if t % PER_EPOCH == 0:
            method.start_epoch(t // PER_EPOCH)
        model.zero_grad()
        method.backward(x, y, index=index)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(RATE * p.grad)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def drawn(kind):
    """Random tensors of the parameters' shapes, as the method draws them."""

    def numbers(t, seed=0):
        generator = generator_at(seed, t)
        dtype = torch.float64 if kind is torch.randn else torch.float32
        return [kind(p.shape, dtype=dtype, generator=generator) for p in network().parameters()]

    return numbers


CASES = {
    "asam": (loop.ASAM, {"rho": 0.3, "eta": 0.02}, {}),
    "gsam": (loop.GSAM, {"rho": 0.1, "alpha": 0.4}, {}),
    "gnp": (loop.GNP, {"rho": 0.1, "alpha": 0.7}, {}),
    "saner": (loop.SANER, {"rho": 0.1, "alpha": 0.3}, {}),
    "vasso": (loop.VaSSO, {"rho": 0.1, "theta": 0.3}, {}),
    "f-sam": (loop.FSAM, {"rho": 0.1, "sigma": 0.8, "ema_decay": 0.7}, {}),
    "random-sam": (loop.RandomSAM, {"rho": 0.1}, {"normals": drawn(torch.randn)}),
    "looksam": (loop.LookSAM, {"rho": 0.1, "k": 4, "alpha": 0.5}, {}),
    "looklayersam": (loop.LookLayerSAM, {"rho": 0.1, "k": 3, "alpha": 0.5}, {}),
    "esam": (loop.ESAM, {"rho": 0.1, "beta": 0.6, "gamma": 0.6}, {"uniforms": drawn(torch.rand)}),
    "saf": (loop.SAF, {"lam": 0.5, "temperature": 3.0, "start_epoch": 1, "lag": 2}, {}),
    "mesa": (loop.MESA, {"lam": 0.8, "temperature": 3.0, "start_epoch": 1, "ema_decay": 0.9}, {}),
    "ausam": (
        loop.AUSAM,
        {"rho": 0.1, "fraction": 0.5, "s_min": 0.2, "s_max": 0.9},
        {"uniforms": lambda t, index: uniform_by_index(0, t, index)},
    ),
    "ssam-f": (loop.FisherSAM, {"rho": 0.1, "sparsity": 0.6, "num_samples": 12}, {}),
    "ssam-d": (
        loop.DynamicSAM,
        {"rho": 0.1, "sparsity": 0.6, "drop_rate": 0.4, "epochs": 6},
        {
            "uniforms": lambda: drawn(torch.rand)(0),
            "permutation": lambda epoch, n: torch.randperm(n, generator=generator_at(0, epoch + 1)),
        },
    ),
}


def followed(rule: loop.Rule) -> torch.Tensor:
    w = rule.f.start()
    for t, x, y, index in batches():
        rule.epoch = t // PER_EPOCH
        w = w - RATE * rule.gradient(t, w, x, y, index)
    return w


@pytest.mark.parametrize("name", CASES)
def test_25_steps_equal_those_of_a_plain_loop(name):
    kind, options, draws = CASES[name]
    expected = followed(kind(loop.Flat(network()), **options, **draws))
    found = trained(name, **options)
    # float64: 25 steps amplify the rounding of each, 1e-16, by far less than a million.
    assert float((found - expected).norm() / expected.norm()) <= 1e-10
    plain = trained("sgd")
    assert float((found - plain).norm() / plain.norm()) > 1e-4  # the rule did something


def test_friendly_sam_in_the_order_of_its_authors_code_equals_a_plain_loop():
    options = {"rho": 0.1, "sigma": 1.0, "ema_decay": 0.9}
    expected = followed(loop.FSAMAsReleased(loop.Flat(network()), **options))
    found = trained("f-sam", order="before", start="gradient", **options)
    assert float((found - expected).norm() / expected.norm()) <= 1e-10


IDENTITIES = [
    ("m-sam", {"rho": 0.1, "examples_per_shard": BATCH}, "sam", {"rho": 0.1}),
    ("m-sam", {"rho": 0.1, "examples_per_shard": 1}, "1-sam", {"rho": 0.1}),
    ("esam", {"rho": 0.1, "beta": 1.0, "gamma": 1.0}, "sam", {"rho": 0.1}),
    ("esam", {"rho": 0.1, "beta": 1.0, "gamma": 1.0, "mask": "tensor"}, "sam", {"rho": 0.1}),
    ("looksam", {"rho": 0.1, "k": 1}, "sam", {"rho": 0.1}),
    ("ssam-f", {"rho": 0.1, "sparsity": 0.0}, "sam", {"rho": 0.1}),
    ("ssam-d", {"rho": 0.1, "sparsity": 0.0}, "sam", {"rho": 0.1}),
    ("ssam-d", {"rho": 0.1, "pattern": "4:4"}, "sam", {"rho": 0.1}),
    ("f-sam", {"rho": 0.1, "sigma": 0.0}, "sam", {"rho": 0.1}),
    ("saf", {"lam": 0.0, "start_epoch": 0, "lag": 1}, "sgd", {}),
    ("mesa", {"lam": 0.0, "start_epoch": 0}, "sgd", {}),
    ("ausam", {"rho": 0.1, "fraction": 1.0}, "sam", {"rho": 0.1}),
    ("gnp", {"rho": 0.1, "alpha": 1.0}, "sam", {"rho": 0.1}),
    ("gnp", {"rho": 0.1, "alpha": 0.0}, "sgd", {}),
    ("gsam", {"rho": 0.1, "alpha": 0.0}, "sam", {"rho": 0.1}),
    ("vasso", {"rho": 0.1, "theta": 1.0}, "sam", {"rho": 0.1}),
    ("saner", {"rho": 0.1, "alpha": 1.0}, "sam", {"rho": 0.1}),
    *((name, {"rho": 0.0}, "sgd", {}) for name in
      ("asam", "f-sam", "vasso", "gnp", "gsam", "random-sam", "ssam-f", "ssam-d", "m-sam", "1-sam", "j-sam", "l-sam")),
    ("saner", {"rho": 0.0, "alpha": 0.3}, "sgd", {}),  # equal sizes are not smaller
    ("esam", {"rho": 0.0, "gamma": 1.0}, "sgd", {}),
    ("ausam", {"rho": 0.0, "fraction": 1.0}, "sgd", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "other", "its"), IDENTITIES)
def test_members_meet_where_their_rules_meet(name, options, other, its):
    expected = trained(other, **its)
    found = trained(name, **options)
    # The same sums in another order, over 25 steps in float64.
    assert float((found - expected).norm() / expected.norm()) <= 1e-11


def test_sam_of_a_vanishing_radius_gives_sgd_to_first_order():
    sgd = trained("sgd")
    gaps = [float((trained("gsam", rho=rho) - sgd).norm()) for rho in (1e-4, 1e-5)]
    assert 8 < gaps[0] / gaps[1] < 12


def counts(name: str, steps: int, **options) -> list[tuple[int, int]]:
    model = network()
    method = make(name, model, **options)
    found = []
    for t, x, y, index in batches():
        if t == steps:
            break
        if t % PER_EPOCH == 0:
            method.start_epoch(t // PER_EPOCH)
        result = method.backward(x, y, index=index)
        found.append((result.forward_examples // BATCH, result.backward_examples // BATCH))
    return found


def test_the_savings_are_those_of_the_rules():
    assert counts("looksam", 7, k=5) == [(2, 2), (1, 1), (1, 1), (1, 1), (1, 1), (2, 2), (1, 1)]
    assert counts("saf", 25, start_epoch=1, lag=1) == [(1, 1)] * 25
    assert counts("mesa", 15, start_epoch=1) == [(1, 1)] * 10 + [(2, 1)] * 5
    assert counts("random-sam", 2) == [(1, 1)] * 2
    assert counts("ausam", 2, fraction=0.5) == [(1, 1)] * 2
    model, (_, x, y, _) = network(), next(batches())
    result = make("esam", model, gamma=0.5).backward(x, y)
    assert (result.forward_examples, result.backward_examples) == (20, 12)
    result = make("esam", model, gamma=1.0).backward(x, y)
    assert (result.forward_examples, result.backward_examples) == (16, 16)


def test_a_tensor_mask_leaves_gradients_uncomputed():
    model, (_, x, y, _) = network(), next(batches())
    made: list[int] = []
    for p in model.parameters():
        p.register_hook(lambda g: made.append(1) or None)
    make("esam", model, beta=0.3, mask="tensor", gamma=1.0).perturbation(x, y)
    assert 1 <= len(made) < len(list(model.parameters()))
    eps = make("esam", model, beta=1e-9, mask="tensor", rho=0.1).perturbation(x, y)
    assert len(eps) == 1  # one tensor is forced
    assert torch.cat([value.flatten() for value in eps.values()]).norm() > 0


def test_esams_element_mask_is_unbiased():
    model, (_, x, y, _) = network(), next(batches())
    plain = make("sam", model, rho=0.1).perturbation(x, y)
    method = make("esam", model, rho=0.1, beta=0.6)
    total = {name: torch.zeros_like(value) for name, value in plain.items()}
    draws = 4000
    for step in range(draws):
        method.steps = step
        for name, value in method.perturbation(x, y).items():
            total[name] += value / draws
    # The mean of 4,000 masks of probability .6 deviates by sqrt(.4/.6/4000) = .013 of each entry, here by at most five times.
    for name, value in plain.items():
        assert bool(((total[name] - value).abs() <= 0.065 * value.abs() + 1e-12).all())


def test_ausams_weights_make_the_step_unbiased():
    model, (_, x, y, index) = network(), next(batches())
    expected = make("sgd", model).step_gradient(x, y)
    method = make("ausam", model, rho=0.0, sampling="bernoulli", unbiased=True, s_min=0.4, s_max=0.9)
    for _ in range(3):
        method.backward(x, y, index=index)  # a history with different probabilities
    draws, total = 4000, {name: torch.zeros_like(value) for name, value in expected.items()}
    p = method.probabilities(index)
    assert float(p.max() - p.min()) == 0.5 or float(p.max()) == 0.9
    for step in range(draws):
        method.steps = step
        for name, value in method.step_gradient(x, y, index).items():
            total[name] += value / draws
    gap = sum(float((total[n] - v).square().sum()) for n, v in expected.items()) ** 0.5
    size = sum(float(v.square().sum()) for v in expected.values()) ** 0.5
    assert gap <= 0.08 * size  # noise of the mean: below sqrt((1/.4 - 1)/8/4000) times the terms' spread


@pytest.mark.parametrize("pattern", ["unstructured", "1:4", "2:4"])
@pytest.mark.parametrize("name", ["ssam-f", "ssam-d"])
def test_the_density_of_a_mask_stays_exactly_what_was_asked_for(name, pattern):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12, bias=False), nn.Tanh(), nn.Linear(12, 4, bias=False)).double()
    options = {"epochs": 6} if name == "ssam-d" else {"num_samples": 5}
    method = make(name, model, rho=0.1, pattern=pattern, **options)
    x, y = torch.randn(6, 8, dtype=torch.float64), torch.arange(6) % 4
    seen = []
    for epoch in range(6):
        method.start_epoch(epoch)
        for _ in range(2):
            model.zero_grad()
            method.backward(x, y)
            masks = method.state_dict()["masks"]
            kept = {"unstructured": 0.5, "1:4": 0.25, "2:4": 0.5}[pattern]
            assert sum(int(m.sum()) for m in masks.values()) == kept * (96 + 48)
            if pattern != "unstructured":
                of = 4
                for m in masks.values():
                    assert bool((m.view(len(m), -1, of).sum(2) == int(pattern[0])).all())
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(0.3 * p.grad)
        seen.append(torch.cat([m.flatten() for m in masks.values()]))
    moved = [int((a != b).sum()) for a, b in itertools.pairwise(seen)]
    if name == "ssam-d":
        assert moved[0] > 0
        assert moved[-1] <= moved[0]  # the drop rate falls along the cosine


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_optimizer", "ignore:Converting a tensor with requires_grad")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the other library
def test_friendly_sam_agrees_with_pytorch_optimizer():
    import pytorch_optimizer

    model = network()
    twin = copy.deepcopy(model)
    method = make("f-sam", model, rho=0.1, order="before", start="gradient")
    optimizer = pytorch_optimizer.FriendlySAM(twin.parameters(), torch.optim.SGD, rho=0.1, lr=RATE, sigma=1.0, lmbda=0.9)
    for _, x, y, _ in batches():
        model.zero_grad()
        method.backward(x, y)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(RATE * p.grad)
        nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.first_step(zero_grad=True)
        nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.second_step(zero_grad=True)
    gap = max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert gap <= 1e-8  # its norm is reduced in float32
