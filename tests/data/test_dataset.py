import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from noisesam.data import (
    NoisyDataset,
    add_label_noise,
    asymmetric,
    gaussian,
    gaussian_test_accuracy,
    load,
    standardise,
    transitions,
)
from noisesam.errors import InputError


def rows(n, classes=3):
    labels = torch.arange(n) % classes
    return NoisyDataset(
        torch.arange(2.0 * n).reshape(n, 2), labels, clean_labels=labels, index=torch.arange(n) + 100, classes=tuple("abc")
    )


@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    drop_last=st.booleans(),
    shuffled=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_batches_hold_every_example_once_with_its_own_label_and_id(n, batch_size, drop_last, shuffled, seed):
    data = rows(n)
    generator = torch.Generator().manual_seed(seed) if shuffled else None
    batches = list(data.batches(batch_size, generator=generator, drop_last=drop_last))
    sizes = [len(index) for _, _, index in batches]
    full, rest = divmod(n, batch_size)
    assert sizes == [batch_size] * full + ([rest] if rest and not drop_last else [])
    ids = torch.cat([index for _, _, index in batches]) if batches else torch.empty(0, dtype=torch.int64)
    assert len(set(ids.tolist())) == len(ids)
    for inputs, labels, index in batches:
        assert torch.equal(inputs[:, 0], 2.0 * (index - 100))
        assert torch.equal(labels, (index - 100) % 3)
    if not shuffled:
        assert ids.tolist() == list(range(100, 100 + len(ids)))


def test_batch_order_is_a_function_of_the_generators_state_at_the_call():
    data, generator = rows(50), torch.Generator().manual_seed(5)
    state = generator.get_state()
    first = data.batches(8, generator=generator)
    second = data.batches(8, generator=generator)
    again = data.batches(8, generator=generator.set_state(state))
    order = [torch.cat([index for _, _, index in batches]).tolist() for batches in (first, second, again)]
    assert order[0] == order[2]
    assert order[0] != order[1]


def test_torch_dataloader_gives_inputs_labels_and_ids():
    inputs, labels, index = next(iter(DataLoader(rows(7), batch_size=4)))
    assert tuple(inputs.shape) == (4, 2)
    assert labels.tolist() == [0, 1, 2, 0]
    assert index.tolist() == [100, 101, 102, 103]


