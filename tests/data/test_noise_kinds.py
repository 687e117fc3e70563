import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import noise_laws as laws
from scipy.stats import truncnorm

from noisesam.data import (
    NoiseRecord,
    NoisyDataset,
    add_label_noise,
    class_names,
    instance,
    load,
    noise_kinds,
    symmetric,
    transition_matrix,
)
from noisesam.errors import InputError

BY_RATE = ("symmetric", "symmetric-iid", "symmetric-inclusive", "pair-flip", "asymmetric", "instance-dependent")
MAP = {0: 1, 1: 0, 2: 0}

# The largest of the K^2 <= 100 cell deviations of a true law exceeds five standard deviations with probability below
# 100 * 5.7e-7 = 6e-5; the seeds are fixed, so a passing test stays passing.
SIGMAS = 5.0


def labelled(n=60, classes=5, dim=4, absent=None, seed=0, name=""):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % classes
    labels = torch.from_numpy(labels)
    inputs = torch.from_numpy(rng.standard_normal((n, dim)))
    return NoisyDataset(inputs, labels, clean_labels=labels, classes=tuple(f"c{k}" for k in range(classes)), name=name)


def noisy(dataset, kind, rate, seed=0):
    return add_label_noise(dataset, kind, rate, seed=seed, mapping=MAP if kind == "asymmetric" else None)


@pytest.mark.parametrize("kind", BY_RATE)
@pytest.mark.parametrize("rate", [0.1, 0.4, 0.75])
def test_observed_counts_follow_the_stated_transition_matrix(kind, rate):
    dataset = noisy(labelled(n=20_000, classes=5), kind, rate, seed=1)
    law = np.array(dataset.noise.transition_matrix)
    counts = laws.counts_by_class(dataset.clean_labels.tolist(), dataset.labels.tolist(), 5)
    # symmetric and symmetric-inclusive fix the total number, instance-dependent mixes different laws: all three only reduce
    # the variance of a cell below that of the binomial.
    assert laws.largest_deviation_in_sd(counts, law) < SIGMAS
    np.testing.assert_allclose(law.sum(axis=1), 1.0, rtol=0, atol=1e-12)  # sums of at most 5 rounded terms


@pytest.mark.parametrize("kind", ["symmetric", "symmetric-iid", "symmetric-inclusive", "pair-flip", "asymmetric"])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("classes", [3, 7])
def test_transition_matrix_equals_its_definition_entry_by_entry(kind, rate, classes):
    target = [1, 0, 0, *range(3, classes)]
    given_map = MAP if kind == "asymmetric" else None
    matrix = transition_matrix(kind, rate, classes, mapping=given_map)
    np.testing.assert_allclose(matrix, laws.stated_law(kind, rate, classes, target), rtol=0, atol=1e-15)  # one rounding


