"""Label noise: every kind by its convention, with a record of what was asked for and what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from noisesam.data import human, instance, symmetric, transitions
from noisesam.data.dataset import NoisyDataset
from noisesam.data.record import NoiseRecord
from noisesam.errors import InputError, unknown_name

Drawn = tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, "classes classes"]]

_DRAWN_BY_MATRIX = ("symmetric-iid", "pair-flip", "asymmetric")
_WITHOUT_RATE = ("none", "human", "transition-matrix")
_DEFAULT_SOURCE = {10: "worst", 100: "noisy"}


def noise_kinds() -> tuple[str, ...]:
    """Return the kinds that `add_label_noise` knows.

    Example:
        >>> noise_kinds()[:3]
        ('none', 'symmetric', 'symmetric-iid')
    """
    return (*transitions.STATED_KINDS, "instance-dependent", "human", "transition-matrix")


def add_label_noise(
    dataset: NoisyDataset,
    kind: str,
    rate: float | int | None = None,
    *,
    seed: int,
    source: str | None = None,
    transition_matrix: Any = None,
    mapping: Mapping[int, int] | Mapping[str, str] | None = None,
    root: str | Path | None = None,
) -> NoisyDataset:
    r"""Return the data set with wrong labels, its true labels kept beside them and the noise recorded.

    The field uses the same words for different things; here, with n examples, K classes and rate p,

        none                  nothing changes
        symmetric             exactly floor(p n + 1e-9) examples get a uniform label among the K - 1 OTHER classes
        symmetric-iid         each example, with probability p, gets a uniform label among the other classes
        symmetric-inclusive   exactly floor(p n + 1e-9) examples get a uniform label among ALL classes: realised p (K-1)/K
        pair-flip             each example, with probability p, goes from class i to i + 1 mod K
        asymmetric            each example of a class that the data set's map moves goes there with probability p
        instance-dependent    flip rates from a truncated normal around p, wrong classes by a random projection of the input
        human                 the labels of CIFAR-10N or CIFAR-100N
        transition-matrix     each label is drawn from the row of its class

    The laws stand at `transition_matrix`, the instance-dependent one at `instance.label_probabilities`.

    Args:
        dataset: Examples with true labels and no noise so far ("none" takes any data set).
        kind: One of `noise_kinds()`.
        rate: p in [0, 1]; None or 0 for none, human and transition-matrix, which take no rate.
        seed: Seed of the draw; the same seed gives the same labels.
        source: For human: aggregate, random1, random2, random3 or worst (CIFAR-10N, None means worst), noisy (CIFAR-100N).
            Other kinds do not read it.
        transition_matrix: For transition-matrix: row-stochastic (K, K), entry [i][j] = P(observed = j | true = i).
        mapping: For asymmetric: true class -> observed class by number or name; None takes the data set's published map.
        root: For human: the label file or a folder that holds it; None takes NOISESAM_DATA.

    Returns:
        A data set with the same inputs and ids; `noise` holds kind, requested and realised rate, matrix, seed and source.

    Raises:
        InputError: For an unknown kind, a rate that is missing or outside [0, 1], labels that are already noisy, unknown true
            labels, or an unusable matrix, map or label file.

    Example:
        >>> import torch
        >>> labels = torch.arange(10) % 2
        >>> clean = NoisyDataset(torch.zeros(10, 3), labels, clean_labels=labels)
        >>> noisy = add_label_noise(clean, "symmetric", 0.4, seed=0)
        >>> int(noisy.is_noisy.sum()), noisy.noise.realised_rate
        (4, 0.4)

    References:
        Patrini et al. (2017). Making Deep Neural Networks Robust to Label Noise. arXiv 1609.03683 (asymmetric).
        Han et al. (2018). Co-teaching. arXiv 1804.06872 (pair flip).
        Xia et al. (2020). Part-dependent Label Noise. arXiv 2006.07836 (instance-dependent).
        Wei et al. (2022). Learning with Noisy Labels Revisited. arXiv 2110.12088 (human).
    """
    if kind not in noise_kinds():
        raise unknown_name("noise kind", kind, noise_kinds())
    _check_arguments(kind, rate, transition_matrix, mapping)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed = {seed!r}", expected="a whole number of at least 0", remedy="Write for example seed=0")
    if kind == "none":
        return _without_noise(dataset)
    clean = _true_labels(dataset)
    generator = np.random.default_rng(seed)
    if kind == "human":
        source = _DEFAULT_SOURCE.get(dataset.num_classes, "") if source is None else source
        noisy = human.human_labels(dataset, source, root)
        matrix = transitions.observed_frequencies(clean, noisy, dataset.num_classes)
    elif kind == "transition-matrix":
        matrix = transitions.check_matrix(transition_matrix, dataset.num_classes)
        noisy = transitions.draw(clean, matrix, generator)
    elif kind == "instance-dependent":
        noisy, matrix = _instance_dependent(dataset, clean, float(rate or 0.0), generator)
    else:
        noisy, matrix = _by_rate(dataset, clean, kind, float(rate or 0.0), mapping, generator)
    labelled = dataclasses.replace(dataset, labels=torch.from_numpy(noisy).to(dataset.labels.device))
    record = NoiseRecord(
        kind=kind,
        requested_rate=None if kind in _WITHOUT_RATE else float(rate or 0.0),
        realised_rate=labelled.realised_rate,
        transition_matrix=matrix.tolist(),
        seed=None if kind == "human" else seed,
        source=source if kind == "human" else None,
    )
    return dataclasses.replace(labelled, noise=record)


def _check_arguments(kind: str, rate: float | int | None, matrix: Any, mapping: Any) -> None:
    """Refuse arguments that the kind would ignore, and ask for those that it needs."""
    if kind in _WITHOUT_RATE:
        if rate is not None and rate != 0:
            raise InputError(f"rate = {rate} for {kind} noise", expected="no rate", remedy="Leave the rate out")
    elif rate is None:
        raise InputError(f"no rate for {kind} noise", expected="a fraction from 0 to 1", remedy="Write for example rate=0.4")
    else:
        transitions.check_rate(rate)
    if (matrix is None) == (kind == "transition-matrix"):
        given = "no transition_matrix" if matrix is None else "a transition_matrix"
        raise InputError(
            f"{given} for kind {kind!r}", expected="one exactly for kind 'transition-matrix'", remedy="Change one of the two"
        )
    if mapping is not None and kind != "asymmetric":
        raise InputError(f"a mapping for kind {kind!r}", expected="one for kind 'asymmetric' only", remedy="Leave it out")


def _true_labels(dataset: NoisyDataset) -> Int64[np.ndarray, " n"]:
    """Return the labels that noise is added to: known to be true, and not yet noisy."""
    if dataset.clean_labels is None:
        raise InputError(
            f"label noise on {dataset.name or 'a data set'}, whose true labels are not known",
            expected="a data set with clean_labels",
            remedy="If its labels are true, say so: add clean_labels to the file (clean_label in a table) or the call",
        )
    previous = dataset.noise is not None and dataset.noise.kind != "none"
    if previous or dataset.realised_rate:
        kind = dataset.noise.kind if dataset.noise is not None else "given"
        raise InputError(
            f"label noise on {dataset.name or 'a data set'}, which has {kind} noise already "
            f"(realised rate {dataset.realised_rate})",
            expected="a data set without noise",
            remedy="Start from the data set as it was loaded, or use kind 'none' to keep its labels as they are",
        )
    if dataset.num_classes < 2:
        raise InputError("label noise with one class", expected="at least two classes", remedy="Name all classes in `classes`")
    return dataset.clean_labels.cpu().numpy()


def _by_rate(
    dataset: NoisyDataset,
    clean: Int64[np.ndarray, " n"],
    kind: str,
    rate: float,
    mapping: Mapping[int, int] | Mapping[str, str] | None,
    generator: np.random.Generator,
) -> Drawn:
    """Draw the kinds whose law follows from the rate."""
    classes = dataset.num_classes
    matrix = transitions.transition_matrix(kind, rate, dataset.classes, mapping=mapping, name=dataset.name)
    if kind in _DRAWN_BY_MATRIX:
        return transitions.draw(clean, matrix, generator), matrix
    change = symmetric.flip_to_others if kind == "symmetric" else symmetric.redraw_from_all
    return change(clean, rate, classes, generator), matrix


def _instance_dependent(
    dataset: NoisyDataset, clean: Int64[np.ndarray, " n"], rate: float, generator: np.random.Generator
) -> Drawn:
    """Draw from each example's own law, and report the mean law of each class."""
    probabilities = instance.label_probabilities(dataset, rate, generator)
    noisy = transitions.draw_rows(probabilities, generator)
    sums, counts = instance.mean_matrix(probabilities, clean)
    return noisy, transitions.rows_or_identity(sums, counts)


def _without_noise(dataset: NoisyDataset) -> NoisyDataset:
    """Return the data set as it is, with a record that says so if it has none."""
    if dataset.noise is not None:
        return dataset
    given = transitions.given_noise(dataset, source=dataset.name)
    if given.noise is not None:
        return given
    matrix = None if dataset.clean_labels is None else np.eye(dataset.num_classes).tolist()
    rate = 0.0 if dataset.clean_labels is not None else None
    return dataclasses.replace(dataset, noise=NoiseRecord("none", 0.0, rate, matrix, None, None))
