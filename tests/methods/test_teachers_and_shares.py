"""SAF has a teacher only where logits were kept; what AUSAM weighs by probabilities are examples, and not weight decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from noisesam.methods.ausam import AUSAM
from noisesam.methods.saf import SAF

EXAMPLES = 40
INDEX = torch.arange(EXAMPLES)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    return model, torch.randn(EXAMPLES, 3, dtype=torch.float64), torch.randint(0, 4, (EXAMPLES,))


@pytest.mark.parametrize(("start_epoch", "lag"), [(0, 1), (0, 2), (0, 3), (1, 4), (5, 3)])
def test_at_weights_that_do_not_move_saf_is_sgd_in_every_epoch(problem, start_epoch, lag):
    model, x, y = problem
    plain = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    saf = SAF(model, lam=1.0, start_epoch=start_epoch, lag=lag)
    for epoch in range(8):
        saf.start_epoch(epoch)
        found = saf.step_gradient(x, y, index=INDEX)
        torch.testing.assert_close(list(found.values()), list(plain), rtol=1e-12, atol=1e-12)
        saf.backward(x, y, index=INDEX)
        model.zero_grad()


@pytest.mark.parametrize("seed", range(3))
def test_unbiased_ausam_weighs_examples_and_leaves_weight_decay_whole(problem, seed):
    model, x, y = problem
    options = {"sampling": "bernoulli", "unbiased": True, "s_min": 0.5, "s_max": 0.5, "seed": seed}
    drawn = AUSAM(model, rho=0.0, **options).backward(x, y, index=INDEX).evaluated
    model.zero_grad()
    losses = functional.cross_entropy(model(x), y, reduction="none")[drawn]
    data = torch.autograd.grad((losses / 0.5).sum() / EXAMPLES, list(model.parameters()))
    wanted = [one + 0.7 * weight.detach() for one, weight in zip(data, model.parameters(), strict=True)]
    found = AUSAM(model, rho=0.0, weight_decay=0.7, **options).step_gradient(x, y, index=INDEX)
    torch.testing.assert_close(list(found.values()), wanted, rtol=1e-12, atol=1e-12)
    length = torch.cat([one.flatten() for one in wanted]).norm()
    eps = AUSAM(model, rho=0.1, weight_decay=0.7, **options).perturbation(x, y, index=INDEX)
    assert eps is not None
    torch.testing.assert_close(list(eps.values()), [0.1 * one / length for one in wanted], rtol=1e-12, atol=1e-12)
