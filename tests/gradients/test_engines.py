"""The engines against the loop over examples, against each other and against Opacus; what they refuse."""

from __future__ import annotations

import gc
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.loop import PLACES, cross_entropy, example_terms, logistic, mean_term, norm, relative_error
from torch import nn

import noisesam
from noisesam.errors import InputError
from noisesam.gradients import mixed_point_gradient
from noisesam.gradients.engine import engine_for

# Every shipped model at a size that a loop over examples can bear.
MODELS = {
    "linear": ((6,), {}),
    "two-layer-linear": ((6,), {}),
    "deep-linear": ((6,), {}),
    "mlp": ((1, 8, 8), {"hidden": (16, 12)}),
    "small-cnn": ((3, 8, 8), {}),
    "resnet8": ((3, 8, 8), {"width": 4}),
    "resnet18": ((3, 8, 8), {"width": 4}),
    "vit": ((3, 8, 8), {"dim": 8, "depth": 2, "heads": 2}),
}


def make_model(name: str, classes: int = 4) -> tuple[nn.Module, tuple[int, ...]]:
    shape, options = MODELS[name]
    return noisesam.models.make(name, input_shape=shape, classes=classes, seed=1, **options).double(), shape


def batch_for(shape: tuple[int, ...], n: int, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, *shape, dtype=torch.float64, generator=generator),
        torch.randint(0, classes, (n,), generator=generator),
    )


@pytest.mark.parametrize("name", MODELS)
def test_mixed_point_gradients_equal_the_loop_over_examples_on_every_shipped_model(name):
    model, shape = make_model(name)
    x, y = batch_for(shape, 3)
    rows = example_terms(model, x, y, 0.1)
    for method, (jacobian, residual) in PLACES.items():
        for engine in ("auto", "reference"):
            found = mixed_point_gradient(model, x, y, rho=0.1, jacobian_at=jacobian, residual_at=residual, engine=engine)
            assert relative_error(found, mean_term(rows, method)) <= 1e-10, (method, engine)


VARIANTS = [(name, classes, {}) for name in MODELS for classes in (4, 1)] + [
    (name, 4, {"normalisation": "groupnorm"}) for name in ("small-cnn", "resnet8", "resnet18")
]


@pytest.mark.parametrize(("name", "classes", "extra"), VARIANTS)
def test_methods_equal_the_loop_over_examples_on_every_shipped_model(name, classes, extra):
    shape, options = MODELS[name]
    model = noisesam.models.make(name, input_shape=shape, classes=classes, seed=1, **options, **extra).double()
    x, y = batch_for(shape, 3, max(classes, 2))
    rows = example_terms(model, x, y, 0.1, logistic if classes == 1 else cross_entropy)
    loss = "logistic" if classes == 1 else "cross_entropy"
    for method in ("1-sam", "l-sam", "j-sam"):
        model.zero_grad()
        noisesam.methods.make(method, model, rho=0.1, loss=loss).backward(x, y)
        found = {key: p.grad for key, p in model.named_parameters()}
        assert relative_error(found, mean_term(rows, method)) <= 1e-10, method
    each = noisesam.per_example_gradients(model, x, y, loss=loss)
    for i, row in enumerate(rows):
        assert relative_error({key: value[i] for key, value in each.items()}, row["sgd"]) <= 1e-11