@given(n=st.integers(0, 40), part=st.floats(0, 1), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_split_parts_are_disjoint_and_together_everything(n, part, seed):
    data = rows(n)
    size = int(part * n)
    rest, held_out = data.split(size, seed=seed)
    assert len(held_out) == size
    assert sorted(rest.index.tolist() + held_out.index.tolist()) == data.index.tolist()
    assert held_out.index.tolist() == data.split(size, seed=seed)[1].index.tolist()
    assert torch.equal(held_out.labels, (held_out.index - 100) % 3)


def test_another_seed_splits_differently():
    assert rows(50).split(10, seed=0)[1].index.tolist() != rows(50).split(10, seed=1)[1].index.tolist()


def test_noisy_fractions_of_a_split_add_up_to_the_whole():
    data = add_label_noise(rows(40), "symmetric", 0.3, seed=0)
    rest, held_out = data.split(11, seed=3)
    assert round(rest.noise.realised_rate * 29 + held_out.noise.realised_rate * 11) == 12
    assert rest.noise.requested_rate == 0.3
    assert rest.noise.transition_matrix == data.noise.transition_matrix
    assert data.split(0, seed=0)[1].noise.realised_rate is None


def test_subset_takes_positions_in_order_and_masks():
    data = rows(6)
    assert data.subset([4, 1]).index.tolist() == [104, 101]
    assert data.subset(data.labels == 2).index.tolist() == [102, 105]
    assert data.subset(np.array([], dtype=np.int64)).num_classes == 3
    wrong_positions = (
        ([6], "position 6"),
        ([0, 0], "repeats"),
        (np.array([0.5]), "positions of type"),
        (torch.ones(5) > 0, "a mask"),
    )
    for wrong, words in wrong_positions:
        with pytest.raises(InputError, match=words):
            data.subset(wrong)


def test_groups_vanish_when_the_truth_is_unknown():
    data = NoisyDataset(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    assert data.is_noisy is None
    assert data.realised_rate is None
    assert data.classes == ("0", "1")
    assert data.index.tolist() == [0, 1, 2]
    assert data.subset([0]).split(1, seed=0)[1].clean_labels is None


def test_to_changes_the_type_of_inputs_only():
    data = rows(3).to("cpu", torch.float64)
    assert (data.inputs.dtype, data.labels.dtype, data.index.dtype) == (torch.float64, torch.int64, torch.int64)
    with pytest.raises(InputError, match="floating type"):
        data.to(dtype=torch.int64)


def test_dataset_is_frozen():
    with pytest.raises(AttributeError):
        rows(3).labels = torch.zeros(3)  # pyright: ignore


def test_token_ids_are_allowed_when_said():
    data = NoisyDataset(torch.ones(2, 5, dtype=torch.int32), torch.tensor([0, 1]), token_ids=True)
    assert data.inputs.dtype == torch.int64
    assert data.to(dtype=torch.float64).inputs.dtype == torch.int64
    with pytest.raises(InputError, match="floating images"):
        standardise(data)


NAN = torch.zeros(4, 2)
NAN[1, 0], NAN[3, 1] = math.nan, math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"inputs": NAN},
            "inputs with NaN or infinite values in rows 1, 3. Expected finite values. "
            "Repair or drop these examples before making the data set.",
        ),
        (
            {"inputs": torch.zeros(4, 2, dtype=torch.uint8)},
            "inputs of type torch.uint8. Expected a floating type. Convert with inputs.float() (images: inputs.float() / 255), "
            "or say token_ids=True if these are token ids.",
        ),
        ({"inputs": torch.tensor(1.0)}, "inputs of shape (). Expected shape (n, ...). Add the example axis with inputs[None]."),
        (
            {"labels": torch.tensor([0, -1, 1, 3])},
            "labels[1] = -1, 2 of 4 out of range (rows 1, 3). Expected class numbers 0 to 2. Number the classes from 0, binary "
            "labels as 0 and 1 (not -1 and 1), and name all of them in `classes`.",
        ),
        ({"clean_labels": torch.tensor([0, 1, 2, 9])}, "clean_labels[3] = 9, 1 of 4 out of range (row 3)."),
        ({"labels": torch.zeros(4)}, "labels of type torch.float32. Expected an integer tensor."),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels of shape (3,) for 4 inputs. Expected shape (4,)"),
        ({"labels": torch.zeros(4, 3, dtype=torch.int64)}, "Hand in class numbers, not one-hot rows"),
        ({"index": torch.tensor([0, 1, 1, 2])}, "index with repeated ids. Expected 4 distinct ids."),
        ({"index": torch.tensor([0, -1, 1, 2])}, "index with negative ids in row 1."),
        ({"classes": ("a", "b", "a")}, "class name 'a' more than once."),
    ],
)
def test_unusable_columns_are_refused_with_rows_and_remedy(arguments, message):
    good = {"inputs": torch.zeros(4, 2), "labels": torch.tensor([0, 1, 2, 0]), "classes": ("a", "b", "c")}
    with pytest.raises(InputError) as caught:
        NoisyDataset(**{**good, **arguments})
    assert str(caught.value).startswith(message) or message in str(caught.value)


def test_large_finite_inputs_are_finite():
    NoisyDataset(torch.full((2, 3), 3e38), torch.tensor([0, 1]))


def test_batch_size_and_split_size_are_checked():
    with pytest.raises(InputError, match="batch_size = 0"):
        rows(3).batches(0)
    with pytest.raises(InputError, match=r"size = 4. Expected 0 to 3"):
        rows(3).split(4, seed=0)


def test_digits_are_the_whole_of_scikit_learns_array_once():
    from sklearn.datasets import load_digits

    whole = load_digits()
    train, test = load("digits"), load("digits", split="test")
    assert (len(train), len(test)) == (1200, 597)
    assert sorted(train.index.tolist() + test.index.tolist()) == list(range(1797))
    for part in (train, test):
        assert part.inputs.dtype == torch.float32
        # Sixteenths are exact in binary, so no tolerance is needed.
        assert np.array_equal(part.inputs[:, 0].numpy() * 16, whole.images[part.index])
        assert np.array_equal(part.labels.numpy(), whole.target[part.index])
        assert not part.is_noisy.any()
        assert part.labels.unique().tolist() == list(range(10))


