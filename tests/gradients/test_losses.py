"""Laws of the losses and residuals."""

from __future__ import annotations

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisesam.errors import InputError
from noisesam.gradients.losses import resolve, stable_norm
from noisesam.methods import make

mpmath.mp.dps = 60


@pytest.mark.parametrize("margin", [-40.0, -20.0, -3.0, 0.0, 3.0, 12.0, 16.0, 20.0, 30.0, 40.0])
def test_logistic_residual_and_loss_equal_the_closed_form_at_any_margin(margin):
    loss = resolve("logistic")
    for label in (0, 1):
        sign = 2 * label - 1
        logits = torch.tensor([[sign * margin]], dtype=torch.float64)
        exact = -sign / (1 + mpmath.exp(mpmath.mpf(margin)))
        found = loss.residual(logits, torch.tensor([label]))
        # A handful of roundings of exp and division in float64.
        assert abs(mpmath.mpf(found.item()) - exact) <= 4e-16 * 4 * abs(exact)
        exact_loss = mpmath.log(1 + mpmath.exp(-mpmath.mpf(margin)))
        assert abs(mpmath.mpf(loss(logits, torch.tensor([label])).item()) - exact_loss) <= 2e-15 * exact_loss


@pytest.mark.parametrize("margin", [-40.0, -3.0, 0.0, 3.0, 16.0, 30.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cross_entropy_residual_and_loss_equal_the_closed_form_at_any_margin(margin, dtype):
    logits = torch.tensor([[margin, 0.0, -1.0, 0.5]], dtype=dtype)
    values = [mpmath.mpf(v) for v in logits[0].double().tolist()]
    total = sum(mpmath.exp(v) for v in values)
    exact = [mpmath.exp(v) / total - (1 if k == 0 else 0) for k, v in enumerate(values)]
    found = resolve("cross_entropy").residual(logits, torch.tensor([0]))[0].double().tolist()
    # exp of a number of size 40 loses 40 roundings of its argument.
    tolerance = 100 * torch.finfo(dtype).eps
    assert all(abs(mpmath.mpf(f) - e) <= tolerance * abs(e) for f, e in zip(found, exact, strict=True))
    exact_loss = -mpmath.log(mpmath.exp(values[0]) / total)
    loss = resolve("cross_entropy")(logits, torch.tensor([0])).item()
    assert abs(mpmath.mpf(loss) - exact_loss) <= tolerance * exact_loss


def test_autograd_loses_the_residual_that_the_closed_form_keeps():
    logits = torch.tensor([[20.0, 0.0]], requires_grad=True)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] == 0  # the naive twin: exactly zero in float32
    assert resolve("cross_entropy").residual(logits, torch.tensor([0]))[0, 0] < 0


@pytest.mark.parametrize(("margin", "low", "high"), [(16.0, 1e-11, 1e-8), (30.0, 1e-5, 1e-2)])
def test_autograd_loses_digits_of_a_fitted_residual_in_float64(margin, low, high):
    logits = torch.tensor([[margin, 0.0]], dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    exact = -1 / (1 + mpmath.exp(mpmath.mpf(margin)))
    error = abs((mpmath.mpf(logits.grad[0, 0].item()) - exact) / exact)
    assert low < error < high
    ours = resolve("cross_entropy").residual(logits, torch.tensor([0]))[0, 0].item()
    assert abs((mpmath.mpf(ours) - exact) / exact) < 1e-14


@given(n=st.integers(1, 7), classes=st.integers(2, 6), seed=st.integers(0, 10_000))
def test_named_residuals_equal_the_gradient_of_the_loss(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, classes, (n,), generator=generator)
    one, signs = logits[:, :1], torch.randint(0, 2, (n,), generator=generator)
    for name, f, y in (
        ("cross_entropy", logits, targets),
        ("mse", logits, targets),
        ("logistic", one, signs),
        ("mse", one, signs),
    ):
        loss = resolve(name)
        expected = resolve(lambda f, y, loss=loss: loss(f, y)).residual(f, y)
        torch.testing.assert_close(loss.residual(f, y), expected, rtol=1e-12, atol=1e-14)


def test_a_residual_of_cross_entropy_sums_to_exactly_zero_but_for_rounding():
    residual = resolve("cross_entropy").residual(torch.randn(50, 10), torch.randint(0, 10, (50,)))
    assert residual.sum(1).abs().max() < 1e-6  # ten float32 roundings of numbers below one


def test_stable_norm_survives_numbers_whose_squares_underflow():
    rows = torch.tensor([[3e-30, 4e-30], [0.0, 0.0], [3.0, 4.0]])
    assert torch.linalg.vector_norm(rows[0]) != 5e-30  # the naive twin
    torch.testing.assert_close(stable_norm(rows), torch.tensor([5e-30, 0.0, 5.0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("loss", "logits", "targets", "message"),
    [
        ("cross_entropy", torch.zeros(3, 2), torch.tensor([0, 1, 2]), "Labels out of range at 1 row.*first: 2.*from 0 to 1"),
        ("cross_entropy", torch.zeros(3, 2), torch.tensor([0.0, 1.0, 1.0]), "dtype torch.float32.*integer class labels"),
        ("cross_entropy", torch.zeros(3, 1), torch.tensor([0, 0, 0]), "loss='logistic'"),
        ("cross_entropy", torch.zeros(3, 2), torch.tensor([0, 1]), r"shape \(2,\) for 3 examples"),
        ("logistic", torch.zeros(3, 2), torch.tensor([0, 1, 1]), "classes=1"),
        ("logistic", torch.zeros(3, 1), torch.tensor([0, 1, -1]), "out of range"),
        (lambda f, y: f.sum(), torch.zeros(3, 2), torch.tensor([0, 1, 1]), "reduction='none'"),
        ("mse", torch.zeros(3, 2), torch.zeros(3, 3), "outputs' shape"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(loss, logits, targets, message):
    with pytest.raises(InputError, match=message):
        resolve(loss)(logits, targets)


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'cross_entropy'"):
        resolve("crossentropy")


def hardest(losses: torch.Tensor) -> torch.Tensor:
    """Keep the four largest losses of five."""
    return losses * (losses >= losses.detach().topk(4).values[-1])


@pytest.mark.parametrize("method", ["1-sam", "sgd"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda f, _: f.detach().sum(1), "no gradient at the logits.*detach"),
        (lambda f, _: (f - f.mean(0)).square().sum(1), "mixes the examples of a batch.*Remove what computes"),
        (lambda f, y: hardest(torch.nn.functional.cross_entropy(f, y, reduction="none")), "mixes the examples of a batch"),
        (lambda f, y: torch.nn.functional.cross_entropy(f, y, reduction="none") / y.bincount()[y], "mixes the examples"),
    ],
    ids=["detached", "mixing", "the hardest alone", "balanced within the batch"],
)
def test_a_loss_without_a_residual_of_its_own_is_refused(function, message, method):
    model = torch.nn.Linear(4, 3)
    with pytest.raises(InputError, match=message):
        make(method, model, loss=function).backward(torch.randn(5, 4), torch.arange(5) % 3)


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int16])
def test_labels_of_a_type_that_is_no_position_are_refused(kind):
    with pytest.raises(InputError, match=r"Labels of dtype .*int64 or int32.*targets\.long\(\)"):
        make("1-sam", torch.nn.Linear(4, 3)).backward(torch.randn(2, 4), torch.tensor([0, 1]).to(kind))


def test_a_loss_that_begins_to_mix_with_other_labels_is_refused_then():
    def masked(logits, targets):
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-1)
        return losses * len(targets) / (targets >= 0).sum()

    loss, logits = resolve(masked), torch.randn(4, 3, dtype=torch.float64)
    loss.residual(logits, torch.tensor([0, 1, 2, 0]))  # all labels count: each loss is its own
    with pytest.raises(InputError, match="mixes the examples"):
        loss.residual(logits, torch.tensor([0, 1, 2, -1]))


def test_a_loss_of_a_trainable_tensor_beside_the_logits_is_refused():
    temperature = torch.nn.Parameter(torch.zeros(()))
    loss = resolve(
        lambda logits, targets: torch.nn.functional.cross_entropy(logits * temperature.exp(), targets, reduction="none")
    )
    with pytest.raises(InputError, match=r"trainable tensor beside the logits.*detach"):
        loss.residual(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
