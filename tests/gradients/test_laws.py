"""Laws T1-T8 of docs/mechanism.md, through the public interface, in float64.

Margins stay below 12 wherever a residual meets autograd. Identities hold to 1e-10 relative; most of what is lost is the
rounding of the twin itself.
"""

from __future__ import annotations

import math

import pytest
import torch
from reference.loop import example_terms, mean_term, norm, relative_error
from torch import Tensor, nn

import noisesam
from noisesam.gradients import mixed_point_gradient
from noisesam.methods import make

TOLERANCE = 1e-10


def gradient_of(name: str, model: nn.Module, x: Tensor, y: Tensor, **options: object) -> dict[str, Tensor]:
    model.zero_grad()
    make(name, model, **options).backward(x, y)
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[0, 1, 2])
def generator(request):
    return torch.Generator().manual_seed(request.param)


def draw(generator, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def linear(generator, d=7):
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(draw(generator, 1, d) * 0.5)
    return model


def two_layer(generator, d=6, hidden=5, classes=1, bias=False):
    model = nn.Sequential(nn.Linear(d, hidden, bias=bias), nn.Linear(hidden, classes, bias=bias)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw(generator, *p.shape) * 0.6)
    return model


def test_t1_one_sam_is_margin_shifted_sgd_on_linear_models(generator):
    model, x, rho = linear(generator), draw(generator, 9, 7), 0.3
    y = torch.randint(0, 2, (9,), generator=generator)
    t = (2 * y - 1).double()
    margins = t * model(x).detach()[:, 0]
    expected = -(t * torch.sigmoid(-margins + rho * x.norm(dim=1))) @ x / 9
    for name in ("1-sam", "l-sam"):
        found = gradient_of(name, model, x, y, rho=rho, loss="logistic")["weight"][0]
        assert (found - expected).norm() <= TOLERANCE * expected.norm()


def test_t1_j_sam_is_sgd_on_linear_models(generator):
    model, x = linear(generator), draw(generator, 9, 7)
    y = torch.randint(0, 2, (9,), generator=generator)
    assert (
        relative_error(
            gradient_of("j-sam", model, x, y, rho=0.3, loss="logistic"), gradient_of("sgd", model, x, y, loss="logistic")
        )
        <= TOLERANCE
    )


def test_t2_the_logit_weight_grows_with_the_margin_from_one_to_e_to_the_shift():
    d, rho = 4, 0.7
    x = torch.full((200, d), 0.5, dtype=torch.float64)  # equal norms: rho ||x|| = rho
    y = torch.ones(200, dtype=torch.long)
    weights = []
    for z in torch.linspace(-35, 35, 200, dtype=torch.float64):
        model = nn.Linear(d, 1, bias=False).double()
        with torch.no_grad():
            model.weight.fill_(float(z) / (0.5 * d))
        weights.append(noisesam.decompose(model, x[:1], y[:1], loss="logistic", rho=rho).logit_weight.item())
    weights = torch.tensor(weights, dtype=torch.float64)
    closed = torch.sigmoid(rho - torch.linspace(-35, 35, 200, dtype=torch.float64)) / torch.sigmoid(
        -torch.linspace(-35, 35, 200, dtype=torch.float64)
    )
    torch.testing.assert_close(weights, closed, rtol=1e-10, atol=0)
    # Strictly increasing while its distance to the limits exceeds a rounding (|margin| < 30 leaves 1e-13).
    inner = weights[(torch.linspace(-35, 35, 200).abs() < 30).nonzero().flatten()]
    assert (inner.diff() > 0).all()
    assert (weights >= 1).all()
    # A logit of size 35 is rounded to 35 eps before it is exponentiated.
    assert (weights <= math.exp(rho) * (1 + 2e-14)).all()


def test_t3_batch_sam_shifts_every_margin_by_its_projection_on_the_batch_gradient(generator):
    model, x, rho = linear(generator), draw(generator, 9, 7), 0.3
    y = torch.randint(0, 2, (9,), generator=generator)
    t = (2 * y - 1).double()
    margins = t * model(x).detach()[:, 0]
    g = -(t * torch.sigmoid(-margins)) @ x / 9
    shift = -rho * t * (x @ (g / g.norm()))
    assert (shift.abs() <= rho * x.norm(dim=1)).all()
    expected = -(t * torch.sigmoid(-margins + shift)) @ x / 9
    found = gradient_of("sam", model, x, y, rho=rho, loss="logistic")["weight"][0]
    assert (found - expected).norm() <= TOLERANCE * expected.norm()


@pytest.mark.parametrize("name", ["1-sam", "l-sam", "j-sam"])
def test_t4_two_layer_linear_networks_have_closed_forms(generator, name):
    rho = 0.2
    model, x = two_layer(generator), draw(generator, 8, 6)
    y = torch.randint(0, 2, (8,), generator=generator)
    W, v = model[0].weight.detach(), model[1].weight.detach()[0]
    t = (2 * y - 1).double()
    z = x @ W.T
    f = z @ v
    a = (z.square().sum(1) + x.square().sum(1) * v.square().sum()).sqrt()
    moved_f = f * (1 + rho**2 * x.square().sum(1) / a.square()) - t * rho * a
    torch.testing.assert_close(
        noisesam.decompose(model, x, y, loss="logistic", rho=rho).perturbed_losses,
        -torch.nn.functional.logsigmoid(t * moved_f),
        rtol=1e-10,
        atol=0,
    )
    s = torch.sigmoid(-t * (f if name == "j-sam" else moved_f))
    push = 0.0 if name == "l-sam" else rho / a
    g_W = -torch.einsum("n,p,nd->pd", s * t, v, x) / 8
    g_W += torch.einsum("n,np,nd->pd", push * s * torch.ones(8), z, x) / 8
    g_v = -(s * t) @ z / 8 + (push * s * x.square().sum(1)).sum() * v / 8
    found = gradient_of(name, model, x, y, rho=rho, loss="logistic")
    assert relative_error(found, {"0.weight": g_W, "1.weight": g_v[None]}) <= TOLERANCE


def test_t4_j_sam_is_the_gradient_of_the_loss_plus_a_stopped_residual_times_the_gradient_norm_of_the_logit(generator):
    rho = 0.2
    model, x = two_layer(generator), draw(generator, 8, 6)
    y = torch.randint(0, 2, (8,), generator=generator)
    t = (2 * y - 1).double()
    W, v = (p.detach().clone().requires_grad_() for p in model.parameters())
    z = x @ W.T
    f = z @ v[0]
    s = torch.sigmoid(-t * f).detach()
    gradient_norm = (z.square().sum(1) + x.square().sum(1) * v.square().sum()).sqrt()
    objective = (-torch.nn.functional.logsigmoid(t * f) + rho * s * gradient_norm).mean()
    g_W, g_v = torch.autograd.grad(objective, (W, v))
    found = gradient_of("j-sam", model, x, y, rho=rho, loss="logistic")
    assert relative_error(found, {"0.weight": g_W, "1.weight": g_v}) <= TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("classes", [1, 4])
def test_t4_t5_the_adaptive_regulariser_is_j_sam_on_two_layer_linear_networks(generator, classes, bias):
    model, x = two_layer(generator, classes=classes, bias=bias), draw(generator, 8, 6)
    y = torch.randint(0, max(classes, 2), (8,), generator=generator)
    loss = "logistic" if classes == 1 else "cross_entropy"
    j_sam = gradient_of("j-sam", model, x, y, rho=0.2, loss=loss)
    regularised = gradient_of("reg-sgd", model, x, y, mode="adaptive", rho=0.2, loss=loss)
    assert relative_error(regularised, j_sam) <= TOLERANCE


def test_t5_multiclass_two_layer_linear_networks_have_a_closed_form(generator):
    rho = 0.2
    model, x = two_layer(generator, classes=4), draw(generator, 8, 6)
    y = torch.randint(0, 4, (8,), generator=generator)
    W, V = (p.detach() for p in model.parameters())
    z = x @ W.T
    r = (z @ V.T).softmax(1) - torch.nn.functional.one_hot(y, 4)
    pulled = r @ V
    N = (r.square().sum(1) * z.square().sum(1) + pulled.square().sum(1) * x.square().sum(1)).sqrt()
    g_W = pulled.T @ x + (rho * r.square().sum(1) / N * z.T) @ x
    g_V = r.T @ z + (rho * x.square().sum(1) / N * r.T) @ r @ V
    found = gradient_of("j-sam", model, x, y, rho=rho)
    assert relative_error(found, {"0.weight": g_W / 8, "1.weight": g_V / 8}) <= TOLERANCE


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_t6_j_sam_is_sgd_plus_the_gradient_of_the_gradient_norm_up_to_rho_squared(seed):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 1)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(draw(generator, *p.shape) * 0.7)
    x, y = draw(generator, 5, 4), torch.randint(0, 2, (5,), generator=generator)
    t = (2 * y - 1).double()
    first_order: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for i in range(5):
        f = model(x[i : i + 1])[0, 0]
        s = torch.sigmoid(-t[i] * f).detach()
        g = torch.autograd.grad(f, list(parameters.values()), create_graph=True)
        size = torch.sqrt(sum(v.square().sum() for v in g))
        for name, value in zip(
            parameters, torch.autograd.grad(s * size, list(parameters.values()), allow_unused=True), strict=True
        ):
            value = torch.zeros_like(parameters[name]) if value is None else value
            first_order[name] = first_order.get(name, 0) + value / 5
    sgd = gradient_of("sgd", model, x, y, loss="logistic")
    remainders = []
    for rho in (1e-2, 1e-3):
        j_sam = gradient_of("j-sam", model, x, y, rho=rho, loss="logistic")
        remainders.append(float(norm({k: j_sam[k] - sgd[k] - rho * first_order[k] for k in sgd})))
    assert 1.9 <= math.log10(remainders[0] / remainders[1]) <= 2.1


