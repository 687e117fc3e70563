"""What the engine does on a device that is not the CPU, by way of a stand-in for one: ways, exactness, launches and waits.

The stand-in computes on the CPU (tests/reference/stand_in.py). What only a GPU can show, its own kernels, its generators and
its speed, the tests marked CUDA show where there is one.
"""

from __future__ import annotations

import pytest
import torch
from reference.derived_weights import HAND_WRITTEN, LAYERS, Written
from reference.stand_in import StandIn, hand_back, lend, on_stand_in
from torch import nn

import noisesam
from noisesam.bench import plain
from noisesam.bench.case import Case
from noisesam.bench.models import MODELS
from noisesam.errors import InputError
from noisesam.gradients import memory
from noisesam.gradients.engine import engine_for

# Another order of summation than on the CPU, over a few thousand products in float64.
TOLERANCE = 1e-12
FIELDS = (
    "gradient_norm", "residual_norm", "perturbed_gradient_norm", "logit_perturbed_gradient_norm",
    "jacobian_perturbed_gradient_norm",
)  # fmt: skip
STEPS = ("1-sam", "l-sam", "j-sam")

CONVOLUTIONS = {
    "few positions": nn.Conv2d(3, 4, 3, padding=1),
    "strided": nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
    "strided across alone": nn.Conv2d(3, 4, (2, 3), stride=(1, 2)),
    "dilated": nn.Conv2d(3, 4, 3, dilation=2, padding=2),
    "grouped": nn.Conv2d(4, 4, 3, groups=2),
    "pointwise": nn.Conv2d(3, 4, 1, stride=2),
    "padded further than the kernel": nn.Conv2d(3, 4, 2, padding=2),
    "one axis": nn.Conv1d(3, 4, 3, padding=1),
    "three axes": nn.Conv3d(2, 3, 2),
}


