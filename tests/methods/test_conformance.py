"""Every registered method, and twins with a defect each, through the public conformance suite."""

from __future__ import annotations

import pytest
import torch

import noisesam
from noisesam.errors import InputError
from noisesam.methods import names
from noisesam.methods.sam import SAM
from noisesam.testing import MethodCheckError, check_method
from noisesam.testing.laws import LAWS

# Settings with which everything that a method remembers comes into play within the two epochs of the suite.
OPTIONS = {
    "m-sam": {"examples_per_shard": 4},
    "looksam": {"k": 3},
    "looklayersam": {"k": 3},
    "saf": {"start_epoch": 0, "lag": 1},
    "mesa": {"start_epoch": 0, "ema_decay": 0.9},
    "ssam-f": {"num_samples": 12},
    "ssam-d": {"epochs": 10},
}
VARIANTS = [
    *((name, OPTIONS.get(name, {})) for name in names()),
    ("sam", {"normalize": False}),
    ("esam", {"mask": "tensor"}),
    ("esam", {"gamma": 1.0}),
    ("esam", {"beta": 1.0}),
    ("looksam", {"per_tensor": True, "k": 2}),
    ("looklayersam", {"renormalize": True, "k": 2}),
    ("saf", {"start_epoch": 0, "lag": 2, "half_precision": True, "store_budget": 0}),
    ("mesa", {"start_epoch": 0, "epochs": 5, "tau_squared": False}),
    ("ssam-f", {"pattern": "structured"}),
    ("ssam-f", {"pattern": "2:4"}),
    ("ssam-d", {"pattern": "structured", "epochs": 10}),
    ("ssam-d", {"pattern": "1:4", "epochs": 10}),
    ("f-sam", {"order": "before", "start": "gradient"}),
    ("ausam", {"sampling": "bernoulli", "unbiased": True, "s_min": 0.5}),
    ("asam", {"adapt_biases": False}),
    ("sgd", {"gradient_norms": True}),
]
# Shards of four draw dropout masks of their own, and their rows are counted per shard.
SKIPPED = {"m-sam": ["dropout masks are the same in every pass over the batch"]}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(VARIANTS)])
def test_every_method_keeps_every_law(name, options, law):
    if law in SKIPPED.get(name, []):
        return
    others = [other for other in LAWS if other != law]
    if name == "sgd" and options and law == "declared limits are the limits":
        return  # SGD alone has no limit; reading norms off its pass has
    check_method(lambda model: noisesam.methods.make(name, model, **options), skip=others)


class AddsAndSubtracts(SAM):
    """Leaves rounding in the weights."""

    def _step(self, batch, parameters, call):
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.add_(0.1).sub_(0.1)
        return super()._step(batch, parameters, call)


class Miscounts(SAM):
    def _step(self, batch, parameters, call):
        outcome = super()._step(batch, parameters, call)
        outcome.forward_examples = batch.size
        return outcome


class SeesTheScale(SAM):
    def _step(self, batch, parameters, call):
        self.rho = 0.05 * call.final
        return super()._step(batch, parameters, call)


class DrawsGlobally(SAM):
    def _step(self, batch, parameters, call):
        torch.rand(1)
        return super()._step(batch, parameters, call)


class SavesWeights(SAM):
    def state_dict(self):
        return {**super().state_dict(), "copy": next(self.model.parameters()).detach().clone()}


class Undeclared(SAM):
    limits = ("needs index",)


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (AddsAndSubtracts, "weights are restored"),
        (Miscounts, "counted passes"),
        (SeesTheScale, "scale multiplies"),
        (DrawsGlobally, "torch's global generator"),
        (SavesWeights, "no weights"),
        (Undeclared, "said, and not refused"),
    ],
)
def test_the_suite_finds_a_defect(kind, broken):
    with pytest.raises(MethodCheckError, match=broken):
        check_method(lambda model: kind(model, rho=0.05))


def test_a_law_that_does_not_exist_cannot_be_skipped():
    with pytest.raises(InputError, match="Unknown law"):
        check_method(lambda model: SAM(model), skip=["weights"])