@given(n=st.integers(1, 200), rate=st.floats(0, 1), classes=st.integers(2, 6), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_symmetric_noise_changes_exactly_floor_of_rate_times_n(n, rate, classes, seed):
    dataset = noisy(labelled(n, classes), "symmetric", rate, seed)
    assert int(dataset.is_noisy.sum()) == math.floor(rate * n + 1e-9)
    assert dataset.noise.realised_rate == math.floor(rate * n + 1e-9) / n


def test_flip_count_is_not_lost_to_rounding_for_any_percentage():
    for n in (100, 1200, 50_000):
        assert [symmetric.flip_count(n, percent / 100) for percent in range(101)] == [n * p // 100 for p in range(101)]


@pytest.mark.parametrize("kind", BY_RATE)
def test_rate_zero_changes_no_label(kind):
    dataset = noisy(labelled(), kind, 0.0)
    assert not dataset.is_noisy.any()
    assert dataset.noise.realised_rate == 0.0
    np.testing.assert_array_equal(dataset.noise.transition_matrix, np.eye(5))


def test_rate_one_changes_every_label_to_another_class():
    for kind in ("symmetric", "symmetric-iid", "pair-flip"):
        assert noisy(labelled(n=500), kind, 1).is_noisy.all()
    paired = noisy(labelled(), "pair-flip", 1.0)
    assert torch.equal(paired.labels, (paired.clean_labels + 1) % 5)
    mapped = noisy(labelled(), "asymmetric", 1.0)
    assert torch.equal(mapped.labels, torch.tensor([1, 0, 0, 3, 4])[mapped.clean_labels])


def test_inclusive_noise_at_rate_one_leaves_one_in_k_right():
    dataset = noisy(labelled(n=10_000), "symmetric-inclusive", 1.0)
    sd = math.sqrt(0.8 * 0.2 / 10_000)  # each label is right with probability 1/5, independently
    assert abs(dataset.noise.realised_rate - 0.8) < SIGMAS * sd


@pytest.mark.parametrize("kind", BY_RATE)
@given(rate=st.floats(0, 1), absent=st.integers(0, 3), n=st.integers(0, 40), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=15)
def test_noise_is_valid_when_a_class_is_absent_and_for_any_size(kind, rate, absent, n, seed):
    clean = labelled(n, 4, absent=absent)
    dataset = noisy(clean, kind, rate, seed)
    assert torch.equal(dataset.clean_labels, clean.labels)
    assert torch.equal(dataset.inputs, clean.inputs)
    assert torch.equal(dataset.index, clean.index)
    assert len(dataset) == n
    assert dataset.num_classes == 4
    matrix = np.array(dataset.noise.transition_matrix)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=0, atol=1e-12)  # sums of 4 rounded terms
    if kind == "instance-dependent":
        np.testing.assert_array_equal(matrix[absent], np.eye(4)[absent])
    json.dumps(dataset.noise.to_dict(), allow_nan=False)


@pytest.mark.parametrize("kind", BY_RATE)
def test_the_same_seed_gives_the_same_labels_and_another_seed_others(kind):
    clean = labelled(n=300)
    first, second, other = (noisy(clean, kind, 0.5, seed) for seed in (3, 3, 4))
    assert torch.equal(first.labels, second.labels)
    assert first.noise == second.noise
    assert not torch.equal(first.labels, other.labels)


def test_noise_reads_and_changes_no_global_generator():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  the global state is what is being watched
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for kind in BY_RATE:
        noisy(labelled(), kind, 0.5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


@given(
    weights=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any), min_size=3, max_size=3),
    seed=st.integers(0, 10),
)
@settings(deadline=None, max_examples=25)
def test_any_transition_matrix_is_followed_and_impossible_labels_never_occur(weights, seed):
    matrix = np.array(weights, dtype=float)
    matrix /= matrix.sum(axis=1, keepdims=True)
    dataset = add_label_noise(labelled(3000, 3), "transition-matrix", seed=seed, transition_matrix=matrix)
    counts = laws.counts_by_class(dataset.clean_labels.tolist(), dataset.labels.tolist(), 3)
    assert (counts[matrix == 0] == 0).all()
    # Seeds and matrices vary here: 25 draws of 9 cells stay within six standard deviations but for 25 * 9 * 2e-9.
    assert laws.largest_deviation_in_sd(counts, matrix) < 6.5
    np.testing.assert_allclose(dataset.noise.transition_matrix, matrix, rtol=1e-15)  # scaled by a sum of 1 within rounding
    assert dataset.noise.requested_rate is None


def test_instance_dependent_probabilities_equal_the_one_example_twin():
    dataset = labelled(n=12, classes=3, dim=5)
    probabilities = instance.label_probabilities(dataset, 0.4, np.random.default_rng(7))
    generator = np.random.default_rng(7)
    flip = truncnorm.rvs(-4.0, 6.0, loc=0.4, scale=0.1, size=12, random_state=generator)
    projections = np.stack([generator.standard_normal((5, 3)) for _ in range(3)])
    x = dataset.inputs.numpy()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    twin = laws.instance_law(x, dataset.clean_labels.tolist(), flip, projections)
    # Scores of size up to about 10 carry an absolute rounding error of about 1e-15 each, which the exponential makes relative.
    np.testing.assert_allclose(probabilities, twin, rtol=1e-12, atol=1e-15)