def same_on_both(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Compare decomposition and steps with those on the CPU, whose laws are proven elsewhere."""
    parts = noisesam.decompose(model, inputs, targets, rho=0.1)
    steps = {name: _gradient(model, name, inputs, targets) for name in STEPS}
    with on_stand_in(model):
        there = noisesam.decompose(model, lend(inputs), lend(targets), rho=0.1)
        assert engine_for(model, lend(inputs)).name == "fast"
        steps_there = {name: _gradient(model, name, lend(inputs), lend(targets)) for name in STEPS}
    for field in FIELDS:
        found = getattr(there, field)
        assert isinstance(found, StandIn), field
        torch.testing.assert_close(hand_back(found), getattr(parts, field), rtol=TOLERANCE, atol=0)
    for name in STEPS:
        for found, wanted in zip(steps_there[name], steps[name], strict=True):
            assert isinstance(found, StandIn)
            assert float((hand_back(found) - wanted).norm()) <= TOLERANCE * max(float(wanted.norm()), 1.0)


def _gradient(model: nn.Module, name: str, inputs: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    noisesam.methods.make(name, model, rho=0.1).backward(inputs, targets)
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_bench_model_gives_the_same_there(name):
    torch.manual_seed(0)
    model = MODELS[name].build(True).double()
    inputs, targets = MODELS[name].inputs(4, quick=True)
    same_on_both(model, inputs.double() if inputs.is_floating_point() else inputs, targets)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("side", [6, 20])  # 20: more positions than a Gram matrix is formed for
def test_convolutions_in_the_ways_of_a_gpu_are_exact(double, kind, side):
    layer = CONVOLUTIONS[kind].double()
    if kind == "three axes" and side == 20:
        side = 8
    inputs = torch.randn(3, layer.in_channels, *[side] * (layer.weight.dim() - 2))
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(4))
    model(inputs)
    same_on_both(model, inputs, torch.tensor([0, 3, 1]))


# The stand-in does not say where its tensors lie; then a weight that is written to is left to the slower engine.
WRITTEN_TO = {"rectified in place", "rectified square in place", "met before and after it was written to"}


@pytest.mark.parametrize("name", [name for name in (*HAND_WRITTEN, *LAYERS) if name not in WRITTEN_TO])
def test_weights_computed_from_parameters_give_the_same_there(double, name):
    if name in HAND_WRITTEN:
        forward, parameters, shape = HAND_WRITTEN[name]
        model: nn.Module = Written(forward, **parameters)
    else:
        build, shape = LAYERS[name]
        model = build()
    same_on_both(model, torch.randn(*shape), torch.arange(shape[0]) % 4)


def test_a_tensor_left_on_the_cpu_is_found_out():
    there, here, places = lend(torch.ones(2)), torch.ones(2), torch.tensor([1, 0])
    with on_stand_in(nn.Linear(1, 1)):
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="same device"):
            here[lend(places)]
        with pytest.raises(RuntimeError, match="same device"):
            there[places] = here
        assert torch.equal(hand_back(there[places]), here)


# SAM asks at its end whether all was finite; the others also ask whether the norms that they divide by have their digits.
@pytest.mark.parametrize(("method", "waits"), [("sgd", 1), ("sam", 1), ("1-sam", 2), ("l-sam", 2), ("j-sam", 2)])
@pytest.mark.parametrize("name", ["mlp", "resnet18-groupnorm", "vit"])
def test_a_step_waits_for_the_device_no_more_often_than_it_has_questions(name, method, waits):
    model = MODELS[name].build(True)
    inputs, targets = MODELS[name].inputs(4, quick=True)
    with on_stand_in(model) as mode:
        step = noisesam.methods.make(method, model)
        inputs, targets = lend(inputs), lend(targets)
        step.backward(inputs, targets)  # proofs and checks of what is new
        mode.counts.clear()
        step.backward(inputs, targets)
    # The key's bias, to which softmax is indifferent, was silent in the proof: it is listened to.
    listens = name == "vit" and method in ("1-sam", "l-sam", "j-sam")
    assert mode.counts["waits"] == waits + listens


@pytest.mark.parametrize(("method", "waits"), [("sgd", 1), ("sam", 1), ("1-sam", 3)])
def test_in_parts_only_the_norms_are_asked_about_part_by_part(method, waits):
    model, inputs, targets = MODELS["mlp"].build(True), *MODELS["mlp"].inputs(4, quick=True)
    with on_stand_in(model) as mode:
        step = noisesam.methods.make(method, model, chunk_size=2)
        inputs, targets = lend(inputs), lend(targets)
        for _ in range(2):  # the first part is proven, the fourth compared again
            step.backward(inputs, targets)
        mode.counts.clear()
        step.backward(inputs, targets)
    assert mode.counts["waits"] == waits


# On a GPU small models cost their launches. The bounds are the numbers as they stand, rounded up: none may creep back.
@pytest.mark.parametrize(("name", "bound"), [("mlp", 2.1), ("resnet18-groupnorm", 2.1), ("vit", 1.6)])
def test_1_sam_asks_for_few_operations_more_than_sam(name, bound):
    model = MODELS[name].build(True)
    inputs, targets = MODELS[name].inputs(8, quick=True)
    with on_stand_in(model) as mode:
        case = Case(model, lend(inputs), lend(targets))
        asked = []
        for step in (plain.batch_sam(case), lambda: noisesam.methods.make("1-sam", model).backward(case.inputs, case.targets)):
            step()
            mode.counts.clear()
            step()
            asked.append(mode.counts["operations"])
    sam, one_sam = asked
    assert one_sam <= bound * sam, asked


def test_labels_are_looked_at_again_where_they_have_changed():
    model, inputs, targets = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    with on_stand_in(model):
        there = lend(targets)
        step = noisesam.methods.make("sgd", model)
        step.backward(lend(inputs), there)
        there[0] = 7
        with pytest.raises(InputError, match="row"):
            step.backward(lend(inputs), there)


def test_the_budget_of_an_accelerator_is_a_number_of_its_own_and_stated(monkeypatch):
    model, inputs = nn.Linear(3, 2), torch.randn(50, 3)
    needed = memory.bytes_of_an_example(model, inputs[:1]).needed
    monkeypatch.setattr(memory, "MEMORY_BUDGET", 4 * needed)
    monkeypatch.setattr(memory, "ACCELERATOR_MEMORY_BUDGET", 9 * needed)
    assert memory.automatic_chunk(model, inputs) == 4
    with on_stand_in(model):
        assert memory.automatic_chunk(model, lend(inputs)) == 9
        assert memory.automatic_chunk(model, lend(inputs), budget=6 * needed) == 6
