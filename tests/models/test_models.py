"""Laws of every shipped model: shapes, isolation of examples, determinism, and one named last layer."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from noisesam import models
from noisesam.errors import InputError

SMALL: dict[str, dict] = {
    "linear": {},
    "two-layer-linear": {"width": 5},
    "deep-linear": {"width": 4, "depth": 4},
    "mlp": {"hidden": (7, 6)},
    "small-cnn": {"channels": (3, 4, 5)},
    "resnet8": {"width": 3},
    "resnet18": {"width": 2},
    "vit": {"dim": 8, "depth": 2, "heads": 2},
}
TOYS = ("linear", "two-layer-linear", "deep-linear", "mlp")
SHAPE = (2, 8, 8)

every_model = pytest.mark.parametrize("name", models.names())


def small(name: str, *, classes: int = 3, **options) -> models.Classifier:
    return models.make(name, input_shape=SHAPE, classes=classes, **(SMALL[name] | options))


def images(n: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_every_named_model_is_in_the_laws():
    assert tuple(SMALL) == models.names()


@every_model
@settings(deadline=None, max_examples=5)
@given(n=st.integers(0, 4), classes=st.integers(1, 4))
def test_logits_have_one_row_per_example_and_one_column_per_class(name, n, classes):
    model = small(name, classes=classes)
    inputs = images(n, dtype=torch.float32)
    assert model(inputs).shape == (n, classes)
    assert model.hidden(inputs).shape == (n, model.features)
    assert model.last_layer.in_features == model.features


@every_model
def test_logits_equal_the_last_layer_of_the_hidden_activation(name):
    model = small(name)
    inputs = images(4, dtype=torch.float32)
    assert torch.equal(model(inputs), model.last_layer(model.hidden(inputs)))


@every_model
def test_hooks_on_the_last_layer_see_the_hidden_activation(name):
    model = small(name)
    seen = []
    model.last_layer.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    inputs = images(2, dtype=torch.float32)
    model(inputs)
    assert len(seen) == 1
    assert torch.equal(seen[0], model.hidden(inputs))


@every_model
def test_last_layer_is_the_last_registered_linear(name):
    model = small(name)
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert linears[-1] is model.last_layer


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in models.names()]
    + [(name, {"normalisation": kind}) for name in ("small-cnn", "resnet8") for kind in ("layernorm", "groupnorm", "none")],
)
def test_an_examples_logits_do_not_depend_on_the_other_examples(name, options):
    model = small(name, **options).double()
    inputs = images(4)
    others = inputs.clone()
    others[[0, 1, 3]] = 10 * images(3, seed=1) + 5
    for training in (True, False):
        model.train(training)
        # 1e-12: the same sums in float64, at most in another order where a kernel blocks over the batch.
        torch.testing.assert_close(model(inputs)[2], model(others)[2], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model(inputs)[2:3], model(inputs[2:3]), rtol=1e-12, atol=1e-12)


@every_model
def test_per_example_gradients_by_vmap_equal_those_of_each_example_alone(name):
    model = small(name).double()
    inputs, targets = images(3), torch.tensor([0, 2, 1])
    parameters = dict(model.named_parameters())

    def loss(weights, x, y):
        return functional.cross_entropy(functional_call(model, weights, (x.unsqueeze(0),)), y.unsqueeze(0))

    batched = vmap(grad(loss), (None, 0, 0))(parameters, inputs, targets)
    for i in range(3):
        model.zero_grad()
        functional.cross_entropy(model(inputs[i : i + 1]), targets[i : i + 1]).backward()
        for key, parameter in parameters.items():
            # 1e-10: float64 sums in another order.
            torch.testing.assert_close(batched[key][i], parameter.grad, rtol=1e-10, atol=1e-12)


@every_model
def test_every_parameter_moves_the_logits(name):
    model = small(name).double()
    model(images(3)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        # The key bias shifts all scores of a query alike, which softmax forgets: its gradient is zero by construction.
        if not key.endswith("key.bias"):
            assert parameter.grad.abs().sum() > 0, key


@every_model
def test_the_same_seed_gives_the_same_weights_and_another_seed_gives_others(name):
    first, again, other = (models.make(name, input_shape=SHAPE, classes=3, seed=seed, **SMALL[name]) for seed in (5, 5, 6))
    for (key, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), key
        assert torch.equal(a, c) == ("norm" in key or a.unique().numel() == 1), key


@every_model
def test_making_a_model_neither_reads_nor_moves_the_global_generator(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = small(name)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = small(name)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "resnet18", "vit"])
def test_default_weights_follow_torchs_own_distribution(name):
    model = models.make(name, input_shape=(3, 32, 32), classes=10)
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and module.weight.numel() > 4000:
            bound = module.weight[0].numel() ** -0.5
            assert module.weight.abs().max() <= bound
            # The standard deviation of 4000 uniform draws scatters by 0.7%; 5% is seven such deviations.
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_init_std_is_the_standard_deviation_of_the_weights_and_biases_are_zero():
    model = models.make("linear", input_shape=(10_000,), classes=1, init_std=0.03)
    # 10,000 normal draws: their standard deviation scatters by 0.7%.
    assert model.last_layer.weight.std().item() == pytest.approx(0.03, rel=0.04)
    assert model.last_layer.bias.item() == 0
    assert not models.make("linear", input_shape=(5,), classes=1, init_std=0.0).last_layer.weight.any()


def test_fan_in_initialisation_draws_variance_one_over_inputs():
    model = models.make("two-layer-linear", input_shape=(400,), classes=1, width=100, init_std="fan_in", bias=False)
    first = model.body[1].weight
    assert first.std().item() == pytest.approx(400**-0.5, rel=0.03)  # 40,000 normal draws scatter by 0.35%


@pytest.mark.parametrize("name", TOYS)
def test_without_bias_the_toy_models_have_matrices_only(name):
    assert all(parameter.dim() == 2 for parameter in small(name, bias=False).parameters())


@pytest.mark.parametrize("name", ["linear", "two-layer-linear", "deep-linear"])
def test_linear_models_without_bias_are_homogeneous_and_additive(name):
    model = small(name, bias=False).double()
    a, b = images(2), images(2, seed=1)
    torch.testing.assert_close(model(3 * a + b), 3 * model(a) + model(b), rtol=1e-12, atol=1e-12)  # float64 rounding


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # ResNet-18 with the CIFAR stem has 11,173,962 parameters with any affine normalisation of its channels.
        ("resnet18", 11_173_962),
        ("mlp", 3072 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
        ("linear", 3072 * 10 + 10),
        ("small-cnn", 3 * 32 * 9 + 32 + 32 * 64 * 9 + 64 + 64 * 64 * 9 + 64 + 64 * 16 * 10 + 10),
        # Stem, three blocks of two 3x3 convolutions, two 1x1 shortcuts, affine normalisations, last layer.
        (
            "resnet8",
            432 + 32 + 2 * (2304 + 32) + (4608 + 9216 + 512 + 3 * 64) + (18432 + 36864 + 2048 + 3 * 128) + 650,
        ),
    ],
)
def test_parameter_counts_equal_the_known_values(name, count):
    model = models.make(name, input_shape=(3, 32, 32), classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_both_normalisations_of_resnet18_have_the_same_parameter_count():
    counts = [sum(p.numel() for p in small("resnet18", normalisation=kind).parameters()) for kind in ("layernorm", "groupnorm")]
    assert counts[0] == counts[1]


def test_channel_layer_norm_has_mean_zero_and_variance_one_over_the_channels_of_every_pixel():
    norm = models.ChannelLayerNorm(16).double()
    result = norm(torch.randn(3, 16, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    torch.testing.assert_close(result.mean(1), torch.zeros(3, 4, 5, dtype=torch.float64), rtol=0, atol=1e-12)
    # The epsilon of 1e-5 under the root takes about 1e-5 of the variance, a little more where the variance is small.
    torch.testing.assert_close(result.var(1, correction=0), torch.ones(3, 4, 5, dtype=torch.float64), rtol=0, atol=1e-4)


def test_attention_equals_torchs_scaled_dot_product_attention():
    attention = models.make("vit", input_shape=SHAPE, classes=2, dim=8, heads=2, depth=1).double().body.blocks[0].attention
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = (layer(tokens).reshape(3, 5, 2, 4).transpose(1, 2) for layer in (attention.query, attention.key, attention.value))
    expected = attention.output(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, 8))
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-12, atol=1e-12)  # float64 rounding


def test_patches_hold_every_pixel_of_their_square():
    picture = torch.arange(2 * 8 * 8, dtype=torch.float64).reshape(1, 2, 8, 8)
    patches = models.make("vit", input_shape=SHAPE, classes=2).body.patches(picture)
    assert torch.equal(patches[0, 1], picture[0, :, :4, 4:].reshape(-1))
    assert torch.equal(patches[0, 2], picture[0, :, 4:, :4].reshape(-1))


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "vit"])
def test_dropout_acts_in_training_only(name):
    model = small(name, dropout=0.5)
    inputs = images(4, dtype=torch.float32)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@every_model
def test_models_run_under_autocast_and_can_be_copied(name):
    model = small(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images(2, dtype=torch.float32))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    twin = copy.deepcopy(model)
    assert twin.last_layer is not model.last_layer
    assert twin.state_dict().keys() == model.state_dict().keys()


@every_model
def test_every_option_is_described(name):
    description = models.describe(name)
    assert description.title
    assert all(option.meaning and option.expected for option in description.options.values())
    kwargs = {key: option.default for key, option in description.options.items() if key != "width"}
    assert isinstance(models.make(name, input_shape=SHAPE, classes=2, **kwargs), models.Classifier)


REFUSED = [
    ({"name": "rsnet18"}, r"Unknown model 'rsnet18'\. .*Did you mean 'resnet18'\?"),
    (
        {"name": "mlp", "hiden": [3]},
        r"Unknown option of model 'mlp': 'hiden'\. Expected one of: hidden, .*Did you mean 'hidden'\?",
    ),
    (
        {"name": "mlp", "hidden": [3, 0]},
        r"Option 'hidden' of model 'mlp' is \[3, 0\]\. Expected a list of integers.*default is \(128, 128\)",
    ),
    ({"name": "mlp", "activation": "rellu"}, r"Option 'activation'.*Expected one of: relu, .*Did you mean 'relu'\?"),
    ({"name": "mlp", "dropout": 1.0}, r"Expected a number in \[0, 1\)"),
    ({"name": "mlp", "bias": "no"}, r"Expected true or false"),
    ({"name": "linear", "init_std": -1}, r"Expected a standard deviation"),
    ({"name": "resnet18", "normalisation": "batchnorm"}, r"Expected one of: layernorm, groupnorm, none"),
    ({"name": "deep-linear", "depth": 0}, r"Expected an integer of at least 1"),
    ({"name": "small-cnn", "channels": [3, 4]}, r"Expected a list of three integers"),
    ({"name": "small-cnn", "input_shape": (1, 4, 4)}, r"Expected at least 8x8 pixels"),
    (
        {"name": "resnet8", "input_shape": (64,)},
        r"Expected \(channels, height, width\).*Reshape the inputs, e\.g\. to \(1, 8, 8\)",
    ),
    ({"name": "resnet8", "input_shape": (63,)}, r"Use 'mlp' for inputs that are not images"),
    (
        {"name": "vit", "patch": 3},
        r"patch is 3\. Expected a patch that divides height and width\. Possible here: patch=2, 4, 8\.",
    ),
    ({"name": "vit", "dim": 9, "heads": 4}, r"Expected heads that divide dim\. Type dim=8\."),
    ({"name": "linear", "input_shape": ()}, r"Expected the shape of one example"),
    ({"name": "linear", "input_shape": (0,)}, r"Expected the shape of one example"),
    ({"name": "linear", "classes": 0}, r"classes is 0\. Expected an integer of at least 1"),
    ({"name": "linear", "seed": -1}, r"seed is -1\. Expected an integer in \[0, 2\^63\)"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_a_wrong_request_names_what_is_wrong_and_what_to_type(arguments, message):
    with pytest.raises(InputError, match=message):
        models.make(**({"input_shape": SHAPE, "classes": 2} | arguments))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            torch.zeros(4, 64),
            r"inputs of shape \(4, 64\)\. Expected \(n, 2, 8, 8\), .*Make the model with input_shape=\(64,\)\.",
        ),
        (torch.zeros(4, 128), r"Type inputs\.reshape\(-1, 2, 8, 8\)"),
        (torch.zeros(2, 8, 8), r"Type inputs\.unsqueeze\(0\)"),
        (torch.zeros(()), r"Put the examples along the first axis"),
        (
            torch.zeros(4, 2, 8, 8, dtype=torch.uint8),
            r"inputs of type uint8\. Expected floating point numbers\. Type inputs\.float\(\)",
        ),
    ],
)
@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_a_wrong_batch_names_what_is_wrong_and_what_to_type(name, batch, message):
    with pytest.raises(InputError, match=message):
        small(name)(batch)


def test_a_users_model_can_be_registered_and_its_options_are_checked_by_name():
    @models.register("one-unit", title="One unit.")
    def one_unit(input_shape, classes, generator, *, slope=1.0):
        body = torch.nn.Sequential(torch.nn.Linear(input_shape[0], 1), torch.nn.LeakyReLU(slope))
        return models.initialise(models.Classifier(body, features=1, classes=classes, input_shape=input_shape), generator)

    try:
        with pytest.raises(InputError, match="registered already"):
            models.register("one-unit")
        with pytest.raises(InputError, match="Did you mean 'slope'"):
            models.make("one-unit", input_shape=(3,), classes=1, slop=2.0)
        assert models.make("one-unit", input_shape=(3,), classes=1, slope=2.0)(torch.ones(2, 3)).shape == (2, 1)
    finally:
        models.unregister("one-unit")
    with pytest.raises(InputError, match="Unknown model"):
        models.describe("one-unit")


def test_initialise_refuses_parameters_that_nobody_draws():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

    with pytest.raises(InputError, match=r"module '0' of type Scale.*Give the module a method initialise"):
        models.initialise(torch.nn.Sequential(Scale()), torch.Generator())