def test_t7_perturbing_a_linear_head_alone_penalises_the_last_hidden_activation(generator):
    rho = 0.3
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh()).double()
    head = nn.Linear(5, 3).double()
    model = nn.Sequential(backbone, head)
    x, y = draw(generator, 7, 6), torch.randint(0, 3, (7,), generator=generator)
    # rho zero for the backbone, with the norm of the HEAD's gradient: freeze the backbone for the perturbation.
    with torch.no_grad():
        h = backbone(x)
    eps = noisesam.methods.make("1-sam", head, rho=rho).perturbation(h, y)
    assert eps is not None
    perturbation = {f"1.{name}": value for name, value in eps.items()}
    h = backbone(x)
    r = (model(x).softmax(1) - torch.nn.functional.one_hot(y, 3)).detach()
    N = r.norm(dim=1) * (h.square().sum(1) + 1).sqrt().detach()
    sgd_and_penalty = (torch.nn.functional.cross_entropy(model(x), y, reduction="none")
                       + rho * r.square().sum(1) / N * 0.5 * h.square().sum(1)).mean()  # fmt: skip
    expected = dict(
        zip(dict(backbone.named_parameters()), torch.autograd.grad(sgd_and_penalty, list(backbone.parameters())), strict=True)
    )
    # J_i(w + eps_i)^T r_i(w) on the backbone, one example at a time.
    found = {name: torch.zeros_like(p) for name, p in backbone.named_parameters()}
    for i in range(7):
        moved = {name: p + perturbation[name][i] if name in perturbation else p for name, p in model.named_parameters()}
        output = torch.func.functional_call(model, moved, (x[i : i + 1],))
        pulled = torch.autograd.grad(output, list(backbone.parameters()), r[i : i + 1])
        for name, value in zip(found, pulled, strict=True):
            found[name] += value / 7
    assert relative_error(found, expected) <= TOLERANCE


