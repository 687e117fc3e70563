"""Products with shared weights: float32's numbers whichever library computes them, in every memory order, twice the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference.dispatched import Dispatched
from torch import Tensor

from noisesam.gradients.engine import products
from noisesam.methods import make
from noisesam.models import make as make_model

M, D, P = 160, 192, 256  # 7.9 million multiplications, 110 for each entry of a weight's gradient
MANY = 1024

needs_avx512 = pytest.mark.skipif(
    not products._quicker(), reason="this processor has no AVX-512, or this build of torch no oneDNN: torch's own products run"
)


@pytest.fixture(autouse=True)
def small_products_count_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of these tests are, beside MKL as elsewhere."""
    monkeypatch.setattr(products, "WORTH_THE_CALL_BESIDE_MKL", products.WORTH_THE_CALL)


@pytest.fixture(params=["a processor of MKL's maker", "another processor"])
def at_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both sides of the choice, whatever processor runs the test."""
    found = request.param == "a processor of MKL's maker"
    monkeypatch.setattr(products, "mkl_is_at_home", lambda: found)
    return found


Product = Callable[[Tensor, Tensor], Tensor]

FORMS: dict[str, tuple[Product, tuple[int, int], tuple[int, int], Product]] = {
    "linear": (lambda x, w: products.linear(x, w, None), (M, D), (P, D), lambda x, w: x @ w.t()),
    "linear with a bias": (lambda x, w: products.linear(x, w, w[:, 0]), (M, D), (P, D), lambda x, w: x @ w.t() + w[:, 0]),
    "matmul": (products.matmul, (M, D), (D, P), lambda x, w: x @ w),
    "add_linear_": (
        lambda x, w: products.add_linear_(x[:, :1].repeat(1, len(w)), x, w), (M, D), (P, D), lambda x, w: x @ w.t() + x[:, :1]
    ),
    "transposed_matmul": (products.transposed_matmul, (M, P), (M, D), lambda a, b: a.t() @ b),
    "transposed_matmul of many rows": (products.transposed_matmul, (MANY, 72), (MANY, 40), lambda a, b: a.t() @ b),
}  # fmt: skip

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "in rows": lambda values: values,
    "in columns": lambda values: values.t().contiguous().t(),
    "a part of a larger one": lambda values: torch.cat([values, values], 1)[:, : values.shape[1]],
    "every second entry": lambda values: values.repeat_interleave(2, dim=1)[:, ::2],
    "one row for all": lambda values: values[:1].expand_as(values),
}


def onednn(calls: Dispatched) -> bool:
    """Whether oneDNN's linear map or a convolution was among them."""
    return any("_linear_pointwise" in name or "convolution" in name for name in calls.names)


def drawn(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("at_home")
def test_a_large_product_errs_by_no_more_than_float32_may(form: str, first: str, second: str) -> None:
    function, left_shape, right_shape, exact = FORMS[form]
    left, right = LAYOUTS[first](drawn(left_shape, 0)), LAYOUTS[second](drawn(right_shape, 1))
    found = function(left, right)
    # k products summed in any order err by at most k u / (1 - k u) times the sum of their sizes, u half of epsilon.
    terms = max(left_shape[0], D) + 2
    unit = terms * torch.finfo(torch.float32).eps / 2
    allowed = unit / (1 - unit) * exact(left.double().abs(), right.double().abs())
    assert found.dtype == torch.float32
    assert ((found.double() - exact(left.double(), right.double())).abs() <= allowed).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("at_home")
def test_two_calls_give_the_same_bits(form: str) -> None:
    function, left_shape, right_shape, _ = FORMS[form]
    left, right = drawn(left_shape, 0), drawn(right_shape, 1)
    assert torch.equal(function(left, right), function(left, right))


@needs_avx512
@pytest.mark.parametrize("form", FORMS)
def test_a_large_product_in_float32_goes_to_onednn_where_mkl_is_not_at_home(form: str, at_home: bool) -> None:
    """On a processor of its own maker MKL keeps all but the linear map, whose bias oneDNN adds on the way."""
    function, left_shape, right_shape, _ = FORMS[form]
    with Dispatched() as calls:
        function(drawn(left_shape, 0), drawn(right_shape, 1))
    assert onednn(calls) == (not at_home or form.startswith("linear"))


@needs_avx512
def test_wheremkl_is_at_home_a_linear_map_has_to_be_larger(at_home: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "WORTH_THE_CALL_BESIDE_MKL", M * D * P + 1)
    with Dispatched() as calls:
        products.linear(drawn((M, D), 0), drawn((P, D), 1), None)
    assert onednn(calls) is not at_home


def test_the_maker_is_read_from_the_processor_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for described, home in (("vendor_id\t: GenuineIntel", True), ("vendor_id\t: AuthenticAMD", False)):
        monkeypatch.setattr(products.Path, "read_text", lambda *_, text=described, **__: text)
        products.mkl_is_at_home.cache_clear()
        assert products.mkl_is_at_home() is home
    products.mkl_is_at_home.cache_clear()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_small_or_of_another_type_stays_with_torch_to_the_bit(form: str) -> None:
    function, left_shape, right_shape, exact = FORMS[form]
    left, right = drawn(left_shape, 0), drawn(right_shape, 1)
    with Dispatched() as calls:
        torch.testing.assert_close(function(left.double(), right.double()), exact(left.double(), right.double()))
        function(left.bfloat16(), right.bfloat16())
        few = slice(0, 2 if form.endswith("rows") else 8)
        small = (left[:, few], right[few]) if form == "matmul" else (left[:, few], right[:, few])
        function(*small)
    assert not onednn(calls)


def test_onednn_switched_off_is_not_used() -> None:
    torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags warns of GPUs of another maker
    try:
        with Dispatched() as calls:
            products.linear(drawn((M, D), 0), drawn((P, D), 1), None)
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert not onednn(calls)


def test_a_gradient_of_narrow_factors_stays_with_torch() -> None:
    """Both operands would be written out anew for few multiplications each."""
    with Dispatched() as calls:
        products.transposed_matmul(drawn((600, 8), 0), drawn((600, 640), 1))
    assert not onednn(calls)


@pytest.mark.parametrize("name", ["1-sam", "l-sam", "j-sam"])
def test_a_step_of_a_wide_model_in_float32_is_the_step_in_float64(name: str) -> None:
    model = make_model("mlp", input_shape=(96,), classes=4, hidden=(256, 256), seed=0)
    inputs, targets = drawn((96, 96), 2), torch.arange(96) % 4
    with Dispatched() as calls:
        result = make(name, model, rho=0.1).backward(inputs, targets)
    assert onednn(calls) or not products._quicker()
    single = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    model.double().zero_grad()
    exact = make(name, model, rho=0.1).backward(inputs.double(), targets)
    double = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    # A hundred roundings of 6e-8 in a row, as in three passes through three layers, make 6e-6.
    assert (single - double).norm() <= 6e-6 * double.norm()
    assert abs(float(result.loss) - float(exact.loss)) <= 6e-6 * float(exact.loss)