@pytest.mark.parametrize("name", MODELS)
def test_the_decomposition_equals_the_loop_over_examples_on_every_shipped_model(name):
    model, shape = make_model(name)
    x, y = batch_for(shape, 3)
    parts = noisesam.decompose(model, x, y, rho=0.1)
    rows = example_terms(model, x, y, 0.1)
    for field, method in (
        ("gradient_norm", "sgd"),
        ("perturbed_gradient_norm", "1-sam"),
        ("logit_perturbed_gradient_norm", "l-sam"),
        ("jacobian_perturbed_gradient_norm", "j-sam"),
    ):
        expected = torch.stack([norm(row[method]) for row in rows])
        torch.testing.assert_close(getattr(parts, field), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(parts.gradient_norm, parts.jacobian_gain * parts.residual_norm, rtol=1e-14, atol=0)


@settings(max_examples=25)
@given(
    n=st.integers(1, 9),
    features=st.integers(1, 7),
    hidden=st.lists(st.integers(1, 6), max_size=2),
    classes=st.integers(2, 5),
    positions=st.integers(0, 4),
    bias=st.booleans(),
    chunk=st.one_of(st.none(), st.integers(1, 9)),
    seed=st.integers(0, 1000),
)
def test_the_fast_engine_equals_the_reference_for_any_shape_batch_and_chunk(
    n, features, hidden, classes, positions, bias, chunk, seed
):
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    before = features
    for width in hidden:
        layers += [nn.Linear(before, width, bias=bias), nn.Tanh()]
        before = width
    flat = [nn.Flatten()] if positions else []
    model = nn.Sequential(*layers, *flat, nn.Linear(before * max(positions, 1), classes)).double()
    x = torch.randn(n, *([positions] if positions else []), features, dtype=torch.float64)
    y = torch.randint(0, classes, (n,))  # some classes are missing from most of these batches
    for jacobian, residual in PLACES.values():
        options = {"rho": 0.3, "jacobian_at": jacobian, "residual_at": residual}
        fast = mixed_point_gradient(model, x, y, engine="auto", chunk_size=chunk, **options)
        slow = mixed_point_gradient(model, x, y, engine="reference", **options)
        # A sum of n terms that may cancel: 1e-12 of the size of the terms, at least.
        size = float(norm(slow)) + 1e-3
        assert float(norm({k: fast[k] - slow[k] for k in slow})) <= 1e-11 * size
    if n > 1:
        assert engine_for(model, x).name == "fast"


@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
def test_per_example_gradients_equal_opacus(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # opacus warns about its own imports
        from opacus import GradSampleModule

    model, shape = make_model(name)
    x, y = batch_for(shape, 5)
    ours = noisesam.per_example_gradients(model, x, y, chunk_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = GradSampleModule(model, loss_reduction="sum")
        torch.nn.functional.cross_entropy(wrapped(x), y, reduction="sum").backward()
    for name, parameter in wrapped._module.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad_sample, rtol=1e-10, atol=1e-13)
    wrapped.to_standard_module()


def test_per_example_gradients_average_to_the_batch_gradient():
    model, shape = make_model("vit")
    x, y = batch_for(shape, 5)
    ours = noisesam.per_example_gradients(model, x, y)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    assert relative_error({k: v.mean(0) for k, v in ours.items()}, {k: p.grad for k, p in model.named_parameters()}) <= 1e-12


def test_a_shared_perturbation_is_the_model_at_other_weights():
    model, shape = make_model("mlp")
    x, y = batch_for(shape, 5)
    eps = {name: 0.01 * torch.randn_like(p) for name, p in model.named_parameters()}
    fast, slow = (noisesam.decompose(model, x, y, perturbation=eps, engine=engine) for engine in ("fast", "reference"))
    moved = {name: p + eps[name] for name, p in model.named_parameters()}
    logits = torch.func.functional_call(model, moved, (x,))
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    for parts in (fast, slow):
        torch.testing.assert_close(parts.perturbed_losses, losses.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(fast.perturbed_gradient_norm, slow.perturbed_gradient_norm, rtol=1e-12, atol=0)


def test_per_example_perturbations_may_be_given():
    model, shape = make_model("mlp")
    x, y = batch_for(shape, 5)
    eps = noisesam.OneSAM(model, rho=0.1).perturbation(x, y)
    given = noisesam.decompose(model, x, y, perturbation=eps, chunk_size=2)
    own = noisesam.decompose(model, x, y, rho=0.1)
    torch.testing.assert_close(given.perturbed_gradient_norm, own.perturbed_gradient_norm, rtol=1e-12, atol=0)
    assert all(torch.allclose(e.flatten(1).norm(dim=1) <= 0.1, torch.ones(5, dtype=torch.bool)) for e in eps.values())
    total = torch.stack([e.flatten(1).square().sum(1) for e in eps.values()]).sum(0).sqrt()
    torch.testing.assert_close(total, torch.full((5,), 0.1, dtype=torch.float64), rtol=1e-12, atol=0)


# ---------------------------------------------------------------- reuse, tying, in-place, frozen, dropout


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        return self.used(x)


def frozen():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4))
    model[2].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    return model


SPECIAL = {
    "tied and re-used": Tied,
    "a layer without part": Unused,
    "frozen tensors": frozen,
    "in-place activation": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4)),
    "in-place on the data's own layer with positions": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(10, 4)
    ),
    "wide layer over many positions": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Flatten(), nn.Linear(6, 4)
    ),
    "low rank over positions": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Flatten(), nn.Linear(80, 4)
    ),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_uses_of_parameters_are_fast_and_equal_the_loop(kind):
    torch.manual_seed(0)
    model = SPECIAL[kind]().double()
    x, y = batch_for((6,), 4)
    assert engine_for(model, x).name == "fast"
    rows = example_terms(model, x, y, 0.2)
    for method, (jacobian, residual) in PLACES.items():
        found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at=jacobian, residual_at=residual, engine="fast")
        assert relative_error(found, mean_term(rows, method)) <= 1e-12, method


