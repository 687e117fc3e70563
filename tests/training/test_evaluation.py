from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisesam import models
from noisesam.data import NoisyDataset
from noisesam.errors import InputError
from noisesam.tracking.predictions import predicted_classes
from noisesam.training import evaluate


def table(rows):
    return {(row["group"], row["metric"]): row["value"] for row in rows}


class Given(torch.nn.Module):
    """A model whose outputs are its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, inputs):
        return inputs * self.weight


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 30),
    classes=st.integers(1, 4),
    rate=st.sampled_from([0.0, 0.3, 1.0]),
    chunk=st.integers(1, 31),
    seed=st.integers(0, 1000),
)
def test_every_value_equals_the_loop_over_examples(size, classes, rate, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64)
    labels_of = max(classes, 2)
    clean = torch.randint(0, labels_of, (size,), generator=generator)
    flip = torch.rand(size, generator=generator) < rate
    labels = torch.where(flip, (clean + 1) % labels_of, clean)
    data = NoisyDataset(logits, labels, clean_labels=clean, classes=tuple("abcd"[:labels_of]))
    loss = "logistic" if classes == 1 else "cross_entropy"
    got = table(evaluate(Given(), data, split="train", loss=loss, chunk_size=chunk))
    rows = []
    for f, t, y in zip(logits, labels.tolist(), clean.tolist(), strict=True):
        if classes == 1:
            sign = 2 * t - 1
            margin, predicted = sign * float(f[0]), int(f[0] > 0)
            value = math.log1p(math.exp(-margin))
        else:
            others = [float(f[k]) for k in range(classes) if k != t]
            margin, predicted = float(f[t]) - max(others), int(f.argmax())
            value = math.log(sum(math.exp(float(v)) for v in f)) - float(f[t])
        rows.append((t != y, predicted, t, y, value, margin))
    for group, chosen in (("all", rows), ("clean", [r for r in rows if not r[0]]), ("noisy", [r for r in rows if r[0]])):
        assert got[group, "count"] == len(chosen)
        expected = {
            "accuracy": [r[1] == r[2] for r in chosen],
            "loss": [r[4] for r in chosen],
            "margin": [r[5] for r in chosen],
        }
        if group == "noisy":
            expected["predicts_true"] = [r[1] == r[3] for r in chosen]
            expected["predicts_observed"] = [r[1] == r[2] for r in chosen]
            expected["predicts_other"] = [r[1] not in (r[2], r[3]) for r in chosen]
        for metric, values in expected.items():
            if values:
                assert got[group, metric] == pytest.approx(sum(values) / len(values), rel=1e-10, abs=1e-12)  # float64 sums
            else:
                assert math.isnan(got[group, metric])


def test_the_three_fates_of_a_wrong_label_add_up_to_one():
    data = NoisyDataset(torch.randn(50, 4), torch.arange(50) % 4, clean_labels=torch.arange(1, 51) % 4)
    got = table(evaluate(models.make("linear", input_shape=(4,), classes=4), data, split="train"))
    total = sum(got["noisy", f"predicts_{fate}"] for fate in ("true", "observed", "other"))
    assert total == pytest.approx(1)
    assert got["noisy", "predicts_observed"] == got["noisy", "accuracy"]


def test_without_clean_labels_there_is_one_group_and_no_fate():
    data = NoisyDataset(torch.randn(9, 4), torch.arange(9) % 3)
    got = table(evaluate(models.make("linear", input_shape=(4,), classes=3), data, split="train"))
    assert set(got) == {("all", metric) for metric in ("accuracy", "loss", "margin", "count")}


def test_evaluation_leaves_modes_and_generators_alone():
    model = models.make("mlp", input_shape=(4,), classes=3, hidden=[8], dropout=0.5)
    data, state = NoisyDataset(torch.randn(9, 4), torch.arange(9) % 3), torch.get_rng_state()
    first, second = (evaluate(model, data, split="test") for _ in range(2))
    assert first == second
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_squared_error_of_one_logit_decides_half_way_between_its_targets():
    data = NoisyDataset(torch.tensor([[0.4], [0.6]], dtype=torch.float64), torch.tensor([0, 1]))
    got = table(evaluate(Given(), data, split="test", loss="mse"))
    assert got["all", "accuracy"] == 1.0
    assert got["all", "margin"] == pytest.approx(0.1)


def test_labels_out_of_range_are_refused():
    data = NoisyDataset(torch.randn(9, 4), torch.arange(9) % 4)
    with pytest.raises(InputError, match=r"out of range.*labels from 0 to 2"):
        evaluate(models.make("linear", input_shape=(4,), classes=3), data, split="test")


def test_a_network_of_nan_answers_nothing_right():
    for classes, labels in ((4, [0, 1, 2, 3]), (1, [0, 1, 0, 1])):
        logits = torch.full((4, classes), torch.nan)
        assert predicted_classes(logits).tolist() == [-1] * 4
        logits[1] = torch.arange(classes) + 1.0
        assert predicted_classes(logits).tolist() == [-1, max(classes - 1, 1), -1, -1]
        assert (predicted_classes(torch.full((4, classes), torch.nan)) != torch.tensor(labels)).all()
