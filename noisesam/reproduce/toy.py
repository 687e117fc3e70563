"""The toy of docs/mechanism.md: its table, and the settings in which its lesson turns round. Tables load no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from noisesam.analysis import Interval, interval, paired_difference
from noisesam.errors import InputError

LINEAR, ZERO_START, TWO_LAYER = "linear", "linear, zero start", "two-layer linear"
SETTINGS = (LINEAR, ZERO_START, TWO_LAYER)
"""The toy itself, and the two settings in which it turns round (the traps)."""

METHODS: tuple[tuple[str, float], ...] = (
    ("sgd", math.nan),
    ("1-sam", 0.03), ("1-sam", 0.1), ("1-sam", 0.3),
    ("sam", 0.1), ("sam", 0.3), ("sam", 1.0),
)  # fmt: skip
"""Method and rho of the linear toy; gradient descent has no rho (NaN)."""

TWO_LAYER_METHODS: tuple[tuple[str, float], ...] = (
    ("sgd", math.nan),
    *((name, rho) for name in ("1-sam", "l-sam", "j-sam") for rho in (0.01, 0.03, 0.1, 0.3)),
)
"""Method and rho of the two-layer linear toy."""

STEPS = 400
TABLE_STEPS = (0, 10, 25, 50, 100)
"""The steps at which the table states ratios."""
RATIO_STEPS = (0, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 100, 150, 200, 300, 400)
"""The steps at which ratios are measured."""

RUN = ("setting", "method", "rho", "seed")
COLUMNS: dict[str, tuple[str, ...]] = {
    "accuracy": (*RUN, "step", "epoch", "test_accuracy", "train_accuracy", "clean_fitted", "noisy_fitted"),
    "runs": (*RUN, "peak", "peak_step", "last"),
    "peaks": (
        *("setting", "method", "rho", "seeds", "peak_mean", "peak_sd", "peak_low", "peak_high"),
        *("last_mean", "last_sd", "gain_mean", "gain_low", "gain_high"),
    ),
    "ratios": (
        *(*RUN, "step", "step_term_clean", "step_term_noisy", "step_term_ratio"),
        *("plain_gradient_clean", "plain_gradient_noisy", "plain_gradient_ratio"),
    ),
    "traps": (
        *("trap", "method", "rho", "rho_chosen", "seeds", "peak_mean", "peak_sd", "peak_low", "peak_high"),
        *("gain_mean", "gain_low", "gain_high"),
    ),
}
"""The tables of a `ToyResult` and their columns."""


@dataclass(frozen=True)
class ToyResult:
    """The tables of the toy; rho is NaN for gradient descent, accuracies and fractions lie in [0, 1], intervals are 95% t.

    Attributes:
        accuracy: One row per run and step: setting (of SETTINGS), method, rho, seed, step, epoch; test_accuracy in closed
            form on clean data; train_accuracy on the observed labels, clean_fitted (the same on correctly labelled
            examples), noisy_fitted (wrong labels reproduced). The linear settings have every step, the two-layer one the
            end of every epoch.
        runs: One row per run: peak (highest test accuracy), peak_step, last (test accuracy at the end).
        peaks: One row per setting, method and rho, over seeds: mean, sd and interval of the peak; mean and sd of the last
            test accuracy; gain, the peak minus that of gradient descent at the same seed, with its interval.
        ratios: One row per linear run and measured step, on the method's own path: mean norm over clean and over noisy
            examples and their ratio, of the step terms J(theta_J)^T r(theta_L) and, beside them and another quantity, of
            the plain gradients J(w)^T r(w).
        traps: One row per trap and method: the peaks again, each method at one rho; rho_chosen says how: "oracle" is the
            rho with the highest mean peak, chosen on the test accuracy itself, empty where there is no choice.
    """

    accuracy: pd.DataFrame
    runs: pd.DataFrame
    peaks: pd.DataFrame
    ratios: pd.DataFrame
    traps: pd.DataFrame

    def __post_init__(self) -> None:
        for name, columns in COLUMNS.items():
            missing = [column for column in columns if column not in getattr(self, name).columns]
            if missing:
                raise InputError(
                    f"The toy's table {name!r} lacks the column {missing[0]!r}",
                    expected="the columns " + ", ".join(columns),
                    remedy="Build it with noisesam.reproduce.toy_grid().",
                )

    def ratio_table(self) -> pd.DataFrame:
        """Return the mean ratios over seeds at the steps of the table: one row per method and rho of the linear toy.

        Returns:
            method, rho, quantity ("step terms" or "plain gradients"), and one column per step of TABLE_STEPS.
        """
        own = self.ratios[(self.ratios["setting"] == LINEAR) & self.ratios["step"].isin(TABLE_STEPS)]
        parts = []
        for quantity, column in (("step terms", "step_term_ratio"), ("plain gradients", "plain_gradient_ratio")):
            wide = own.pivot_table(index=["method", "rho"], columns="step", values=column, sort=False, dropna=False)
            parts.append(wide.dropna(how="all").rename_axis(columns=None).reset_index().assign(quantity=quantity))
        table = pd.concat(parts, ignore_index=True)
        return table[["method", "rho", "quantity", *TABLE_STEPS]]


def toy_grid(seeds: int = 5, *, two_layer_seeds: int = 5) -> ToyResult:
    r"""Run the toy of docs/mechanism.md and both of its traps.

    Two classes y in {-1, +1} with x = y [B, gamma z], z ~ N(0, I_{d-1}), n = 500, d = 1000, B = 4, gamma = 1, and 40% of
    the training labels flipped; the clean test accuracy of a linear model is Phi(B w_1 / (gamma ||w_{2:d}||)) exactly.

    - "linear": w_0 ~ N(0, 0.03^2), full batch, lr 0.02, 400 steps; gradient descent, 1-SAM and naive (batch) SAM.
    - "linear, zero start": the same from w_0 = 0, where 1-SAM gains nothing and naive SAM is best.
    - "two-layer linear": f = <v, W x>, 64 hidden, W ~ N(0, 1/d), v ~ N(0, 1/64), batches of 50, lr 0.01, 20 epochs, where
      L-SAM beats 1-SAM and J-SAM; every method at rho .01/.03/.1/.3. vW is linear, so the test accuracy is exact here too.

    Models of one setting are trained together (`noisesam.training.train_stacked`), on one thread, so that equal calls give
    equal bits. Data, noise, weights and batches come from `seed_for(seed, ...)`, as in `noisesam.fit`.

    Args:
        seeds: Number of seeds of the linear settings, 0 to seeds - 1.
        two_layer_seeds: Number of seeds of the two-layer one.

    Returns:
        Its tables.

    Raises:
        InputError: Fewer than one seed.

    References:
        Baek, Kolter, Raghunathan 2024, "Why is SAM Robust to Label Noise?", arXiv 2405.03676 (the data; sizes and rates
        are this project's own, docs/mechanism.md).
    """
    for name, value in (("seeds", seeds), ("two_layer_seeds", two_layer_seeds)):
        if value < 1:
            raise InputError(f"{name}={value}", expected="at least one seed")
    from noisesam.reproduce import toy_runs

    linear, ratios = toy_runs.linear(range(seeds))
    accuracy = pd.concat([linear, toy_runs.two_layer(range(two_layer_seeds))], ignore_index=True)
    runs = per_run(accuracy)
    peaks = over_seeds(runs)
    return ToyResult(accuracy, runs, peaks, ratios, traps_of(peaks))


def per_run(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Return the peak (the first highest test accuracy) and the last test accuracy of every run."""
    found = []
    for keys, own in accuracy.groupby([*RUN], sort=False, dropna=False):
        curve, steps = own["test_accuracy"].to_numpy(), own["step"].to_numpy()
        best = int(curve.argmax())
        found.append((*keys, float(curve[best]), int(steps[best]), float(curve[-1])))
    return pd.DataFrame(found, columns=[*COLUMNS["runs"]])


def over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds, and the gain over gradient descent paired by seed."""
    rows = []
    for (setting, method, rho), own in runs.groupby(["setting", "method", "rho"], sort=False, dropna=False):
        plain = runs[(runs["setting"] == setting) & (runs["method"] == "sgd")]
        peak, last = interval(own["peak"]), interval(own["last"])
        gain = (
            Interval(math.nan, math.nan, math.nan, math.nan, 0)
            if method == "sgd"
            else paired_difference(_by_seed(own), _by_seed(plain))
        )
        rows.append((setting, method, rho, peak.n, *peak[:4], last.mean, last.sd, gain.mean, gain.low, gain.high))
    return pd.DataFrame(rows, columns=[*COLUMNS["peaks"]])


def traps_of(peaks: pd.DataFrame) -> pd.DataFrame:
    """Return each method of the two traps at the rho with the highest mean peak."""
    rows = []
    for trap in (ZERO_START, TWO_LAYER):
        own = peaks[peaks["setting"] == trap]
        for method in dict.fromkeys(own["method"]):
            of_method = own[own["method"] == method]
            best = of_method.loc[of_method["peak_mean"].idxmax()]
            chosen = {"trap": trap, "rho_chosen": "oracle" if len(of_method) > 1 else ""}
            rows.append({**best.to_dict(), **chosen})
    return pd.DataFrame(rows)[[*COLUMNS["traps"]]]


def _by_seed(runs: pd.DataFrame) -> dict[int, float]:
    return dict(zip((int(seed) for seed in runs["seed"]), (float(peak) for peak in runs["peak"]), strict=True))