def test_dropout_has_the_same_masks_in_both_passes_and_for_both_are_drawn_once():
    class Recording(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.masks = nn.Linear(6, 8), nn.Linear(8, 4), []

        def forward(self, x):
            h = torch.tanh(self.a(x))
            mask = torch.nn.functional.dropout(torch.ones_like(h), 0.5)
            self.masks.append(mask.detach().clone())
            return self.b(h * mask)

    model = Recording().double()
    x, y = batch_for((6,), 4)
    engine_for(model, x)  # the proof runs without dropout
    model.masks.clear()
    torch.manual_seed(3)
    found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at="perturbed", residual_at="perturbed")
    assert len(model.masks) == 2
    assert torch.equal(*model.masks)
    after = torch.rand(3)
    torch.manual_seed(3)
    torch.nn.functional.dropout(torch.ones(4, 8).double(), 0.5)
    assert torch.equal(torch.rand(3), after)  # the generator moved by one pass

    fixed = model.masks[0]

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.mask = model.a, model.b, fixed

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)) * self.mask)

    twin = Fixed()
    rows = []
    for i in range(4):
        twin.mask = fixed[i : i + 1]
        rows += example_terms(twin, x[i : i + 1], y[i : i + 1], 0.2)
    assert relative_error(found, mean_term(rows, "1-sam")) <= 1e-12


def test_first_layer_reuse_is_dropped_when_an_in_place_operation_changed_what_was_kept():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x):
            return self.b(self.a(x).mul_(2.0).add_(1.0))

    model = InPlace().double()
    x, y = batch_for((6,), 4)
    found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at="perturbed", residual_at="perturbed", engine="fast")
    assert relative_error(found, mean_term(example_terms(model, x, y, 0.2), "1-sam")) <= 1e-12


# ---------------------------------------------------------------- the example axis is proven


class MergedAxes(nn.Module):
    """The linear layers see (n * T, d): the first axis is not the example."""

    def __init__(self, sequence_first: bool = False):
        super().__init__()
        self.a, self.b, self.sequence_first = nn.Linear(3, 5), nn.Linear(10, 4), sequence_first

    def forward(self, x):
        n = x.shape[0]
        x = x.view(n, 2, 3)
        if self.sequence_first:
            return self.b(torch.tanh(self.a(x.transpose(0, 1))).transpose(0, 1).reshape(n, 10))
        return self.b(torch.tanh(self.a(x.reshape(n * 2, 3))).view(n, 10))


@pytest.mark.parametrize("sequence_first", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])  # n = 2 equals the number of positions: the shapes alone cannot tell
def test_layers_whose_first_axis_is_not_the_example_come_out_right(sequence_first, n):
    torch.manual_seed(0)
    model = MergedAxes(sequence_first).double()
    x, y = batch_for((6,), n)
    found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at="perturbed", residual_at="perturbed")
    assert relative_error(found, mean_term(example_terms(model, x, y, 0.2), "1-sam")) <= 1e-12


class Positions(nn.Module):
    """Tokens with a table of positions that all examples share, looked up as (1, T) or as (T,)."""

    def __init__(self, axes: int):
        super().__init__()
        self.axes, self.tokens, self.places = axes, nn.Embedding(11, 6), nn.Embedding(9, 6)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        where = torch.arange(x.shape[1], device=x.device)
        places = self.places(where if self.axes == 1 else where[None])
        return self.head(torch.tanh(self.mix(torch.tanh(self.tokens(x) + places))).mean(1))


