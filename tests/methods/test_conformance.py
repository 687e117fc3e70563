"""Every registered method, and twins with a defect each, through the public conformance suite."""

from __future__ import annotations

import pytest
import torch
from reference.method_settings import VARIANTS

import noisesam
from noisesam.errors import InputError
from noisesam.methods.sam import SAM
from noisesam.testing import MethodCheckError, check_method
from noisesam.testing.laws import LAWS

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
