"""The regulariser in training loops: hooks, freshness, precision and copies."""

import ast
import copy
import gc
import importlib.util
import io
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from noisesam import models, regularizers
from noisesam.regularizers import JSAMRegularizer, last_linear_layer

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def network(**options) -> models.Classifier:
    return models.make("mlp", input_shape=(4,), classes=3, hidden=(5, 4), **options)


def constant(model, **options) -> JSAMRegularizer:
    return JSAMRegularizer(model, activation=0.1, weight=0.2, **options)


def adaptive(model, **options) -> JSAMRegularizer:
    return JSAMRegularizer(model, mode="adaptive", rho=0.1, **options)


BOTH = pytest.mark.parametrize("build", [constant, adaptive])


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_one_hook_in_constant_mode_two_in_adaptive_mode_and_none_after_remove():
    model = network()
    first = constant(model)
    assert hooks(model) == 1
    second = adaptive(model)
    assert hooks(model) == 3
    first.remove()
    assert hooks(model) == 2
    second.remove()
    assert hooks(model) == 0
    with constant(model) as regularizer:
        assert hooks(model) == 1
    assert hooks(model) == 0
    model(INPUTS)
    with pytest.raises(RuntimeError, match=r"called after remove\(\)\. .*Make a new JSAMRegularizer\."):
        regularizer()


def test_the_model_is_unchanged_but_for_the_hooks():
    model = network()
    before = copy.deepcopy(model.state_dict())
    logits = model(INPUTS)
    regularizer = adaptive(model)
    assert torch.equal(model(INPUTS), logits)
    regularizer(TARGETS)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@BOTH
def test_every_training_forward_serves_exactly_one_call(build):
    model = network()
    regularizer = build(model)
    message = r"without a fresh training forward through the layer 'last_layer'\. Expected one forward .*Call model\.train\(\)"
    with pytest.raises(RuntimeError, match=message):
        regularizer(TARGETS)
    model(INPUTS)
    regularizer(TARGETS)
    with pytest.raises(RuntimeError, match=message):
        regularizer(TARGETS)


@BOTH
def test_evaluation_neither_counts_as_a_training_forward_nor_overwrites_one(build):
    model = network()
    regularizer = build(model)

    def evaluate():
        with torch.no_grad():
            model(5 * INPUTS)
        with torch.inference_mode():
            model(5 * INPUTS)
        model.eval()
        model(5 * INPUTS)
        model.train()

    evaluate()
    with pytest.raises(RuntimeError, match="fresh training forward"):
        regularizer(TARGETS)
    model(INPUTS)
    expected = regularizer(TARGETS)
    model(INPUTS)
    evaluate()
    assert torch.equal(regularizer(TARGETS), expected)


@BOTH
def test_function_transforms_leave_the_recorded_activations_alone(build):
    model = network()
    regularizer = build(model)
    model(INPUTS)
    expected = regularizer(TARGETS)
    model(INPUTS)
    parameters = dict(model.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(model, weights, (x[None],)).sum()

    torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, INPUTS)
    assert torch.equal(regularizer(TARGETS), expected)


def test_the_latest_training_forward_counts():
    model = network()
    regularizer = constant(model)
    model(INPUTS)
    model(2 * INPUTS)
    expected = 0.1 * model.hidden(2 * INPUTS).square().sum(1).mean() + 0.2 * model.last_layer.weight.square().sum()
    torch.testing.assert_close(regularizer(), expected)


