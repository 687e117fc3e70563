"""Every tracked quantity against its slow twin in tests/reference/tracking_twin.py, in float64."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from noisesam import models
from noisesam.data import NoisyDataset
from noisesam.errors import InputError
from noisesam.runs.schema import EXAMPLES_COLUMNS, METRICS, METRICS_COLUMNS
from noisesam.tracking import QUANTITIES, Tracker

_path = Path(__file__).parent.parent / "reference" / "tracking_twin.py"
_spec = importlib.util.spec_from_file_location("tracking_twin", _path)
twin = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(twin)

EXACT = 1e-10  # float64 through a few hundred operations; the twin's autograd residual costs 1e-11 at these margins
RHO = 0.15


def probe_of(classes, *, size=12, shape=(6,), seed=0, clean=True):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
    truth = torch.randint(0, classes, (size,), generator=generator)
    labels = truth.clone()
    labels[::3] = (labels[::3] + 1) % classes
    return NoisyDataset(
        inputs,
        labels,
        clean_labels=truth if clean else None,
        index=torch.arange(size) * 7 + 3,
        classes=tuple(str(k) for k in range(classes)),
    )


def model_of(name, classes, shape=(6,), **options):
    return models.make(name, input_shape=shape, classes=classes, seed=3, **options).double()


SETTINGS = {
    "mlp": ("mlp", 4, "cross_entropy", (6,), {"hidden": [5, 7]}),
    "one logit": ("mlp", 1, "logistic", (6,), {"hidden": [5]}),
    "two-layer linear": ("two-layer-linear", 3, "cross_entropy", (6,), {"width": 5}),
    "convolutional": ("small-cnn", 3, "cross_entropy", (1, 8, 8), {}),
}


@pytest.fixture(params=SETTINGS, ids=list(SETTINGS))
def setting(request):
    name, classes, loss, shape, options = SETTINGS[request.param]
    model = model_of(name, classes, shape, **options)
    probe = probe_of(max(classes, 2), shape=shape)
    return model, probe, loss


def values(tracker, metric):
    rows = tracker.metrics.query("metric == @metric")
    return dict(zip(rows["group"], rows["value"], strict=True))


def masks(probe):
    noisy = probe.is_noisy.numpy()
    return {"all": np.ones_like(noisy), "clean": ~noisy, "noisy": noisy}


def test_example_columns_equal_the_loop_over_examples(setting):
    model, probe, loss = setting
    tracker = Tracker(model, probe, loss=loss, rho=RHO)
    assert tracker.observe(0, 0)
    expected = twin.example_table(model, probe.inputs, probe.labels, loss, RHO)
    for name, column in expected.items():
        if name != "perturbed_residual_norm":
            np.testing.assert_allclose(tracker.examples[name], column, rtol=EXACT, atol=EXACT, err_msg=name)
    np.testing.assert_array_equal(tracker.examples["example"], probe.index)
    np.testing.assert_array_equal(tracker.examples["label"], probe.labels)
    np.testing.assert_array_equal(tracker.examples["clean_label"], probe.clean_labels)


def test_group_values_equal_the_loop_over_groups(setting):
    model, probe, loss = setting
    tracker = Tracker(model, probe, loss=loss, rho=RHO)
    tracker.measure(0, 0)
    table = twin.example_table(model, probe.inputs, probe.labels, loss, RHO)
    means = [
        "residual_norm",
        "gradient_norm",
        "sam_gradient_norm",
        "one_sam_gradient_norm",
        "l_sam_gradient_norm",
        "j_sam_gradient_norm",
        "sharpness",
    ]
    for group, mask in masks(probe).items():
        got = {metric: values(tracker, metric)[group] for metric in [*means, "zero_residuals"]}
        for metric in means:
            assert got[metric] == pytest.approx(table[metric][mask].mean(), rel=EXACT, abs=EXACT)
        assert got["zero_residuals"] == 0
        ratios = {
            "logit_weight": table["perturbed_residual_norm"][mask].mean() / table["residual_norm"][mask].mean(),
            "jacobian_weight": table["j_sam_gradient_norm"][mask].mean() / table["gradient_norm"][mask].mean(),
            "logit_weight_median": np.median(table["logit_weight"][mask]),
            "jacobian_weight_median": np.median(table["jacobian_weight"][mask]),
        }
        for metric, expected in ratios.items():
            assert values(tracker, metric)[group] == pytest.approx(expected, rel=EXACT)


def test_cosines_and_batch_sharpness_equal_autograd_on_whole_groups(setting):
    model, probe, loss = setting
    tracker = Tracker(model, probe, loss=loss, rho=RHO, batch_size=5)
    tracker.measure(0, 0)
    gradients = {
        group: twin.mean_gradient(model, probe.inputs[torch.from_numpy(mask)], probe.labels[torch.from_numpy(mask)], loss)
        for group, mask in masks(probe).items()
    }
    assert values(tracker, "gradient_cosine")["all"] == pytest.approx(
        twin.cosine(gradients["clean"], gradients["noisy"]), abs=EXACT
    )
    for group in ("clean", "noisy"):
        # Without a method the step is the plain gradient of the probe set.
        expected = twin.cosine(gradients[group], gradients["all"])
        assert values(tracker, "step_cosine")[group] == pytest.approx(expected, abs=EXACT)
    other = twin.moved(model, gradients["all"], RHO)
    expected = twin.mean_loss(other, probe.inputs, probe.labels, loss) - twin.mean_loss(model, probe.inputs, probe.labels, loss)
    assert values(tracker, "batch_sharpness")["all"] == pytest.approx(expected, rel=1e-8)  # a difference of two losses


def test_norms_and_feature_rank_equal_their_definitions(setting):
    model, probe, loss = setting
    tracker = Tracker(model, probe, loss=loss, rho=RHO, batch_size=5)
    start = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    tracker.measure(3, 1.5)
    hidden = model.hidden(probe.inputs).detach().flatten(1).numpy()
    norms = np.sqrt((hidden**2).sum(1))
    for group, mask in masks(probe).items():
        assert values(tracker, "hidden_activation_norm")[group] == pytest.approx(norms[mask].mean(), rel=EXACT)
    assert values(tracker, "feature_rank")["all"] == pytest.approx(twin.participation_ratio(hidden), rel=1e-8)  # eigenvalues
    squares = [float((p.detach() ** 2).sum()) for p in model.parameters()]
    apart = [float(((p.detach() - q) ** 2).sum()) for p, q in zip(model.parameters(), start, strict=True)]
    assert values(tracker, "weight_norm")["all"] == pytest.approx(np.sqrt(sum(squares)), rel=EXACT)
    assert values(tracker, "distance_from_initialisation")["all"] == pytest.approx(np.sqrt(sum(apart)), rel=EXACT)
    assert values(tracker, "last_layer_norm")["all"] == pytest.approx(float(model.last_layer.weight.detach().norm()), rel=EXACT)
    assert set(tracker.metrics["step"]) == {3}
    assert set(tracker.metrics["epoch"]) == {1.5}


def test_clean_and_noisy_sums_add_up_to_the_whole(setting):
    model, probe, loss = setting
    tracker = Tracker(model, probe, loss=loss, rho=RHO)
    tracker.measure(0, 0)
    counts = {group: mask.sum() for group, mask in masks(probe).items()}
    for metric in ("residual_norm", "gradient_norm", "j_sam_gradient_norm", "sharpness", "hidden_activation_norm"):
        sums = {group: value * counts[group] for group, value in values(tracker, metric).items()}
        assert sums["clean"] + sums["noisy"] == pytest.approx(sums["all"], rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_batch_size_changes_no_value(batch_size):
    model, probe = model_of("mlp", 4, hidden=[5]), probe_of(4)
    whole, parts = Tracker(model, probe, rho=RHO), Tracker(model, probe, rho=RHO, batch_size=batch_size)
    whole.measure(0, 0)
    parts.measure(0, 0)
    np.testing.assert_allclose(parts.metrics["value"], whole.metrics["value"], rtol=1e-9, atol=1e-12)


def test_a_residual_of_exactly_zero_has_no_weight_and_is_counted():
    model = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    inputs = torch.tensor([[400.0, 0.0], [0.5, 0.0], [1.0, 0.0]])  # softmax of 800 in float32: the others are exactly zero
    probe = NoisyDataset(inputs, torch.tensor([0, 0, 1]), clean_labels=torch.tensor([0, 0, 0]))
    tracker = Tracker(model, probe, rho=0.1)
    tracker.measure(0, 0)
    assert tracker.examples["residual_norm"].tolist()[0] == 0.0
    for column in ("logit_weight", "jacobian_weight"):
        assert np.isnan(tracker.examples[column][0])
        assert np.isfinite(tracker.examples[column][1:]).all()
    assert values(tracker, "zero_residuals") == {"all": 1.0, "clean": 1.0, "noisy": 0.0}
    kept = tracker.examples[1:]
    ratio = (kept["logit_weight"] * kept["residual_norm"]).sum() / kept["residual_norm"].sum()
    assert values(tracker, "logit_weight")["all"] == pytest.approx(ratio, rel=1e-6)  # float32 columns
    assert values(tracker, "logit_weight_median")["all"] == pytest.approx(kept["logit_weight"].median(), rel=1e-12)


@pytest.mark.parametrize("wrong", [0, 12], ids=["no noisy example", "no clean example"])
def test_an_empty_group_has_no_value_and_breaks_nothing(wrong):
    probe = probe_of(3)
    labels = probe.clean_labels.clone()
    labels[:wrong] = (labels[:wrong] + 1) % 3
    probe = NoisyDataset(probe.inputs, labels, clean_labels=probe.clean_labels)
    tracker = Tracker(model_of("mlp", 3, hidden=[4]), probe, rho=RHO)
    tracker.measure(0, 0)
    empty, full = ("noisy", "clean") if wrong == 0 else ("clean", "noisy")
    for metric in ("gradient_norm", "logit_weight", "logit_weight_median", "hidden_activation_norm", "step_cosine"):
        assert np.isnan(values(tracker, metric)[empty])
        assert np.isfinite(values(tracker, metric)[full])
    assert values(tracker, "gradient_norm")["all"] == values(tracker, "gradient_norm")[full]
    assert values(tracker, "step_cosine")[full] == pytest.approx(1.0)
    assert np.isnan(values(tracker, "gradient_cosine")["all"])


def test_without_clean_labels_only_the_group_all_is_written():
    tracker = Tracker(model_of("mlp", 3, hidden=[4]), probe_of(3, clean=False), rho=RHO)
    tracker.measure(0, 0)
    assert set(tracker.metrics["group"]) == {"all"}
    assert set(tracker.examples["clean_label"]) == {-1}
    assert {"gradient_norm", "batch_sharpness", "feature_rank"} <= set(tracker.metrics["metric"])
    assert not {"gradient_cosine", "step_cosine"} & set(tracker.metrics["metric"])


def test_without_a_linear_layer_the_last_layer_quantities_are_not_defined():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(6, 2, dtype=torch.float64))

        def forward(self, inputs):
            return torch.tanh(inputs @ self.weight)

    tracker = Tracker(Scale(), probe_of(2), rho=RHO)
    tracker.measure(0, 0)
    for metric in ("hidden_activation_norm", "feature_rank", "last_layer_norm"):
        assert all(np.isnan(value) for value in values(tracker, metric).values())
    assert all(np.isfinite(value) for value in values(tracker, "jacobian_weight").values())


def test_tables_have_the_documented_columns_types_metrics_and_groups():
    model, probe = model_of("mlp", 3, hidden=[4]), probe_of(3)
    tracker = Tracker(model, probe, rho=RHO)
    assert list(tracker.metrics.columns) == [column.name for column in METRICS_COLUMNS]
    tracker.measure(0, 0)
    tracker.measure(5, 1)
    for frame, columns in ((tracker.metrics, METRICS_COLUMNS), (tracker.examples, EXAMPLES_COLUMNS)):
        assert list(frame.columns) == [column.name for column in columns]
        for column in columns:
            expected = pd.api.types.is_string_dtype if column.dtype == "string" else lambda dtype, c=column: dtype == c.dtype
            assert expected(frame[column.name].dtype)
    probe_metrics = {name for name, metric in METRICS.items() if "probe" in metric.splits}
    assert set(QUANTITIES) == probe_metrics == set(tracker.metrics["metric"])
    for name, rows in tracker.metrics.groupby("metric"):
        assert set(rows["group"]) == set(METRICS[name].groups), name
    assert len(tracker.examples) == 2 * len(probe)


def test_take_returns_each_row_once():
    tracker = Tracker(model_of("mlp", 3, hidden=[4]), probe_of(3), rho=RHO)
    assert tracker.take()[0] == []
    tracker.measure(0, 0)
    rows, examples = tracker.take()
    assert len(rows) == len(tracker.metrics)
    assert set(examples["step"]) == {0}
    tracker.measure(4, 1)
    rows, examples = tracker.take()
    assert {row["step"] for row in rows} == {4}
    assert examples["step"].tolist() == [4] * 12
    assert tracker.take()[0] == []
    assert len(tracker.take()[1]["step"]) == 0


def test_bad_arguments_are_refused():
    model, probe = model_of("mlp", 3, hidden=[4]), probe_of(3)
    with pytest.raises(InputError, match=r"rho = 0.0. Expected a positive, finite radius"):
        Tracker(model, probe, rho=0.0)
    with pytest.raises(InputError, match="A probe without examples"):
        Tracker(model, probe.subset([]), rho=RHO)
    with pytest.raises(InputError, match="batch_size = 0"):
        Tracker(model, probe, batch_size=0)
    with pytest.raises(InputError, match="Unknown loss 'crossentropy'"):
        Tracker(model, probe, loss="crossentropy")
    with pytest.raises(InputError, match="without trainable weights"):
        Tracker(torch.nn.Identity(), probe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": float("inf")}, "rho = inf"),
        ({"probe": torch.zeros(3, 4)}, "A probe of type Tensor.*Wrap the tensors"),
    ],
)
def test_what_is_no_model_probe_or_radius_is_refused(change, message):
    labels = torch.tensor([0, 1, 0])
    whole = {"model": torch.nn.Linear(4, 2), "probe": NoisyDataset(torch.zeros(3, 4), labels, clean_labels=labels), "rho": 0.1}
    with pytest.raises(InputError, match=message):
        Tracker(**{**whole, **change})


def test_a_part_that_is_unfrozen_later_is_followed_from_where_it_began():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
    model[0].requires_grad_(False)
    tracker = Tracker(model, probe_of(4), rho=RHO)
    tracker.measure(0, 0)
    model[0].requires_grad_(True)
    with torch.no_grad():
        model[0].weight.add_(2.0)
    tracker.measure(1, 1)
    distances = tracker.metrics.query("metric == 'distance_from_initialisation'")["value"].to_numpy()
    np.testing.assert_allclose(distances, [0.0, 2.0 * 30**0.5], rtol=1e-12)


def test_a_layer_that_is_exchanged_is_refused_in_words():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
    tracker = Tracker(model, probe_of(4), rho=RHO)
    model[2] = torch.nn.Linear(5, 7).double()
    with pytest.raises(InputError, match=r"'2.weight' has the shape \(7, 5\), and had the shape \(4, 5\).*another tracker"):
        tracker.measure(0, 0)
