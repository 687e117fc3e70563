"""Laws of train_stacked: every model ends where the ordinary loop of its method ends, and what cannot be stacked is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from noisesam import methods, models
from noisesam.data import NoisyDataset
from noisesam.errors import InputError
from noisesam.training import BatchOrder, train_stacked
from noisesam.training.stacked import Stack

N, STEPS = 24, 26

ARCHITECTURES = {
    "linear": ("linear", {}),
    "linear without bias": ("linear", {"bias": False}),
    "two-layer linear": ("two-layer-linear", {"width": 5}),
    "mlp": ("mlp", {"hidden": (6, 5), "activation": "tanh"}),
    "relu mlp without bias": ("mlp", {"hidden": (8,), "activation": "relu", "bias": False}),
}
COLUMNS = [
    ("sgd", {}),
    ("1-sam", {"rho": 0.05}),
    ("sam", {"rho": 0.3}),
    ("l-sam", {"rho": 0.3}),
    ("1-sam", {"rho": 0.4}),  # kinds are not side by side: the stack sorts them, and hands them back in their order
    ("j-sam", {"rho": 0.3}),
    ("m-sam", {"rho": 0.2, "examples_per_shard": 5}),
]
FURTHER = [
    ("sam", {"rho": 0.1, "normalize": False}),
    ("sam", {"rho": 0.2, "examples_per_shard": 1}),
    ("m-sam", {"rho": 0.3, "examples_per_shard": 3}),
    ("j-sam", {"rho": 0.0}),
]
EVERY_SEED = 1  # the column that is compared in every row; the others in row 0 (an ordinary loop takes long)


def examples(seed: int, classes: int, *, shape: tuple[int, ...] = (6,)) -> NoisyDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, *shape, generator=generator, dtype=torch.float64)
    return NoisyDataset(inputs, torch.randint(0, max(classes, 2), (N,), generator=generator))


def grid(architecture: str, classes: int, seeds=(0, 1), columns=COLUMNS, shape: tuple[int, ...] = (6,)):
    """Rows of methods, one per seed, each method with a model of its own."""
    name, options = ARCHITECTURES[architecture]
    loss = "logistic" if classes == 1 else "cross_entropy"

    def make(seed: int, method: str, hyperparameters: dict):
        model = models.make(name, input_shape=shape, classes=classes, seed=seed, **options).double()
        return methods.make(method, model, loss=loss, **hyperparameters)

    return [[make(10 * seed + place, *column) for place, column in enumerate(columns)] for seed in seeds]


def train_alone(method, data: NoisyDataset, order: BatchOrder | None, **optimizer) -> None:
    sgd = torch.optim.SGD(method.model.parameters(), **optimizer)
    for step in range(STEPS):
        rows = torch.arange(len(data)) if order is None else torch.from_numpy(order.batch(step))
        sgd.zero_grad()
        method.backward(data.inputs[rows], data.labels[rows])
        sgd.step()


def distance(first: nn.Module, second: nn.Module) -> float:
    """Norm of the difference over the norm, over all parameters."""
    a, b = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (first, second))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("architecture", "classes", "columns"),
    [
        ("linear", 1, COLUMNS),
        ("linear", 3, COLUMNS),
        ("two-layer linear", 1, COLUMNS),
        ("two-layer linear", 3, COLUMNS),
        ("two-layer linear", 3, FURTHER),
        ("relu mlp without bias", 1, COLUMNS),
        ("mlp", 3, COLUMNS),
    ],
)
def test_every_method_ends_where_the_ordinary_loop_ends(architecture, classes, columns):
    # Batches of 7 of 24 examples: the last one of an epoch is ragged, and so is the last shard of m-SAM.
    data = [examples(seed, classes) for seed in (0, 1)]
    orders = [BatchOrder(N, 7, seed) for seed in (0, 1)]
    stack = grid(architecture, classes, columns=columns)
    alone = copy.deepcopy(stack)
    train_stacked(stack, data, steps=STEPS, lr=0.1, orders=orders)
    for group, column in [*((0, column) for column in range(len(columns))), (1, EVERY_SEED)]:
        method, twin = stack[group][column], alone[group][column]
        start = copy.deepcopy(twin.model)
        train_alone(twin, data[group], orders[group], lr=0.1)
        assert distance(method.model, twin.model) <= 1e-10
        assert distance(start, twin.model) > 0.01  # it has moved
        assert method.steps == twin.steps == STEPS


def test_momentum_weight_decay_and_learning_rates_of_members_are_those_of_torch_on_the_full_batch():
    columns = [COLUMNS[place] for place in (1, 0, 4)]  # to be sorted, with their rates
    data, stack = [examples(0, 3)], grid("mlp", 3, seeds=(0,), columns=columns)
    alone = copy.deepcopy(stack)
    rates = [0.05, 0.1, 0.2]
    train_stacked(stack, data, steps=STEPS, lr=rates, momentum=0.9, weight_decay=0.01)
    for method, twin, rate in zip(stack[0], alone[0], rates, strict=True):
        train_alone(twin, data[0], None, lr=rate, momentum=0.9, weight_decay=0.01)
        assert distance(method.model, twin.model) <= 1e-10


@pytest.mark.parametrize(("architecture", "classes"), [("linear", 1), ("two-layer linear", 3), ("mlp", 3)])
def test_an_observer_sees_the_weights_logits_and_norms_of_every_model(architecture, classes):
    data, stack = [examples(seed, classes) for seed in (0, 1)], grid(architecture, classes)
    seen: list[int] = []

    def observe(step: int, own: Stack) -> None:
        seen.append(step)
        if step not in (0, 3):
            return
        logits, plain, terms, weights = own.logits(), own.gradient_norm(), own.step_gradient_norm(), own.weights
        for group, row in enumerate(stack):
            for member, method in enumerate(row):
                twin = copy.deepcopy(method)
                for name, parameter in twin.model.named_parameters():
                    parameter.data.copy_(weights[name][group, member])
                inputs, labels = data[group].inputs, data[group].labels
                torch.testing.assert_close(logits[group, member], twin.model(inputs).detach(), rtol=1e-10, atol=1e-12)
                expected = twin.step_terms(inputs, labels).gradient_norm
                torch.testing.assert_close(terms[group, member], expected, rtol=1e-9, atol=1e-12)
                sgd = methods.make("sgd", twin.model, loss=twin.loss).step_terms(inputs, labels).gradient_norm
                torch.testing.assert_close(plain[group, member], sgd, rtol=1e-9, atol=1e-12)

    train_stacked(stack, data, steps=4, lr=0.1, observe=observe)
    assert seen == [0, 1, 2, 3, 4]


def test_looking_changes_nothing_and_a_repeat_gives_the_same_bits():
    def weights(observe=None) -> list[torch.Tensor]:
        stack = grid("mlp", 3)
        orders = [BatchOrder(N, 7, seed) for seed in (0, 1)]
        train_stacked(stack, [examples(0, 3), examples(1, 3)], steps=9, lr=0.1, orders=orders, observe=observe)
        return [p.detach() for row in stack for method in row for p in method.model.parameters()]

    first, again = weights(), weights(lambda _, stack: (stack.logits(), stack.step_gradient_norm(), stack.weights))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_model_in_a_stack_does_not_depend_on_its_neighbours():
    whole = grid("mlp", 3, seeds=(0,))
    alone = copy.deepcopy(whole)
    train_stacked(whole, [examples(0, 3)], steps=STEPS, lr=0.1)
    for method, twin in zip(whole[0], alone[0], strict=True):
        train_stacked([[twin]], [examples(0, 3)], steps=STEPS, lr=0.1)
        assert distance(method.model, twin.model) <= 1e-12  # a batched product may sum in another order


def test_images_are_flattened_where_the_model_flattens_them_and_refused_elsewhere():
    data = examples(0, 3, shape=(2, 3))
    stack = grid("mlp", 3, seeds=(0,), shape=(2, 3))
    alone = copy.deepcopy(stack)
    train_stacked(stack, [data], steps=STEPS, lr=0.1)
    train_alone(alone[0][1], data, None, lr=0.1)
    assert distance(stack[0][1].model, alone[0][1].model) <= 1e-10
    with pytest.raises(InputError, match=r"Data set 0 with inputs of shape \(24, 2, 3\).*of 3 numbers each"):
        train_stacked([[methods.make("sgd", nn.Linear(3, 2).double())]], [data], steps=1, lr=0.1)


def test_an_example_whose_gradient_vanishes_stays_where_it_is():
    # Zero inputs and no bias: no example has a gradient, so eps is zero and nothing moves, as in the ordinary loop.
    data = NoisyDataset(torch.zeros(N, 6, dtype=torch.float64), torch.zeros(N, dtype=torch.long), classes=("a", "b", "c"))
    stack = grid("linear without bias", 3, seeds=(0,))
    before = copy.deepcopy(stack)
    train_stacked(stack, [data], steps=3, lr=0.1)
    for method, twin in zip(stack[0], before[0], strict=True):
        assert torch.equal(method.model.last_layer.weight, twin.model.last_layer.weight)


def test_in_float32_fitted_examples_keep_their_direction_and_their_norms():
    # Margins of about 60: the residual is 1e-26 and its square underflows in float32.
    inputs = torch.tensor([[60.0, 1.0], [-55.0, 2.0]])
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0]]))
    method = methods.make("1-sam", model, loss="logistic", rho=0.1)
    expected = method.step_terms(inputs, torch.tensor([1, 0])).gradient_norm
    seen: list[torch.Tensor] = []
    data = NoisyDataset(inputs, torch.tensor([1, 0]))
    train_stacked([[method]], [data], steps=0, lr=0.1, observe=lambda _, stack: seen.append(stack.step_gradient_norm()))
    assert float(expected.min()) > 0
    torch.testing.assert_close(seen[0][0, 0], expected, rtol=1e-4, atol=0.0)  # float32: exp(60) amplifies 1e-7 sixtyfold


def test_a_loss_that_is_not_finite_names_the_model_and_leaves_all_models_as_they_were():
    stack = [
        [methods.make("sgd", nn.Linear(6, 3).double(), loss="mse"), methods.make("1-sam", nn.Linear(6, 3).double(), loss="mse")]
    ]
    before = copy.deepcopy(stack)
    with pytest.raises(
        FloatingPointError, match=r"1 model\(s\) of the stack is not finite.*1-sam with rho=0.01 in row 0.*Lower"
    ):
        train_stacked(stack, [examples(0, 3)], steps=300, lr=[1e-3, 1e9])
    for method, twin in zip(stack[0], before[0], strict=True):
        assert torch.equal(method.model.weight, twin.model.weight)
        assert method.steps == 0


class Doubling(nn.ReLU):
    """Looks like a ReLU and is not one."""

    def forward(self, input):
        return 2 * super().forward(input)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def frozen() -> nn.Module:
    model = nn.Linear(6, 3)
    model.bias.requires_grad_(False)
    return model


def tied() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, layer)


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.1), nn.Linear(4, 3)), "Dropout at '1'"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)), "LayerNorm at '1'"),
        (lambda: models.make("small-cnn", input_shape=(1, 8, 8), classes=3), "Conv2d at 'body"),
        (lambda: nn.Sequential(nn.Linear(6, 4), Doubling(), nn.Linear(4, 3)), "Doubling at '1'"),
        (lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 3)), "Tanh before the first Linear layer"),
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.Tanh()), "a function after the last Linear layer"),
        (lambda: nn.Sequential(nn.Flatten()), "no Linear layer"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), "ParametrizedLinear at the top"),
        (hooked, "a hook on the forward pass of '1'"),
        (frozen, "the frozen parameter 'bias'"),
        (tied, "parameters that are shared"),
        (lambda: nn.Linear(6, 3).bfloat16(), "parameters in bfloat16 on cpu"),
    ],
)
def test_a_model_that_is_no_chain_is_refused_with_the_remedy(model, given):
    with pytest.raises(InputError, match=rf"with .*{given}.* cannot be stacked\. Expected .*\. Train it alone with"):
        train_stacked([[methods.make("sgd", model().train())]], [examples(0, 3)], steps=1, lr=0.1)


def linear(method: str = "sgd", *, dtype=torch.float64, classes: int = 3, **options):
    return methods.make(method, nn.Linear(6, classes).to(dtype), **options)


def with_groups():
    model = nn.Linear(6, 3).double()
    return methods.make("1-sam", model, rho=0.1, parameter_groups=[{"params": model.weight, "rho": 0.2}])


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (lambda: linear("asam"), "The method 'asam' cannot be stacked. Expected one of: sgd, sam, m-sam, 1-sam, l-sam, j-sam"),
        (with_groups, "'1-sam' with parameter_groups cannot be stacked"),
        (lambda: linear("sam", weight_decay=0.1), "'sam' with weight_decay=0.1 cannot be stacked"),
    ],
)
def test_a_method_that_cannot_be_stacked_is_refused_with_the_remedy(method, given):
    with pytest.raises(InputError, match=rf"{given}.*Train it alone with Method.backward"):
        train_stacked([[method()]], [examples(0, 3)], steps=1, lr=0.1)


def _one(**changes):
    arguments = {"methods": [[linear()]], "data": [examples(0, 3)], "steps": 1, "lr": 0.1}
    return {**arguments, **changes}


def _same_model_twice():
    method = linear()
    return _one(methods=[[method, methods.make("1-sam", method.model)]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: _one(methods=[]), r"Rows of \[\] methods"),
        (lambda: _one(methods=[[linear()], [linear(), linear()]]), r"Rows of \[1, 2\] methods.*one row per data set"),
        (lambda: _one(methods=[[linear()], [linear()]]), "2 rows of methods for 1 data sets"),
        (
            lambda: _one(methods=[[linear("1-sam")], [linear("j-sam")]], data=[examples(0, 3), examples(1, 3)]),
            "Column 0 holds '1-sam' in row 0 and 'j-sam' in row 1.*same order",
        ),
        (_same_model_twice, "One model in several places.*one model per method"),
        (lambda: _one(methods=[[linear(), linear(classes=4)]]), "Model 1 of the stack is Linear.*stack of its own"),
        (lambda: _one(methods=[[linear(), linear(dtype=torch.float32)]]), "Model 1 of the stack.*float32 on cpu.*float64"),
        (lambda: _one(methods=[[linear(), linear(loss="mse")]]), "losses 'cross_entropy' and 'mse' in one stack"),
        (
            lambda: _one(methods=[[linear(loss="label_smoothing(epsilon=0.1)"), linear(loss="label_smoothing(epsilon=0.2)")]]),
            "losses 'label_smoothing.*the same parameters",
        ),
        (lambda: _one(data=[examples(0, 3).to(dtype=torch.float32)]), "Data set 0 in float32 on cpu.*dataset.to"),
        (lambda: _one(data=[examples(0, 3, shape=(5,))]), r"Data set 0 with inputs of shape \(24, 5\).*of 6 numbers"),
        (lambda: _one(lr=[0.1, 0.2]), "2 learning rates for 1 columns"),
        (lambda: _one(lr=-0.1), "lr=-0.1"),
        (lambda: _one(momentum=float("nan")), "momentum=nan"),
        (lambda: _one(steps=-1), "steps=-1"),
        (lambda: _one(orders=[BatchOrder(23, 7, 0)]), r"\[\(23, 7\)\].*of 24 examples each.*BatchOrder\("),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        train_stacked(**arguments())