def test_instance_dependent_noise_stores_requested_and_realised_rate():
    dataset = noisy(labelled(n=20_000), "instance-dependent", 0.05)
    # The normal of mean .05 and sd .1 cut to [0, 1] has mean .05 + .1 phi(.5)/Phi(.5) = .1009; the draw's sd is below .0022.
    assert dataset.noise.requested_rate == 0.05
    assert abs(dataset.noise.realised_rate - 0.1009) < 5 * 0.0022


def test_cifar10_map_is_the_published_one():
    n = 10
    labels = torch.arange(n)
    data = NoisyDataset(torch.zeros(n, 2), labels, clean_labels=labels, classes=class_names.CIFAR10, name="cifar10")
    observed = add_label_noise(data, "asymmetric", 1.0, seed=0).labels
    moved = {data.classes[i]: data.classes[int(observed[i])] for i in range(n) if int(observed[i]) != i}
    assert moved == {"truck": "automobile", "bird": "airplane", "cat": "dog", "dog": "cat", "deer": "horse"}


def test_cifar100_map_is_a_circle_within_each_superclass():
    labels = torch.arange(100)
    data = NoisyDataset(torch.zeros(100, 2), labels, clean_labels=labels, classes=class_names.CIFAR100, name="cifar100")
    step = add_label_noise(data, "asymmetric", 1.0, seed=0).labels
    group = {name: k for k, names in enumerate(class_names.CIFAR100_SUPERCLASSES) for name in names}
    assert sorted(group) == sorted(class_names.CIFAR100)
    position, once = labels, []
    for _ in range(5):
        position = step[position]
        once.append(position)
        assert [group[data.classes[int(k)]] for k in position] == [group[c] for c in data.classes]
    assert torch.equal(once[-1], labels)
    successor = {data.classes[k]: data.classes[int(step[k])] for k in range(100)}
    assert (successor["beaver"], successor["whale"], successor["baby"]) == ("dolphin", "beaver", "boy")
    assert all((part != labels).all() for part in once[:-1])


def test_digits_take_the_map_of_mnist():
    matrix = np.array(add_label_noise(load("digits"), "asymmetric", 0.3, seed=0).noise.transition_matrix)
    assert {(i, j) for i, j in zip(*np.nonzero(matrix), strict=True) if i != j} == {(2, 7), (3, 8), (5, 6), (6, 5), (7, 1)}


def test_asymmetric_mapping_may_name_classes():
    by_name = add_label_noise(labelled(), "asymmetric", 1.0, seed=0, mapping={"c0": "c1"})
    by_number = add_label_noise(labelled(), "asymmetric", 1.0, seed=0, mapping={0: 1})
    assert torch.equal(by_name.labels, by_number.labels)


def test_none_keeps_labels_and_records_what_is_known():
    clean = add_label_noise(labelled(), "none", seed=0)
    assert (clean.noise.kind, clean.noise.realised_rate) == ("none", 0.0)
    unknown = add_label_noise(dataclasses.replace(labelled(), clean_labels=None), "none", 0.0, seed=0)
    assert unknown.noise == NoiseRecord("none", 0.0, None, None, None, None)
    wrong = dataclasses.replace(labelled(), labels=(labelled().labels + 1) % 5)
    kept = add_label_noise(wrong, "none", seed=0)
    assert torch.equal(kept.labels, wrong.labels)
    assert (kept.noise.kind, kept.noise.realised_rate) == ("given", 1.0)
    once = noisy(labelled(), "symmetric", 0.5)
    assert add_label_noise(once, "none", seed=0) is once
    assert add_label_noise(clean, "symmetric", 0.5, seed=0).noise.kind == "symmetric"


