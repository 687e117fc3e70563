"""Small invented tables in the shape of noisesam.analysis: the figures are tested on what they are handed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

RUN = ["run", "method", "setting", "seed"]


def invent(methods=("sgd", "1-sam"), seeds=3, epochs=20, *, noisy=True, setting="") -> SimpleNamespace:
    rng = np.random.default_rng(0)
    metrics, stops, path, equal, memorised, norm, weights = [], [], [], [], [], [], []
    for method in methods:
        for seed in range(seeds):
            run = (f"{method}-{setting}-{seed}", method, setting, seed)
            test = rng.uniform(0.5, 0.9, epochs + 1)
            for epoch in range(epochs + 1):
                at = (*run, 16 * epoch, float(epoch))
                fitted, true = rng.uniform(0.0, 0.4), rng.uniform(0.2, 0.5)
                metrics.append((*at, "test", "all", "accuracy", test[epoch]))
                metrics.append((*at, "train", "all", "accuracy", 0.5))
                if noisy:
                    metrics.append((*at, "train", "clean", "accuracy", rng.uniform(0.8, 1.0)))
                    metrics.append((*at, "train", "noisy", "accuracy", fitted))
                nan = float("nan")
                memorised.append((*at, *((true, fitted, 1 - true - fitted) if noisy else (nan, nan, nan))))
                path.append((*at, rng.uniform(0.2, 1.2) if noisy else nan))
                norm.append((*at, rng.uniform(1.0, 9.0), rng.uniform(1.0, 3.0)))
                if method == methods[0]:
                    equal.extend((*at, rule, rng.uniform(0.2, 1.2) if noisy else nan) for rule in ("sgd", "1-sam", "j-sam"))
                for group in ("all", "clean", "noisy") if noisy else ("all",):
                    for position in range(4):
                        loss = np.exp(position - 3.0) * rng.uniform(0.9, 1.1)
                        weights.append((*at, group, position, loss, rng.uniform(1.0, 2.0), rng.uniform(0.9, 1.1)))
            best = int(test.argmax())
            for selection, epoch in (("oracle", best), ("validation", max(best - 1, 0)), ("last", epochs)):
                stops.append((*run, selection, 16 * epoch, float(epoch), test[epoch]))
    at = [*RUN, "step", "epoch"]
    return SimpleNamespace(
        metrics=pd.DataFrame(metrics, columns=[*at, "split", "group", "metric", "value"]),
        stops=pd.DataFrame(stops, columns=[*RUN, "selection", "step", "epoch", "test_accuracy"]),
        path=pd.DataFrame(path, columns=[*at, "ratio"]),
        equal=pd.DataFrame(equal, columns=[*at, "rule", "ratio"]),
        memorised=pd.DataFrame(memorised, columns=[*at, "predicts_true", "predicts_observed", "predicts_other"]),
        norms=pd.DataFrame(norm, columns=[*at, "hidden_activation_norm", "last_layer_norm"]),
        weights=pd.DataFrame(weights, columns=[*at, "group", "bin", "loss", "logit_weight", "jacobian_weight"]),
    )


@pytest.fixture
def tables():
    """Return the maker of invented tables."""
    return invent