@pytest.mark.parametrize("n", [1, 3, 4, 5])  # n = 4 equals the number of positions: the shapes alone cannot tell
@pytest.mark.parametrize("axes", [1, 2])
def test_a_table_of_positions_that_all_examples_share_keeps_the_fast_engine(axes, n):
    torch.manual_seed(0)
    model = Positions(axes).double()
    x, y = torch.randint(0, 11, (n, 4)), torch.arange(n) % 4
    if (axes, n) == (1, 4):  # four numbers for four examples are read as theirs: exact, but on the reference engine
        engine = "reference"
    else:
        engine = "auto"
        assert engine_for(model, x, engine).name == "fast"
    rows = example_terms(model, x, y, 0.2)
    for method, (jacobian, residual) in PLACES.items():
        found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at=jacobian, residual_at=residual, engine=engine)
        assert relative_error(found, mean_term(rows, method)) <= 1e-12


class AddsByOneProduct(nn.Module):
    """The linear map of GPT-2: b + x W over all positions of all examples at once."""

    def __init__(self, **scales: float):
        super().__init__()
        self.weight, self.bias, self.head = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5)), nn.Linear(5, 4)
        self.scales = scales

    def forward(self, x):
        mixed = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight, **self.scales)
        return self.head(torch.tanh(mixed).view(*x.shape[:-1], -1).mean(1))


@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_product_with_its_bias_added_keeps_the_fast_engine(n):
    torch.manual_seed(0)
    model, x, y = AddsByOneProduct().double(), torch.randn(n, 3, 6, dtype=torch.float64), torch.arange(n) % 4
    assert engine_for(model, x, "auto").name == "fast"
    rows = example_terms(model, x, y, 0.2)
    for method, (jacobian, residual) in PLACES.items():
        found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at=jacobian, residual_at=residual)
        assert relative_error(found, mean_term(rows, method)) <= 1e-12


def test_a_product_with_scales_falls_back():
    model, x, y = AddsByOneProduct(alpha=2.0).double(), torch.randn(3, 3, 6, dtype=torch.float64), torch.arange(3)
    with pytest.warns(UserWarning, match=r"'addmm' uses the parameter 'bias'"):
        found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at="perturbed", residual_at="perturbed")
    assert relative_error(found, mean_term(example_terms(model, x, y, 0.2), "1-sam")) <= 1e-12


class TransposesItsPositions(Positions):
    """Counts on the axes of the table's rows: with a row for every example it fails."""

    def __init__(self, silent: bool):
        super().__init__(1)
        self.silent = silent

    def forward(self, x):
        places = self.places(torch.arange(x.shape[1]))
        if self.silent and places.dim() != 2:
            raise ValueError
        places = places.t().t()
        return self.head(torch.tanh(self.mix(torch.tanh(self.tokens(x) + places))).mean(1))


@pytest.mark.parametrize("silent", [False, True])
def test_a_model_that_takes_no_row_for_every_example_somewhere_falls_back(silent):
    model, x, y = TransposesItsPositions(silent).double(), torch.randint(0, 11, (3, 4)), torch.arange(3)
    with pytest.warns(UserWarning, match="does not go through with a row for every example"):
        found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at="perturbed", residual_at="perturbed", chunk_size="auto")
    assert relative_error(found, mean_term(example_terms(model, x, y, 0.2), "1-sam")) <= 1e-12


class Centred(nn.Module):
    def __init__(self, detach: bool):
        super().__init__()
        self.a, self.detach = nn.Linear(6, 4), detach

    def forward(self, x):
        out = self.a(x)
        mean = out.mean(0, keepdim=True)
        return out - (mean.detach() if self.detach else mean)


@pytest.mark.parametrize("detach", [False, True])
def test_a_model_that_mixes_examples_is_refused_before_its_first_step(detach):
    x, y = batch_for((6,), 5)
    for engine in ("auto", "reference"):
        with pytest.raises(InputError, match="mixes the examples"):
            noisesam.decompose(Centred(detach).double(), x, y, engine=engine)


class ReadsTheBatchSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 4)

    def forward(self, x):
        return self.a(x) / len(x)


def test_an_output_that_depends_on_the_batch_size_is_refused_as_such():
    x, y = batch_for((6,), 5)
    for engine in ("auto", "reference"):
        with pytest.raises(InputError, match=r"alone has other outputs.*whatever the others are.*reads the batch size"):
            noisesam.decompose(ReadsTheBatchSize().double(), x, y, engine=engine)