def test_t7_j_sam_with_the_backbone_held_adds_the_penalty_on_the_last_hidden_activation(generator):
    rho = 0.3
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh()).double()
    model = nn.Sequential(backbone, nn.Linear(5, 3).double())
    x, y = draw(generator, 7, 6), torch.randint(0, 3, (7,), generator=generator)
    groups = [{"params": list(backbone.parameters()), "rho": 0.0}]
    found = gradient_of("j-sam", model, x, y, rho=rho, parameter_groups=groups)
    # One global norm: that of the whole gradient, although the head alone is moved.
    N = noisesam.decompose(model, x, y).gradient_norm
    h = backbone(x)
    r = (model(x).softmax(1) - torch.nn.functional.one_hot(y, 3)).detach()
    penalty = rho * r.square().sum(1) / N * 0.5 * h.square().sum(1)
    objective = (torch.nn.functional.cross_entropy(model(x), y, reduction="none") + penalty).mean()
    expected = torch.autograd.grad(objective, list(backbone.parameters()))
    names = [f"0.{name}" for name, _ in backbone.named_parameters()]
    assert relative_error({name: found[name] for name in names}, dict(zip(names, expected, strict=True))) <= TOLERANCE


def test_t7_through_parameter_groups_a_radius_of_zero_leaves_the_backbone_where_it_is(generator):
    backbone = nn.Sequential(nn.Linear(6, 5), nn.Tanh()).double()
    head = nn.Linear(5, 3).double()
    model = nn.Sequential(backbone, head)
    x, y = draw(generator, 7, 6), torch.randint(0, 3, (7,), generator=generator)
    groups = [{"params": list(backbone.parameters()), "rho": 0.0}]
    eps = make("j-sam", model, rho=0.3, parameter_groups=groups).perturbation(x, y)
    assert eps is not None
    assert all(float(eps[f"0.{name}"].norm()) == 0 for name, _ in backbone.named_parameters())
    assert float(eps["1.weight"].norm()) > 0


@pytest.mark.parametrize("name", ["sgd", "1-sam", "l-sam", "j-sam"])
def test_t8_clean_and_noisy_parts_sum_to_the_batch_gradient(generator, name):
    model = two_layer(generator, classes=4, bias=True)
    x, y = draw(generator, 10, 6), torch.randint(0, 4, (10,), generator=generator)
    noisy = torch.zeros(10, dtype=torch.bool)
    noisy[[1, 4, 5]] = True
    options = {} if name == "sgd" else {"rho": 0.2}
    whole = gradient_of(name, model, x, y, **options)
    clean_part, noisy_part = (gradient_of(name, model, x[rows], y[rows], **options) for rows in (~noisy, noisy))
    assert relative_error({k: 0.7 * clean_part[k] + 0.3 * noisy_part[k] for k in whole}, whole) <= TOLERANCE


def test_all_methods_are_one_equation(generator):
    model = two_layer(generator, classes=4, bias=True)
    x, y = draw(generator, 6, 6), torch.randint(0, 4, (6,), generator=generator)
    rows = example_terms(model, x, y, 0.2)
    places = {"sgd": ("w", "w"), "1-sam": ("perturbed", "perturbed"), "l-sam": ("w", "perturbed"), "j-sam": ("perturbed", "w")}
    for name, (jacobian, residual) in places.items():
        found = mixed_point_gradient(model, x, y, rho=0.2, jacobian_at=jacobian, residual_at=residual)
        assert relative_error(found, mean_term(rows, name)) <= TOLERANCE
