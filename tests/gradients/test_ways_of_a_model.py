"""A model that goes another way than when it was proven is exact on that way, too, or refused; nothing of it is left behind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from reference.loop import example_terms, mean_term, relative_error
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import noisesam
from noisesam.errors import InputError
from noisesam.gradients import decompose, mixed_point_gradient, per_example_gradients
from noisesam.gradients.engine import engine_for, proven

ONE_SAM = {"rho": 0.3, "jacobian_at": "perturbed", "residual_at": "perturbed"}
LABELS = torch.tensor([0, 1, 2, 0])
BOTH = pytest.mark.filterwarnings("ignore:.*exact, but slow", "ignore:.*exact reference engine")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def data(*shape: int) -> Tensor:
    return torch.randn(4, *shape, dtype=torch.float64)


def error(model: nn.Module, inputs) -> float:
    """Return how far 1-SAM is off from the loop over examples."""
    found = mixed_point_gradient(model, inputs, LABELS, **ONE_SAM)
    return relative_error(found, mean_term(example_terms(model, inputs, LABELS, 0.3), "1-sam"))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.h, self.b = nn.Linear(5, 6), nn.Linear(6, 3), nn.Bilinear(5, 5, 6)
        self.switch = False
        self.double()


class TimeFirst(Body):
    def forward(self, x):
        if self.switch:
            return self.h(torch.tanh(self.l(x.transpose(0, 1))).sum(0))
        return self.h(torch.tanh(self.l(x)).sum(1))


class Trimmed(Body):
    """Time first, cut to the length that the first feature says."""

    def forward(self, x):
        length = int(x[..., 0].abs().max())
        return self.h(torch.tanh(self.l(x.transpose(0, 1)[:length])).sum(0))


class Extended(Body):
    def forward(self, x):
        z = self.l(x)
        return self.h(torch.tanh(z + self.b(x, x) if self.switch else z))


class Experts(Body):
    """Every example asks one of two, which its numbers choose."""

    def forward(self, x):
        chosen = x[:, 0] > 0
        found = x.new_zeros(len(x), 6)
        for rows, layer in ((chosen.nonzero()[:, 0], self.l), ((~chosen).nonzero()[:, 0], lambda z: self.b(z, z))):
            found = found.index_add(0, rows, layer(x[rows]))
        return self.h(torch.tanh(found))


class Unpadded(Body):
    """Layers see the tokens that are there, merged over all examples."""

    def forward(self, x):
        there = x[..., 0] > -1
        tokens = torch.tanh(self.l(x[there]))
        return self.h(x.new_zeros(*there.shape, 6).index_put(there.nonzero(as_tuple=True), tokens).sum(1))


def test_an_attribute_that_is_switched_between_steps_is_seen_where_no_shape_shows_it():
    model, x = TimeFirst(), data(4, 5)  # as many positions as examples
    for switch in (False, True, False, True):
        model.switch = switch
        assert engine_for(model, x).name == "fast"
        assert error(model, x) <= 1e-12


@BOTH
def test_a_branch_without_a_rule_that_is_taken_later_falls_back_and_the_other_stays_fast():
    model, x = Extended(), data(5)
    for switch in (False, True, False):
        model.switch = switch
        assert error(model, x) <= 1e-12
    engine = engine_for(model, x)
    engine.at(x)
    assert engine.name == "fast"


def test_a_later_branch_without_a_rule_is_refused_where_only_the_fast_engine_is_wanted():
    model, x = Extended(), data(5)
    decompose(model, x, LABELS, engine="fast")
    model.switch = True
    with pytest.raises(InputError, match="bilinear"):
        decompose(model, x, LABELS, engine="fast")


def test_a_time_axis_cut_to_as_many_positions_as_examples_is_read_as_time():
    model, x = Trimmed(), data(7, 5)
    for length in (7, 4, 5, 4):
        x[..., 0] = length
        assert error(model, x) <= 1e-12


@BOTH
def test_rows_that_the_data_count_out_belong_to_whom_the_data_say():
    model, x = Unpadded(), data(6, 5)
    for there in ([6, 6, 6, 6], [3, 5, 6, 6], [5, 5, 5, 5], [3, 5, 6, 5]):  # twenty tokens twice, otherwise shared out
        x[..., 0] = -2.0
        for row, tokens in enumerate(there):
            x[row, :tokens, 0] = 1.0
        assert error(model, x) <= 1e-12
    model = Experts()
    for _ in range(5):
        assert error(model, data(5)) <= 1e-12


def test_a_mask_that_is_a_constant_of_the_model_leaves_it_fast():
    class Masked(Body):
        def forward(self, x):
            return self.h(torch.tanh(self.l(x[:, torch.arange(7) != 2])).sum(1))

    model, x = Masked(), data(7, 5)
    assert engine_for(model, x).name == "fast"
    assert error(model, x) <= 1e-12


@pytest.mark.parametrize(("jacobian_at", "residual_at"), [("w", "w"), ("w", "perturbed"), ("perturbed", "perturbed")])
def test_no_grad_around_a_call_changes_nothing(jacobian_at, residual_at):
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double(), data(5)
    options = {"rho": 0.3, "jacobian_at": jacobian_at, "residual_at": residual_at}
    expected = mixed_point_gradient(model, x, LABELS, **options)
    with torch.no_grad():
        found = mixed_point_gradient(model, x, LABELS, **options)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@BOTH
@pytest.mark.parametrize("chunk_size", [None, 3, 1])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_kernels_in_groups_are_right_in_whatever_order_the_images_of_one_example_lie(engine, chunk_size):
    layers = [nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(128, 3)]
    model, x = nn.Sequential(*layers).double().to(memory_format=torch.channels_last), data(6, 4, 4)
    expected = mean_term(example_terms(model, x, LABELS, 0.3), "1-sam")
    found = mixed_point_gradient(model, x, LABELS, engine=engine, chunk_size=chunk_size, **ONE_SAM)
    assert relative_error(found, expected) <= 1e-12


@BOTH
def test_what_vmap_drops_is_not_dropped():
    model, x = Extended(), data(5)
    model.switch = True
    model.h.register_full_backward_hook(lambda _, inner, __: (inner[0] * 0.5,))
    assert error(model, x) <= 1e-12
    expected = [torch.autograd.grad(cross_entropy(model(x[i : i + 1]), LABELS[i : i + 1]), model.l.weight)[0] for i in range(4)]
    torch.testing.assert_close(
        per_example_gradients(model, x, LABELS)["l.weight"], torch.stack(expected), rtol=1e-12, atol=1e-15
    )


@BOTH
def test_weights_that_are_normalised_in_place_in_the_forward_pass_are_every_examples_own():
    class Normalised(Body):
        def forward(self, x):
            with torch.no_grad():
                self.h.weight.div_(self.h.weight.norm(dim=1, keepdim=True))
            return self.h(torch.tanh(self.b(x, x)))

    model, x = Normalised(), data(5)
    found = decompose(model, x, LABELS, engine="reference").gradient_norm
    for row, norm in enumerate(found):
        loss = cross_entropy(model(x[row : row + 1]), LABELS[row : row + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        expected = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
        torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0)


@BOTH
def test_dropout_inside_attention_over_weights_draws_one_mask_for_both_passes():
    class Prototypes(nn.Module):
        def __init__(self):
            super().__init__()
            self.kinds, self.l = nn.Parameter(torch.randn(3, 4)), nn.Linear(5, 4)

        def forward(self, x):
            kinds = self.kinds[None]
            return self.l(x) @ scaled_dot_product_attention(kinds, kinds, kinds, dropout_p=0.5)[0].t()

    parts = decompose(Prototypes(), torch.randn(4, 5), LABELS, rho=0.0)
    assert torch.equal(parts.perturbed_losses, parts.losses)


# In a process of its own: the checks of types at run time, which tests switch on, draw with Python's generator themselves.
DROPPED = """
import random, warnings
import torch
from torch import nn
from noisesam.gradients import decompose
from noisesam.gradients.engine import engine_for, proven

