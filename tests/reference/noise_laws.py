"""Slow, obvious twins of the label-noise laws: one entry, one example, one class at a time."""

from __future__ import annotations

import math

import numpy as np


def stated_law(kind, rate, classes, target=None):
    """P(observed = j | true = i), entry by entry, from the words of each kind's definition."""
    law = np.zeros((classes, classes))
    for i in range(classes):
        for j in range(classes):
            if kind in ("symmetric", "symmetric-iid"):
                law[i, j] = 1 - rate if i == j else rate / (classes - 1)
            elif kind == "symmetric-inclusive":
                law[i, j] = rate / classes + (1 - rate if i == j else 0)
            elif kind == "pair-flip":
                law[i, j] = (1 - rate) * (i == j) + rate * (j == (i + 1) % classes)
            elif kind == "asymmetric":
                law[i, j] = (1 - rate) * (i == j) + rate * (j == target[i])
    return law


def counts_by_class(clean, observed, classes):
    """Number of examples of true class i observed as j."""
    counts = np.zeros((classes, classes))
    for true, seen in zip(clean, observed, strict=True):
        counts[true, seen] += 1
    return counts


def largest_deviation_in_sd(counts, law):
    """The largest |count - expected| over all cells in standard deviations of Binomial(n_i, law_ij); impossible cells: inf."""
    worst = 0.0
    for i in range(len(law)):
        n = counts[i].sum()
        for j in range(len(law)):
            sd = math.sqrt(n * law[i, j] * (1 - law[i, j]))
            deviation = abs(counts[i, j] - n * law[i, j])
            if sd > 0:
                worst = max(worst, deviation / sd)
            elif deviation > 1e-9 * max(n, 1):  # a certain or impossible cell: only the rounding of n * p may differ
                worst = math.inf
    return worst


def instance_law(inputs, clean, flip, projections):
    """Xia et al. (2020): the law of one example at a time, the softmax over the other classes written out."""
    classes = projections.shape[0]
    rows = []
    for x, y, q in zip(inputs, clean, flip, strict=True):
        scores = {j: float(sum(x[k] * projections[y][k, j] for k in range(len(x)))) for j in range(classes) if j != y}
        top = max(scores.values())
        total = sum(math.exp(s - top) for s in scores.values())
        rows.append([1 - q if j == y else q * math.exp(scores[j] - top) / total for j in range(classes)])
    return np.array(rows)