def test_record_survives_json():
    record = noisy(labelled(), "symmetric", 0.5, seed=9).noise
    assert NoiseRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert (record.seed, record.requested_rate, record.source) == (9, 0.5, None)


def test_every_kind_is_listed_once():
    assert noise_kinds() == ("none", *BY_RATE, "human", "transition-matrix")


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        ({}, {"kind": "symetric", "rate": 0.1}, "Did you mean 'symmetric'?"),
        (
            {},
            {"kind": "symmetric"},
            "no rate for symmetric noise. Expected a fraction from 0 to 1. Write for example rate=0.4.",
        ),
        ({}, {"kind": "symmetric", "rate": 40}, "rate = 40. Expected a fraction from 0 to 1. Write 40% as 0.4."),
        ({}, {"kind": "pair-flip", "rate": float("nan")}, "rate = nan"),
        ({}, {"kind": "human", "rate": 0.4}, "rate = 0.4 for human noise. Expected no rate"),
        ({}, {"kind": "transition-matrix"}, "no transition_matrix for kind 'transition-matrix'"),
        ({}, {"kind": "symmetric", "rate": 0.1, "transition_matrix": np.eye(5)}, "a transition_matrix for kind 'symmetric'"),
        ({}, {"kind": "transition-matrix", "transition_matrix": np.eye(4)}, "shape (4, 4). Expected shape (5, 5)"),
        ({}, {"kind": "transition-matrix", "transition_matrix": [[1, 2], [3]]}, "a transition matrix of shape"),
        ({}, {"kind": "transition-matrix", "transition_matrix": 0.9 * np.eye(5)}, "row 0 of the transition matrix sums to 0.9"),
        ({}, {"kind": "transition-matrix", "transition_matrix": np.eye(5) * 2 - 0.25}, "with smallest entry -0.25"),
        ({}, {"kind": "symmetric", "rate": 0.1, "mapping": {0: 1}}, "a mapping for kind 'symmetric'"),
        ({}, {"kind": "asymmetric", "rate": 0.1}, "no published class map"),
        ({}, {"kind": "asymmetric", "rate": 0.1, "mapping": {0: 9}}, "class 9 in the mapping. Expected 0 to 4"),
        ({}, {"kind": "asymmetric", "rate": 0.1, "mapping": {"c0": "c11"}}, "Unknown class 'c11'"),
        ({}, {"kind": "human", "source": "worst"}, "Expected the training images of CIFAR-10 or CIFAR-100"),
        ({"clean_labels": None}, {"kind": "symmetric", "rate": 0.1}, "whose true labels are not known"),
        ({"inputs": torch.zeros(60, 2, 2)}, {"kind": "instance-dependent", "rate": 0.1}, "images (n, channels, height, width)"),
    ],
)
def test_unusable_arguments_are_refused_with_a_remedy(change, arguments, words):
    with pytest.raises(InputError) as caught:
        add_label_noise(dataclasses.replace(labelled(), **change), **arguments, seed=0)
    assert words in str(caught.value)
    assert caught.value.expected
    assert caught.value.remedy or "Did you" not in words


def test_noise_on_noisy_labels_is_refused():
    once = noisy(labelled(), "symmetric", 0.5)
    with pytest.raises(InputError, match="has symmetric noise already"):
        noisy(once, "symmetric", 0.5)
    with pytest.raises(InputError, match="has symmetric noise already"):
        noisy(noisy(labelled(), "symmetric", 0.0), "pair-flip", 0.5)
    with pytest.raises(InputError, match="has given noise already"):
        noisy(dataclasses.replace(labelled(), labels=(labelled().labels + 1) % 5), "symmetric", 0.5)


def test_matrix_of_kinds_that_depend_on_the_data_is_refused():
    for kind in ("instance-dependent", "human", "transition-matrix"):
        with pytest.raises(InputError, match=r"read dataset\.noise\.transition_matrix"):
            transition_matrix(kind, 0.1, 3)
    with pytest.raises(InputError, match="at least two classes"):
        transition_matrix("symmetric", 0.1, 1)