@BOTH
def test_a_functional_call_is_penalised_with_the_weights_it_was_given(build):
    model, other = network(), network()
    with torch.no_grad():
        other.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    given = {name: value.detach().clone().requires_grad_() for name, value in other.named_parameters()}
    ours, theirs = build(model), build(other)
    torch.func.functional_call(model, given, (INPUTS,))
    other(INPUTS)
    penalty, wanted = ours(TARGETS), theirs(TARGETS)
    assert torch.equal(penalty, wanted)
    found = torch.autograd.grad(penalty, list(given.values()), allow_unused=True)
    expected = torch.autograd.grad(wanted, list(other.parameters()), allow_unused=True)
    assert all(one is two is None or torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_a_refused_call_keeps_the_activations():
    model = network()
    regularizer = adaptive(model)
    model(INPUTS)
    with pytest.raises(ValueError, match=r"without targets\. .*Type regularizer\(targets\)\."):
        regularizer()
    assert regularizer(TARGETS).isfinite()


def test_a_forward_that_broke_off_before_the_last_layer_is_not_mixed_with_a_complete_one():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.last, self.breaks = nn.Linear(4, 4), nn.Linear(4, 3), False

        def forward(self, inputs):
            hidden = self.hidden(inputs)
            if self.breaks:
                raise KeyError
            return self.last(hidden)

    model = Fragile()
    regularizer = adaptive(model)
    model(INPUTS)
    expected = regularizer(TARGETS)
    model(INPUTS)
    model.breaks = True
    with pytest.raises(KeyError):
        model(3 * INPUTS)
    assert torch.equal(regularizer(TARGETS), expected)
    model.breaks = False
    model(INPUTS)
    assert torch.equal(regularizer(TARGETS), expected)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_squares_are_summed_in_float32(build, dtype):
    model = network()
    regularizer = build(model)
    with torch.autocast("cpu", dtype=dtype):
        logits = model(300 * INPUTS)
        hidden = model.hidden(300 * INPUTS)
        penalty = regularizer(TARGETS)
    assert logits.dtype == hidden.dtype == dtype
    assert penalty.dtype == torch.float32
    assert penalty.isfinite()
    if build is constant:
        expected = 0.1 * hidden.float().square().sum(1).mean() + 0.2 * model.last_layer.weight.square().sum()
    else:
        r = logits.float().softmax(1) - functional.one_hot(TARGETS, 3)
        with torch.autocast("cpu", dtype=dtype):
            x = model.body[:3](300 * INPUTS).float()
        z2, x2 = hidden.float().square().sum(1), x.square().sum(1) + 1
        r2, p2 = r.square().sum(1), (r @ model.last_layer.weight).square().sum(1)
        expected = (0.1 / (r2 * (z2 + 1) + p2 * x2).sqrt() * 0.5 * (r2 * z2 + x2 * p2)).mean()
    # float32 sums, no half-precision step (1e-3 or worse) in between
    torch.testing.assert_close(penalty, expected, rtol=1e-5, atol=0)
    penalty.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@BOTH
@pytest.mark.parametrize(("dtype", "expected"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_the_penalty_has_the_models_precision_but_at_least_float32(build, dtype, expected):
    model = network().to(dtype)
    regularizer = build(model)
    model(INPUTS.to(dtype))
    assert regularizer(TARGETS).dtype == expected


@BOTH
def test_training_with_it_from_a_data_loader_lowers_the_penalty(build):
    model = network(seed=1)
    regularizer = build(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4)
    history = []
    for _ in range(30):
        for inputs, targets in loader:
            optimizer.zero_grad()
            model(inputs)
            penalty = regularizer(targets)
            penalty.backward()
            optimizer.step()
        history.append(penalty.item())
    assert history[-1] < 0.7 * history[0]


@BOTH
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(build):
    model = network().double()
    inputs = INPUTS.double()
    regularizer = build(model)
    model(inputs)
    regularizer(TARGETS).backward()
    whole = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for rows in (slice(0, 2), slice(2, 6)):
        model(inputs[rows])
        (regularizer(TARGETS[rows]) * len(TARGETS[rows]) / len(TARGETS)).backward()
    parts = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-15)  # the same sums in another order


@BOTH
def test_a_copied_model_does_not_feed_the_regularizer(build):
    model = network()
    regularizer = build(model)
    model(INPUTS)
    twin = copy.deepcopy(model)  # with activations recorded, which no copy can hold
    expected = regularizer(TARGETS)
    model(INPUTS)
    twin(3 * INPUTS)
    assert torch.equal(regularizer(TARGETS), expected)


@BOTH
def test_model_and_regularizer_copied_together_are_a_working_pair(build):
    model = network()
    regularizer = build(model)
    model(INPUTS)
    model_twin, twin = copy.deepcopy((model, regularizer))
    with pytest.raises(RuntimeError, match="fresh training forward"):
        twin(TARGETS)
    expected = regularizer(TARGETS)
    model_twin(INPUTS)
    assert torch.equal(twin(TARGETS), expected)
    with pytest.raises(RuntimeError, match="fresh training forward"):
        regularizer(TARGETS)
    count = hooks(model)
    twin.remove()
    assert hooks(model_twin) == 0
    assert hooks(model) == count


def test_a_hooked_model_can_be_saved_and_loaded_whole():
    model = network()
    regularizer = constant(model)
    model(INPUTS)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(INPUTS), model(INPUTS))
    assert regularizer().isfinite()


def test_a_forgotten_regularizer_holds_no_activations():
    model = network()
    constant(model)  # nobody keeps it
    gc.collect()
    hidden = model.hidden(INPUTS)
    alive = weakref.ref(hidden)
    model.last_layer(hidden).sum().backward()
    del hidden
    assert alive() is None


def test_a_consumed_forward_holds_no_activations():
    model = network()
    regularizer = constant(model)
    hidden = model.hidden(INPUTS)
    alive = weakref.ref(hidden)
    (model.last_layer(hidden).sum() + regularizer()).backward()
    del hidden
    assert alive() is None


def test_zero_gradients_contribute_nothing_and_give_no_nan():
    model = models.make("two-layer-linear", input_shape=(4,), classes=3, width=4, bias=False, init_std=0.0)
    regularizer = adaptive(model)
    model(INPUTS)
    penalty = regularizer(TARGETS)
    penalty.backward()
    assert penalty.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())

    fitted = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False))
    regularizer = adaptive(fitted, loss=lambda logits, targets: (logits * 0).sum(1))
    fitted(INPUTS)
    penalty = regularizer(TARGETS)
    penalty.backward()
    assert penalty.item() == 0
    assert not any(p.grad.any() for p in fitted.parameters())