def test_batch_normalisation_in_training_mode_is_refused_with_the_remedy_and_allowed_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)).double()
    x, y = batch_for((6,), 5)
    with pytest.raises(InputError, match=r"layer '1' \(BatchNorm1d\).*LayerNorm or GroupNorm.*\.eval\(\)"):
        noisesam.decompose(model, x, y)
    model(x)
    model.eval()
    rows = example_terms(model, x, y, 0.1)
    found = mixed_point_gradient(model, x, y, rho=0.1, jacobian_at="perturbed", residual_at="perturbed")
    assert relative_error(found, mean_term(rows, "1-sam")) <= 1e-12


class AtItsKink(nn.Module):
    """One unit's input is nothing but rounding, and a batch rounds otherwise than an example alone."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
        with torch.no_grad():
            self.first.weight[0] = self.first.bias[0] = 0

    def forward(self, x):
        return self.last(torch.relu(self.first(x) + (1e-17 if len(x) == 1 else -1e-17)))


def test_a_unit_at_the_kink_of_its_activation_does_not_send_a_model_to_the_slower_engine():
    model, (x, y) = AtItsKink(), batch_for((3,), 5, classes=2)
    alone = torch.autograd.grad(model(x[:1]).sum(), model.first.bias)[0]
    inside = torch.autograd.grad(model(x)[0].sum(), model.first.bias)[0]
    assert alone[0] != 0  # so the example alone is no measure of its gradient in the batch
    assert inside[0] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = noisesam.decompose(model, x, y).gradient_norm
    rows = [torch.autograd.grad(cross_entropy(model(x), y)[i], list(model.parameters())) for i in range(5)]
    expected = torch.stack([torch.cat([g.flatten() for g in row]).norm() for row in rows])
    assert relative_error({"": found}, {"": expected}) <= 1e-12  # float64 rounding


def test_a_model_without_a_rule_falls_back_and_forcing_the_fast_engine_says_why():
    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(6, 5)), nn.Linear(5, 4)

        def forward(self, x):
            return self.head(torch.einsum("...d,dp->...p", x, self.weight))

    model = Scored().double()
    x, _ = batch_for((6,), 5)
    with pytest.warns(UserWarning, match="Scored runs on the exact reference engine"):
        assert engine_for(model, x).name == "reference"
    assert engine_for(model, x).name == "reference"  # said once: a second warning would raise
    with pytest.raises(InputError, match=r"'einsum' contracts a parameter by '...d,dp->...p'.*engine='auto'"):
        engine_for(model, x, "fast")


def test_a_model_that_vmap_refuses_runs_in_a_loop_exactly_and_says_so_once():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.scale = nn.Linear(6, 4), nn.Parameter(torch.ones(()))

        def forward(self, x):
            return torch.cat([self.a(row[None]) * (self.scale if row.sum().item() > 0 else 2) for row in x])

    model = Branches().double()
    x, y = batch_for((6,), 4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at="perturbed", residual_at="w")
    assert relative_error(found, mean_term(example_terms(model, x, y, 0.2), "j-sam")) <= 1e-12
    assert ["one at a time: exact, but slow" in str(each.message) for each in said] == [False, True]
    mixed_point_gradient(model, x, y, rho=0.2, jacobian_at="perturbed", residual_at="w")  # a third warning would raise


# ---------------------------------------------------------------- zero gradients, memory, arguments


def test_an_example_without_gradient_is_not_perturbed_and_nothing_becomes_nan():
    model = nn.Linear(4, 2).double()

    def hinge(logits, targets):
        return torch.relu(1 - (2 * targets - 1) * logits[:, 0])

    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(3.0)
    x, y = torch.ones(2, 4).double(), torch.tensor([1, 0])
    parts = noisesam.decompose(model, x, y, loss=hinge, rho=0.5)
    assert parts.gradient_norm[0] == 0
    assert parts.perturbed_losses[0] == parts.losses[0]
    assert parts.logit_weight[0].isnan()
    assert parts.jacobian_weight[0].isnan()
    found = mixed_point_gradient(model, x, y, rho=0.5, jacobian_at="perturbed", residual_at="perturbed", loss=hinge)
    assert all(g.isfinite().all() for g in found.values())


def test_float32_keeps_the_weights_of_examples_whose_squares_underflow():
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[30.0, 0, 0], [-30.0, 0, 0]]))
    x, y = torch.tensor([[1.0, 0.5, 0.2]]), torch.tensor([0])
    parts = noisesam.decompose(model, x, y, rho=0.1)
    double = noisesam.decompose(model.double(), x.double(), y, rho=0.1)
    assert parts.residual_norm[0] < 1e-22  # its square is zero in float32
    torch.testing.assert_close(parts.logit_weight.double(), double.logit_weight, rtol=1e-4, atol=0)


def test_nothing_of_a_step_is_kept_alive_after_it():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    x, y = batch_for((6,), 4)
    mixed_point_gradient(model, x, y, rho=0.1, jacobian_at="w", residual_at="perturbed")

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    before = tensors()
    for _ in range(5):
        mixed_point_gradient(model, x, y, rho=0.1, jacobian_at="w", residual_at="perturbed")
    assert tensors() == before
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None  # what is known of a model dies with it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, "rho=-1.0.*finite radius"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"engine": "fats"}, "Did you mean 'fast'"),
        ({"rho": 0.1, "perturbation": {}}, "Both rho and perturbation"),
        ({"perturbation": {"weigth": torch.zeros(4, 6)}}, "Did you mean 'weight'"),
        ({"perturbation": {"weight": torch.zeros(6, 4)}}, r"shape \(6, 4\).*\(4, 6\) \(shared\)"),
    ],
)
def test_wrong_arguments_are_refused_with_a_remedy(options, message):
    model = nn.Linear(6, 4)
    with pytest.raises(InputError, match=message):
        noisesam.decompose(model, torch.zeros(2, 6), torch.tensor([0, 1]), **options)


def test_tuples_and_dicts_of_inputs_are_passed_on():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(2, 4)

        def forward(self, left, right, factor=1.0):
            return self.a(left) + factor * self.b(right)

    model = Two().double()
    left, y = batch_for((6,), 5)
    right, _ = batch_for((2,), 5, seed=1)
    for engine in ("fast", "reference"):
        first = noisesam.decompose(model, (left, right), y, rho=0.1, engine=engine)
        second = noisesam.decompose(
            model, {"left": left, "right": right, "factor": 1.0}, y, rho=0.1, engine=engine, chunk_size=2
        )
        torch.testing.assert_close(first.perturbed_gradient_norm, second.perturbed_gradient_norm, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_given_perturbations_shared_or_one_each_are_exact_on_every_shipped_model(name):
    model, shape = make_model(name)
    x, y = batch_for(shape, 5)
    generator = torch.Generator().manual_seed(0)
    shared = {key: 0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for key, p in model.named_parameters()}
    each = noisesam.OneSAM(model, rho=0.1).perturbation(x, y)
    for eps in (shared, each):
        fast = noisesam.decompose(model, x, y, perturbation=eps, engine="fast")
        slow = noisesam.decompose(model, x, y, perturbation=eps, engine="reference", chunk_size=2)
        for field in ("perturbed_gradient_norm", "logit_perturbed_gradient_norm", "jacobian_perturbed_gradient_norm"):
            torch.testing.assert_close(getattr(fast, field), getattr(slow, field), rtol=1e-11, atol=0)


class NamesItsLogits(nn.Module):
    """A classifier as many libraries have them: named inputs, an output with a field for the logits."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap, self.layers = wrap, nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, features, scale):
        return self.wrap(self.layers(features * scale))


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize(
    "wrap",
    [lambda logits: {"loss": None, "logits": logits}, lambda logits: SimpleNamespace(logits=logits, hidden_states=())],
    ids=["mapping", "attribute"],
)
def test_an_output_that_names_its_logits_is_as_good_as_the_logits(wrap, engine):
    torch.manual_seed(0)
    model = NamesItsLogits(wrap).double()
    inputs = {"features": torch.randn(3, 4, dtype=torch.float64), "scale": torch.rand(3, 1, dtype=torch.float64)}
    labels = torch.tensor([0, 1, 2])
    places = {"rho": 0.1, "jacobian_at": "perturbed", "residual_at": "w"}
    found = mixed_point_gradient(model, inputs, labels, **places, engine=engine)
    model.wrap = lambda logits: logits
    expected = mixed_point_gradient(model, inputs, labels, **places, engine="reference")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
    step = noisesam.methods.OneSAM(model, rho=0.1).step_gradient(inputs, labels)
    assert step.keys() == expected.keys()


def test_an_output_without_logits_is_refused_in_words():
    model = NamesItsLogits(lambda logits: (logits, logits))
    with pytest.raises(InputError, match=r"returned tuple.*as `logits`.*Wrap"):
        noisesam.decompose(model, {"features": torch.ones(2, 4), "scale": torch.ones(2, 1)}, torch.tensor([0, 1]), rho=0.1)
