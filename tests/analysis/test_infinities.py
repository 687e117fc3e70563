"""A run that diverged leaves infinite values; the analysis takes them as not measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from noisesam.analysis import early_stopping, interval, memorisation, norms, summary
from noisesam.runs.schema import METRICS


def curves(last: float) -> pd.DataFrame:
    rows = [
        {"run": f"r{seed}", "method": "sgd", "setting": "", "seed": seed, "step": step, "epoch": float(step)}
        | {"split": split, "group": group, "metric": metric.name, "value": 0.25 * step if step < 3 else last}
        for seed in range(2)
        for metric in METRICS.values()
        for split in metric.splits
        for group in metric.groups
        for step in range(4)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
@pytest.mark.parametrize("table", [early_stopping, memorisation, norms, summary])
def test_infinite_values_count_as_not_measured(table, infinity):
    pd.testing.assert_frame_equal(table(curves(infinity)), table(curves(np.nan)))


def test_an_interval_counts_finite_values_alone():
    assert interval([0.1, 0.3, np.inf, -np.inf, np.nan]) == interval([0.1, 0.3])
    assert interval([np.inf]).n == 0