warnings.simplefilter("ignore")

class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.h = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        z = self.l(x)
        return self.h(torch.tanh(z) if random.random() > 0.1 else z)

engines = set()
x, y = torch.randn(4, 5).double(), torch.tensor([0, 1, 2, 0])
for seed in range(12):
    random.seed(seed)
    model = Dropped().double()
    engines.add(engine_for(model, x).name)
    for _ in range(10):
        parts = decompose(model, x, y, rho=0.0)
        torch.testing.assert_close(parts.perturbed_losses, parts.losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(parts.perturbed_gradient_norm, parts.gradient_norm, rtol=1e-12, atol=0)
print(*sorted(engines))
"""


def test_layers_dropped_by_pythons_generator_are_the_same_ones_in_both_passes():
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["fast", "reference"], "")


def test_a_model_that_draws_with_numpys_generator_is_refused_and_the_generator_put_back():
    class Noisy(Body):
        def forward(self, x):
            return self.h(torch.tanh(self.l(x)) * np.random.rand())  # noqa: NPY002

    before = np.random.get_state()[1].copy(), np.random.get_state()[2]  # noqa: NPY002
    with pytest.raises(InputError, match="NumPy"):
        decompose(Noisy(), data(5), LABELS)
    assert np.random.get_state()[2] == before[1]  # noqa: NPY002
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002


class Summed(Body):
    def forward(self, x):
        return self.h(torch.tanh(self.l(x)).cumsum(0))


class Centred(Body):
    def forward(self, x):
        z = self.l(x)
        return self.h(torch.tanh(z - z.mean(0)))


class Scaled(Body):
    """The first example of the batch below is the largest: its own output tells nothing."""

    def forward(self, x):
        return self.h(torch.tanh(self.l(x / x.detach().abs().max())))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.r, self.h = nn.LSTM(5, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        return self.h(self.r(x)[0])


@pytest.mark.parametrize(
    ("kind", "chunk_size"),
    [(kind, size) for kind in (Summed, Centred, Scaled, Recurrent) for size in (None, 2, 1) if (kind, size) != (Scaled, 1)],
)
def test_a_model_that_mixes_examples_in_one_direction_or_in_batches_of_one_is_refused(kind, chunk_size):
    x = data(5)
    x[0] *= 10
    with pytest.raises(InputError, match="mixes"):
        mixed_point_gradient(kind(), x, LABELS, chunk_size=chunk_size, **ONE_SAM)


def test_a_model_for_one_example_at_a_time_runs_in_batches_of_one():
    class Single(Body):
        def forward(self, x):
            return self.h(torch.tanh(self.l(x.view(1, 5))))

    model, x = Single(), data(5)
    assert relative_error(
        mixed_point_gradient(model, x, LABELS, chunk_size=1, **ONE_SAM),
        mean_term(example_terms(model, x, LABELS, 0.3), "1-sam"),
    ) <= 1e-12  # fmt: skip


class Centring(nn.Module):
    def __init__(self, put: bool):
        super().__init__()
        self.l, self.put = nn.Linear(5, 3), put
        self.register_buffer("m", torch.zeros(5))
        self.double()

    def forward(self, x):
        output, mean = self.l(x - self.m), x.detach().mean(0)
        if self.put:
            self.m = 0.9 * self.m + 0.1 * mean
        else:
            self.m.lerp_(mean, 0.1)
        return output


READ_AND_UPDATED = {
    "hook": lambda: nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 3)).double(),
    "put": lambda: Centring(True),
    "written": lambda: Centring(False),
}


@pytest.mark.parametrize("name", READ_AND_UPDATED)
def test_a_buffer_that_the_forward_pass_reads_and_updates_is_refused_and_left_as_it_was(name):
    model = READ_AND_UPDATED[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match="updates a buffer"):
        noisesam.methods.make("sgd", model, gradient_norms=True).backward(data(5), LABELS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("put", [True, False])
def test_questions_leave_counters_as_they_were(put):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(5, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            if put:
                self.calls = self.calls + 1
            else:
                self.calls += 1
            return self.l(x)

    model, x = Counting().double(), data(5)
    buffer = model.calls
    decompose(model, x, LABELS, rho=0.1)
    noisesam.methods.make("1-sam", model, rho=0.1).step_gradient(x, LABELS)
    assert model.calls is buffer
    assert model.calls == 0


def test_a_parameter_without_entries_is_no_obstacle():
    class Empty(Body):
        def __init__(self):
            super().__init__()
            self.none = nn.Parameter(torch.empty(0, dtype=torch.float64))

        def forward(self, x):
            return self.h(torch.tanh(self.l(x)))

    assert error(Empty(), data(5)) <= 1e-12


@BOTH
def test_a_hook_on_a_weight_after_the_first_step_is_heeded():
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double(), data(5)
    assert error(model, x) <= 1e-12
    model[0].weight.register_hook(lambda gradient: gradient * 0.5)
    assert error(model, x) <= 1e-12


@BOTH
def test_gradients_taken_inside_the_model_leave_the_memory_countable():
    class Inner(Body):
        def forward(self, x):
            return torch.func.vmap(torch.func.grad(lambda row: torch.tanh(self.l(row)).sum()))(x)[:, :3]

    model, x = Inner(), data(5)
    found = decompose(model, x, LABELS, chunk_size="auto").gradient_norm
    for row, norm in enumerate(found):
        loss = cross_entropy(model(x[row : row + 1]), LABELS[row : row + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        expected = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
        torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("nest", [lambda x: [x], lambda x: {"a": x}])
def test_tensors_inside_lists_inside_the_inputs_are_refused_at_every_chunk_size(nest, chunk_size):
    x = data(5)
    with pytest.raises(InputError, match="of tensors inside the inputs"):
        decompose(nn.Linear(5, 3).double(), (x, nest(x)), LABELS, chunk_size=chunk_size)


class Gated(Body):
    """A branch, time first, that each example opens by its first number."""

    def forward(self, x):
        gate = (x[:, 0, 0] > 0).to(x)[:, None]
        return self.h(gate * torch.tanh(self.l(x.transpose(0, 1))).sum(0) + 1)


class GatedTwice(Gated):
    """The same, and its weights are used once more without any gate."""

    def forward(self, x):
        return super().forward(x) + self.h(torch.tanh(self.l(x.mean(1))))


class GatedTwiceFirst(Gated):
    def forward(self, x):
        return self.h(torch.tanh(self.l(x.mean(1)))) + super().forward(x)


@BOTH  # while one of two uses is silent, nothing is known of it at w + eps, where the gate may be open
@pytest.mark.parametrize("build", [Gated, GatedTwice, GatedTwiceFirst])
@pytest.mark.parametrize("opened", [(1,), (0, 1, 2, 3)])
@pytest.mark.parametrize("shut_before", [True, False])
def test_a_use_that_was_silent_when_the_model_was_proven_is_compared_when_it_speaks(build, opened, shut_before):
    model, x = build(), data(4, 5)  # as many positions as examples
    x[:, 0, 0] = -1
    if shut_before:
        assert error(model, x) <= 1e-12
    x[list(opened), 0, 0] = 1
    assert error(model, x) <= 1e-12
    engine = engine_for(model, x)
    engine.at(x)
    assert engine.name == "fast"


@pytest.mark.parametrize("build", [Gated, GatedTwice])
def test_norms_of_a_use_that_was_silent_are_those_of_the_reference(build):
    model, x = build(), data(4, 5)
    x[:, 0, 0] = -1
    decompose(model, x, LABELS)
    x[2, 0, 0] = 1
    found, slow = (decompose(model, x, LABELS, rho=0.3, engine=engine) for engine in ("auto", "reference"))
    for name in ("gradient_norm", "perturbed_gradient_norm", "jacobian_perturbed_gradient_norm"):
        assert relative_error({"": getattr(found, name)}, {"": getattr(slow, name)}) <= 1e-12


def test_a_perturbation_from_outside_of_a_parameter_that_was_silent_is_exact():
    model, x = Gated(), data(4, 5)
    x[:, 0, 0] = -1
    eps = {"l.weight": torch.randn(4, 6, 5, dtype=torch.float64), "h.weight": torch.randn(4, 3, 6, dtype=torch.float64)}
    found = decompose(model, x, LABELS, perturbation=eps)
    slow = decompose(model, x, LABELS, perturbation=eps, engine="reference")
    assert relative_error({"": found.perturbed_losses}, {"": slow.perturbed_losses}) <= 1e-12


def test_a_use_that_never_speaks_is_proven_once(monkeypatch):
    model, x = Gated(), data(4, 5)
    x[:, 0, 0] = -1
    error(model, x)
    monkeypatch.setattr(proven, "prove", None)
    error(model, x)


class Energy(Body):
    """Logits with a force in them: a gradient that forward takes itself."""

    def forward(self, x):
        y = x if x.requires_grad else x.detach().requires_grad_()
        (force,) = torch.autograd.grad(torch.tanh(self.l(y)).sum(), y, create_graph=True)
        return self.h(torch.tanh(self.l(force)))


class AsksWhetherGradientsAreWanted(Body):
    def forward(self, x):
        return self.h(torch.tanh(self.l(x))) * (1.5 if torch.is_grad_enabled() else 1.0)


class TakesAnotherWayWithout(Body):
    def forward(self, x):
        return self.h(torch.tanh(self.l(x)) if torch.is_grad_enabled() else self.l(x).relu())


@BOTH
@pytest.mark.parametrize("build", [Energy, AsksWhetherGradientsAreWanted, TakesAnotherWayWithout])
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("term", ["1-sam", "l-sam", "j-sam"])
def test_the_perturbed_pass_computes_what_the_model_computes_with_gradients(build, engine, term):
    model, x = build(), data(5)
    points = {"1-sam": ("perturbed", "perturbed"), "l-sam": ("w", "perturbed"), "j-sam": ("perturbed", "w")}[term]
    found = mixed_point_gradient(
        model, x, LABELS, rho=0.3, jacobian_at=points[0], residual_at=points[1], engine=engine
    )  # fmt: skip
    assert relative_error(found, mean_term(example_terms(model, x, LABELS, 0.3), term)) <= 1e-12


class DecidedByActivations(Body):
    """Another function once an activation is larger than any has been at w."""

    bound = 0.0

    def forward(self, x):
        z = self.l(x)
        return self.h(torch.tanh(z) if float(z.detach().abs().max()) < self.bound else self.b(x, x).relu())


@BOTH
def test_a_model_that_goes_another_way_at_perturbed_weights_falls_back_in_that_step():
    model, x = DecidedByActivations(), data(5)[:1].expand(4, 5).clone()
    model.bound = float(model.l(x).detach().abs().max()) * 1.05
    assert engine_for(model, x).name == "fast"
    for term, points in {"l-sam": ("w", "perturbed"), "j-sam": ("perturbed", "w")}.items():
        found = mixed_point_gradient(model, x, LABELS, rho=1.0, jacobian_at=points[0], residual_at=points[1])
        assert relative_error(found, mean_term(example_terms(model, x, LABELS, 1.0), term)) <= 1e-12


def nested(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([torch.randn(length, 5) for length in (2, 3, 1, 2)], layout=layout)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage", "ignore:Sparse CSR")
@pytest.mark.parametrize("chunk_size", [None, 1, "auto"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(4, 5).to_sparse(),
        lambda: torch.randn(4, 5).to_sparse_csr(),
        lambda: nested(torch.jagged),
        lambda: nested(torch.strided),
    ],
)
def test_inputs_that_are_not_dense_are_refused_in_words(make, chunk_size):
    with pytest.raises(InputError, match=r"dense tensors.*to_dense\(\)"):
        mixed_point_gradient(nn.Linear(5, 3), make(), LABELS, **ONE_SAM, chunk_size=chunk_size)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_layer_is_refused_until_it_has_weights():
    model, x = nn.Sequential(nn.LazyLinear(3)).double(), data(5)
    for call in (
        lambda: mixed_point_gradient(model, x, LABELS, **ONE_SAM),
        lambda: noisesam.SAM(model, rho=0.1).step_gradient(x, LABELS),
    ):
        with pytest.raises(InputError, match=r"'0.weight' of a lazy layer.*model\(inputs\)"):
            call()
    model(x)
    assert error(model, x) <= 1e-12
