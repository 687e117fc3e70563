"""Published numbers that may stand beside measured ones, with their source and what differs."""

from __future__ import annotations

import pandas as pd

from noisesam.reproduce.evidence import MAIN, Evidence

SETTING = "CIFAR-10, ResNet-18 with layer normalisation, 30% label noise, best test accuracy"
SOURCE = "Baek, Kolter, Raghunathan 2024, arXiv 2405.03676 (known second-hand; the gaps also from published summaries)"

BEST_TEST_ACCURACY = {"sgd": 0.5248, "1-sam": 0.6947, "j-sam": 0.6917, "l-sam": 0.5413, "reg-sgd": 0.608}
"""Fractions. The last is SGD with a penalty on the last hidden activation and the last layer's weight."""


def beside_published(evidence: Evidence, *, same_setting: bool) -> pd.DataFrame:
    """Return the published best test accuracies beside ours, method by method.

    Ours is the oracle's: the best test accuracy of a run, mean over its seeds, since the published numbers are of that kind.

    Args:
        evidence: The runs of one setting.
        same_setting: Whether they are of the published setting (data, model, noise rate, batch size, learning rate); the
            table says what they are otherwise.

    Returns:
        One row per method that has a published number or runs of ours: method, published, published_gap (to sgd), ours,
        ours_gap, seeds, setting (of ours), comparison ("the published setting" or "another setting"), source.

    References:
        C. Baek, J. Z. Kolter, A. Raghunathan (2024). Why is SAM Robust to Label Noise? arXiv 2405.03676.
    """
    ours = {method: list(evidence.values(method, "oracle_test_accuracy").values()) for method in evidence.methods(MAIN)}
    means = {method: sum(values) / len(values) for method, values in ours.items() if values}
    rows = []
    for method in dict.fromkeys([*BEST_TEST_ACCURACY, *means]):
        published, own = BEST_TEST_ACCURACY.get(method), means.get(method)
        base = means.get("sgd")
        rows.append(
            {
                "method": method,
                "published": published,
                "published_gap": None if published is None else published - BEST_TEST_ACCURACY["sgd"],
                "ours": own,
                "ours_gap": None if own is None or base is None else own - base,
                "seeds": len(ours.get(method, [])),
                "setting": evidence.setting,
                "comparison": "the published setting" if same_setting else "another setting",
                "source": f"{SETTING}; {SOURCE}" if published is not None else "",
            }
        )
    return pd.DataFrame(rows)