def test_tiny_residuals_keep_their_penalty_in_float32():
    """At margin 60 the square of the residual, 1e-52, is below the range of float32; the penalty is rho ||r|| times O(1)."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model.load_state_dict({"0.weight": torch.tensor([[60.0]]), "1.weight": torch.tensor([[1.0]])})
    regularizer = adaptive(model, loss="logistic")
    model(torch.ones(1, 1))
    penalty = regularizer(torch.tensor([1])).item()
    s, z, x, v = torch.sigmoid(torch.tensor(-60.0, dtype=torch.float64)).item(), 60.0, 1.0, 1.0
    assert penalty == pytest.approx(0.1 * s * 0.5 * (z**2 + x**2 * v**2) ** 0.5, rel=1e-5, abs=0)  # float32


def test_non_finite_activations_are_not_hidden():
    for build in (constant, adaptive):
        model = network()
        regularizer = build(model)
        model(INPUTS * torch.nan)
        assert regularizer(TARGETS).isnan()


class TwoHeads(nn.Module):
    """A user's model whose last registered Linear layer is not the one that makes the logits."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 5)
        self.classify = nn.Linear(5, 3)
        self.project = nn.Linear(5, 7)

    def forward(self, inputs):
        hidden = functional.relu(self.stem(inputs))
        self.project(hidden)
        return self.classify(input=hidden)


def test_the_last_layer_can_be_named_or_handed_over():
    model = TwoHeads()
    assert last_linear_layer(model) == ("project", model.project)
    for layer in ("classify", model.classify):
        regularizer = adaptive(model, last_layer=layer)
        assert repr(regularizer) == "JSAMRegularizer('classify', mode='adaptive', rho=0.1, hidden_layer='stem')"
        assert (regularizer.hidden_layer, regularizer.last_layer) == (model.stem, model.classify)
        model(INPUTS)
        assert regularizer(TARGETS) > 0
        regularizer.remove()


def test_it_works_on_sequential_attention_and_shipped_models():
    encoder = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.0, batch_first=True)
    assert last_linear_layer(nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2)))[0] == "0"
    for model, inputs in [
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), INPUTS),
        (nn.Linear(4, 3), INPUTS),
        (nn.Sequential(encoder, nn.Flatten(), nn.Linear(12, 3)), INPUTS.reshape(2, 3, 4)),
        (models.make("resnet8", input_shape=(1, 4, 4), classes=3, width=2), torch.ones(2, 1, 4, 4)),
    ]:
        regularizer = constant(model)
        model(inputs)
        penalty = regularizer()
        penalty.backward()
        assert penalty > 0


def test_positions_of_the_hidden_layer_are_summed_over():
    model = nn.Sequential(nn.Linear(4, 2), nn.Flatten(), nn.Linear(6, 3)).double()
    inputs = INPUTS.double().reshape(2, 3, 4)
    regularizer = adaptive(model)
    logits = model(inputs)
    penalty = regularizer(TARGETS[:2])
    r = logits.softmax(1).detach() - functional.one_hot(TARGETS[:2], 3)
    z2, x2 = model[:2](inputs).square().sum(1), inputs.square().sum((1, 2)) + 3
    r2, p2 = r.square().sum(1), (r @ model[2].weight).square().sum(1)
    norm = (r2 * (z2 + 1) + p2 * x2).sqrt().detach()
    torch.testing.assert_close(penalty, (0.1 / norm * 0.5 * (r2 * z2 + x2 * p2)).mean(), rtol=1e-12, atol=0)  # rounding


def test_the_file_needs_nothing_but_torch_and_the_standard_library(tmp_path):
    source = Path(regularizers.__file__).read_text()
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported <= {"torch", "__future__"} | set(sys.stdlib_module_names)
    (tmp_path / "copied.py").write_text(source)
    script = "import copied, sys, torch; copied.JSAMRegularizer(torch.nn.Linear(2, 2), activation=1, weight=1); "
    script += "assert not any(name.split('.')[0] == 'noisesam' for name in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    assert importlib.util.find_spec("noisesam") is not None