def test_gaussian_follows_its_definition():
    data = gaussian(20_000, 6, signal=4.0, noise_std=0.5, seed=0, dtype=torch.float64)
    y = 2.0 * data.labels - 1.0
    z = y[:, None] * data.inputs / 0.5
    assert torch.equal(data.inputs[:, 0], 4.0 * y)
    noise = z[:, 1:].numpy()
    # 100,000 standard normal values: five standard errors of mean and variance.
    assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / noise.size)
    assert abs(data.labels.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(20_000)
    assert not data.is_noisy.any()
    same = gaussian(20_000, 6, signal=4.0, noise_std=0.5, seed=0)
    assert torch.equal(same.inputs, data.inputs.float())
    assert not torch.equal(same.inputs, gaussian(20_000, 6, signal=4.0, noise_std=0.5, seed=1).inputs)


@pytest.mark.parametrize(("signal", "noise_std", "seed"), [(4.0, 1.0, 0), (1.0, 2.0, 1), (0.5, 0.3, 2)])
def test_closed_form_accuracy_equals_the_accuracy_on_many_samples(signal, noise_std, seed):
    n, dim = 200_000, 5
    weight = torch.from_numpy(np.random.default_rng(seed).standard_normal(dim))
    data = gaussian(n, dim, signal=signal, noise_std=noise_std, seed=seed + 10, dtype=torch.float64)
    observed = ((data.inputs @ weight > 0).long() == data.labels).double().mean().item()
    exact = gaussian_test_accuracy(weight, signal=signal, noise_std=noise_std)
    assert 0 < exact < 1
    assert abs(observed - exact) < 5 * math.sqrt(exact * (1 - exact) / n)  # five binomial standard errors


def test_closed_form_accuracy_is_the_normal_distribution_function_of_the_signal_to_noise_ratio():
    weight = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    for signal, noise_std, ratio in ((2.0, 0.5, 3.0), (2.0, 1.5, 1.0), (-1.0, 0.75, -1.0)):
        phi = 0.5 * (1.0 + math.erf(ratio / math.sqrt(2.0)))
        # Two libraries' error functions agree to a few units in the last place.
        assert abs(gaussian_test_accuracy(weight, signal=signal, noise_std=noise_std) - phi) < 1e-14


def test_closed_form_accuracy_at_the_edges():
    def accuracy(*weight):
        return gaussian_test_accuracy(torch.tensor(weight), signal=1.0, noise_std=1.0)

    assert (accuracy(1.0, 0.0), accuracy(-1.0, 0.0), accuracy(0.0, 0.0), accuracy(2.0)) == (1.0, 0.0, 0.5, 1.0)
    assert accuracy(0.0, 3.0) == 0.5
    linear = torch.nn.Linear(4, 1, bias=False)
    assert gaussian_test_accuracy(linear.weight, signal=2, noise_std=1) == gaussian_test_accuracy(
        linear.weight.detach()[0].numpy(), signal=2, noise_std=1
    )
    with pytest.raises(InputError, match="noise_std = -1"):
        gaussian(3, 2, signal=1, noise_std=-1, seed=0)
    with pytest.raises(InputError, match="n = 0"):
        gaussian(0, 2, signal=1, noise_std=1, seed=0)
    with pytest.raises(InputError, match="signal = nan"):
        gaussian(1, 2, signal=math.nan, noise_std=1, seed=0)
    with pytest.raises(InputError, match="a weight with NaN"):
        accuracy(math.nan, 1.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": 2.5}, "n = 2.5"),
        ({"n": "5"}, "n = '5'"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": "0"}, "seed = '0'"),
        ({"signal": "4"}, "signal = '4'"),
        ({"noise_std": None}, "noise_std = None"),
    ],
)
def test_arguments_of_another_type_are_refused_in_words(wrong, said):
    with pytest.raises(InputError, match=said):
        inspect.unwrap(gaussian)(**({"n": 5, "dim": 3, "signal": 4.0, "noise_std": 1.0, "seed": 0} | wrong))


@pytest.mark.parametrize("rate", ["0.4", [0.4], None, math.nan])
def test_a_rate_that_is_no_number_is_refused_in_words(rate):
    with pytest.raises(InputError, match="rate = "):
        transitions.check_rate(rate)


def test_a_class_map_that_is_a_list_is_refused_in_words():
    with pytest.raises(InputError, match=r"mapping = \[1, 0\]"):
        inspect.unwrap(asymmetric.resolve)([1, 0], ("a", "b"), "two")


@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 4, 4)])
def test_standardised_training_channels_have_mean_zero_and_deviation_one(shape):
    generator = torch.Generator().manual_seed(0)
    values = 5.0 + 3.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    values[:, 2] = 0.1
    labels = torch.zeros(50, dtype=torch.int64)
    train = NoisyDataset(values, labels)
    other = NoisyDataset(values[:7] * 2, labels[:7])
    scaled, changed = standardise(train, other)
    by_channel = scaled.inputs.transpose(0, 1).flatten(1)
    # Sums of at most 800 terms of size 5: relative rounding stays below 1e-13.
    torch.testing.assert_close(by_channel.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-13)
    expected = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(by_channel.std(1, correction=0), expected, rtol=0, atol=1e-13)
    mean, std = values[:, 0].mean(), values[:, 0].std(correction=0)
    torch.testing.assert_close(changed.inputs[:, 0], (values[:7, 0] * 2 - mean) / std, rtol=1e-12, atol=1e-12)


def test_sets_of_another_shape_are_not_standardised_together():
    labels = torch.tensor([0, 1])
    with pytest.raises(InputError, match="beside training inputs"):
        standardise(NoisyDataset(torch.zeros(2, 3), labels), NoisyDataset(torch.zeros(2, 4), labels))
