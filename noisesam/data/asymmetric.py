"""Asymmetric label noise: a class is confused with the one it resembles, by a map that belongs to the data set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int64

from noisesam.data import class_names
from noisesam.errors import InputError, unknown_name

_CIFAR10 = {"truck": "automobile", "bird": "airplane", "cat": "dog", "dog": "cat", "deer": "horse"}
_CIFAR100 = {a: b for group in class_names.CIFAR100_SUPERCLASSES for a, b in zip(group, group[1:] + group[:1], strict=True)}
_DIGITS = {"2": "7", "3": "8", "5": "6", "6": "5", "7": "1"}


def resolve(
    mapping: Mapping[int, int] | Mapping[str, str] | None, classes: tuple[str, ...], name: str
) -> Int64[np.ndarray, " classes"]:
    """Return the target class of every class, a class that is not moved being its own.

    Published maps (Patrini et al. 2017): CIFAR-10 truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog; MNIST
    2 -> 7, 3 -> 8, 7 -> 1, 5 <-> 6; CIFAR-100 each class to the next of its superclass, in a circle. The digits of
    scikit-learn are the same ten characters as MNIST's, so they take MNIST's map (a choice of this package).

    Args:
        mapping: True class -> observed class, by number or by name; None takes the data set's published map.
        classes: Class names.
        name: Name of the data set.

    Returns:
        Class numbers of shape (K,).

    Raises:
        InputError: For a data set without a published map, or a mapping with unknown classes.

    Example:
        >>> resolve({"cat": "dog"}, ("bird", "cat", "dog"), "pets")
        array([0, 2, 2])

    References:
        Patrini, Rozza, Krishna Menon, Nock, Qu (2017). Making Deep Neural Networks Robust to Label Noise. arXiv 1609.03683.
    """
    chosen = published_map(classes, name) if mapping is None else mapping
    if chosen is None:
        raise InputError(
            f"asymmetric noise on {name or 'this data set'}, which has no published class map",
            expected="a mapping from true to observed class",
            remedy="Pass mapping={0: 1, ...} with class numbers or names, or the probabilities themselves "
            "(transition_matrix; on the command line --kind transition-matrix --matrix FILE.csv)",
        )
    if not isinstance(chosen, Mapping):
        raise InputError(f"mapping = {chosen!r}", expected="a mapping from true to observed class", remedy="Type {0: 1, ...}")
    target = np.arange(len(classes), dtype=np.int64)
    for true, observed in chosen.items():
        target[_number(true, classes)] = _number(observed, classes)
    return target


def published_map(classes: tuple[str, ...], name: str) -> Mapping[str, str] | None:
    """Return the published map that belongs to these classes, or None."""
    if classes == class_names.CIFAR10:
        return _CIFAR10
    if classes == class_names.CIFAR100:
        return _CIFAR100
    return _DIGITS if name in ("mnist", "digits") and classes == class_names.DIGITS else None


def matrix(rate: float | int, target: Int64[np.ndarray, " classes"]) -> Float64[np.ndarray, "classes classes"]:
    """Return T = (1 - p) I + p M with M the map's permutation-like matrix; classes that map to themselves keep T_ii = 1."""
    identity = np.eye(len(target))
    return (1.0 - rate) * identity + rate * identity[target]


def _number(label: int | str, classes: tuple[str, ...]) -> int:
    """Return the class number of a number or a name."""
    if isinstance(label, str):
        if label not in classes:
            raise unknown_name("class", label, classes)
        return classes.index(label)
    if not 0 <= label < len(classes):
        raise InputError(f"class {label} in the mapping", expected=f"0 to {len(classes) - 1}", remedy="Classes count from 0")
    return int(label)
