"""The controls that vary one number: width, number of images, learning rate, rate of wrong labels. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from noisesam.analysis import Interval, interval
from noisesam.reproduce.controls_rules import (
    EXPECTATION,
    L_SAM_NEAR,
    NEAR,
    Judged,
    Ruling,
    above_or_below,
    advantages,
    decide,
    everywhere,
    left_out,
    present,
    ruling,
    slopes,
    within,
)
from noisesam.reproduce.controls_runs import STOPS, ControlRuns
from noisesam.reproduce.decisions import CONFIDENCE, NOTHING, REFUTED, SUPPORTED, UNTESTED, written
from noisesam.reproduce.findings import J_SAM, L_SAM, ONE_SAM, SGD

NARROWEST = 8.0
LOW_RATE, HIGH_RATE = 0.2, 0.6
LEARNING_RATE_STOPS = {**STOPS, "clean90": "90% of clean labels fitted"}

Named = Callable[[float], str]


def width(runs: ControlRuns) -> Judged:
    """Judge experiments/control-width.toml."""
    named: Named = "width {:g}".format
    skipped = left_out(runs, named)
    rulings = _trends(runs, skipped, "width", {(name, "last"): ("grows",) for name in (ONE_SAM, J_SAM)})
    narrow = runs.at(NARROWEST)
    for stop in STOPS:
        found = _gain(narrow, ONE_SAM, stop)
        rulings.append(ruling(f"{ONE_SAM} persists at width 8", stop, found, _persists))
    rulings.append(
        ruling(
            f"{ONE_SAM} not negative at width 8", "last", _gain(narrow, ONE_SAM, "last"),
            lambda found: decide(found, ("not negative", found.low >= 0), ("negative", found.high < 0)),
            expected=("not negative",), by=EXPECTATION,
        )
    )  # fmt: skip
    fitted = {place: runs.at(place).values(runs.at(place).best_of(SGD), "last_noisy_fitted") for place in runs.places}
    rulings.append(
        ruling(
            "wrong labels that sgd fits, with width", "last", slopes(fitted),
            lambda found: above_or_below(found, "grows", "falls"), expected=("grows",), by=EXPECTATION, unit=" per doubling",
        )
    )  # fmt: skip
    rulings.append(_l_sam_near(runs, named))
    return _judged(runs, rulings, STOPS, skipped)


def _persists(found: Interval) -> tuple[str, str]:
    return decide(found, ("persists", found.low > 0), ("does not persist", found.high < NEAR))


def train_size(runs: ControlRuns) -> Judged:
    """Judge experiments/control-train-size.toml."""
    skipped = left_out(runs, "{:g} images".format)
    expected = {(name, stop): ("grows",) for name in (ONE_SAM, J_SAM) for stop in STOPS}
    return _judged(runs, _trends(runs, skipped, "images", expected), STOPS, skipped)


def learning_rate(runs: ControlRuns) -> Judged:
    """Judge experiments/control-learning-rate.toml."""
    named: Named = "rate {:g}".format
    skipped = left_out(runs, named)
    kept = [place for place in runs.places if place not in skipped]
    rulings: list[Ruling] = []
    for method in runs.methods:
        expected = (SUPPORTED,) if method in (ONE_SAM, J_SAM) else ()
        found = {named(place): _gain(runs.at(place), method, "last") for place in kept}
        why = "; ".join(skipped.values())
        question = f"{method} above sgd at every rate"
        rulings.append(everywhere(question, "last", found, _supported, expected=expected, beside=why))
    base = runs.best_of(SGD)
    for method in runs.methods:
        best = runs.best_of(method)
        rates = ", ".join(f"{name} at {_place_of(runs, label):g}" for name, label in ((method, best), (SGD, base)) if label)
        expected = ("above",) if method == ONE_SAM else ()
        for stop in STOPS:
            found = runs.gain(best, base, f"{stop}_test_accuracy")
            rulings.append(
                ruling(
                    f"{method} over sgd, each at its best rate", stop, found, lambda one: above_or_below(one, "above", "below"),
                    expected=expected, by=EXPECTATION, beside=f"learning rates: {rates}",
                )
            )  # fmt: skip
    return _judged(runs, rulings, LEARNING_RATE_STOPS, skipped)


def _supported(found: Interval) -> tuple[str, str]:
    return above_or_below(found, SUPPORTED, REFUTED)


def _place_of(runs: ControlRuns, label: str) -> float:
    return float(runs.runs.loc[runs.runs["label"] == label, "place"].iloc[0])


def noise_rate(runs: ControlRuns) -> Judged:
    """Judge experiments/control-noise-rate.toml."""
    rulings: list[Ruling] = []
    for method in runs.methods:
        for stop in STOPS:
            found = _gain(runs.at(0.0), method, stop)
            rulings.append(
                ruling(
                    f"{method} without noise", stop, found, lambda one: within(one, "no difference", "a difference", NEAR),
                    expected=("no difference",),
                )
            )  # fmt: skip
    realised = "realised rates: " + ", ".join(_realised(runs.at(place)) for place in runs.places)
    for method in runs.methods:
        for stop in STOPS:
            low, high = (_gains(runs.at(place), method, stop) for place in (LOW_RATE, HIGH_RATE))
            found = interval([high[seed] - low[seed] for seed in high if seed in low], CONFIDENCE)
            expected = ("grows",) if method in (ONE_SAM, J_SAM) and stop == "last" else ()
            question = f"{method} with the rate, 20 to 60%"
            rulings.append(
                ruling(
                    question, stop, found, lambda one: above_or_below(one, "grows", "falls"), expected=expected, beside=realised
                )
            )
    rulings.append(_l_sam_near(runs, lambda place: f"{100 * place:g}%"))
    return _judged(runs, rulings, STOPS, {})


def _realised(runs: ControlRuns) -> str:
    rates = runs.runs["realised_rate"].dropna()
    low, high = 100 * float(rates.min()), 100 * float(rates.max())
    return f"{low:.1f}%" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}%"


def _gains(runs: ControlRuns, method: str, stop: str) -> dict[int, float]:
    """Return seed -> advantage over SGD of the option of a method that validation labels choose."""
    return runs.gains(runs.best_of(method), runs.best_of(SGD), f"{stop}_test_accuracy")


def _gain(runs: ControlRuns, method: str, stop: str) -> Interval:
    return interval(_gains(runs, method, stop).values(), CONFIDENCE)


def _trends(
    runs: ControlRuns, skipped: Mapping[float, str], what: str, expected: Mapping[tuple[str, str], tuple[str, ...]]
) -> list[Ruling]:
    """Judge for every method and stop whether the advantage grows with the factor, over the places that are not left out."""
    kept = [place for place in runs.places if place not in skipped]
    beside = "; ".join(skipped.values())
    found: list[Ruling] = []
    for method in runs.methods:
        for stop in STOPS:
            question, words = f"{method} with {what}", expected.get((method, stop), ())
            if len(kept) < 2:
                reason = "; ".join(part for part in (f"fewer than two values of the {what} are left", beside) if part)
                found.append(Ruling(question, stop, UNTESTED, written(NOTHING, "points"), NOTHING, words, reason=reason))
                continue
            line = slopes({place: _gains(runs.at(place), method, stop) for place in kept})
            found.append(
                ruling(
                    question, stop, line, lambda one: above_or_below(one, "grows", "falls"),
                    expected=words, beside=beside, unit=" per doubling",
                )
            )  # fmt: skip
    return found


def _l_sam_near(runs: ControlRuns, named: Named) -> Ruling:
    """Hold L-SAM against the expectation that it stays near SGD at the last epoch, everywhere."""
    found = {named(place): _gain(runs.at(place), L_SAM, "last") for place in runs.places}
    return everywhere(
        "l-sam within 6 points of sgd", "last", found, lambda one: within(one, "within", "outside", L_SAM_NEAR),
        words=("within", "outside"), expected=("within",), by=EXPECTATION,
    )  # fmt: skip


def _judged(runs: ControlRuns, rulings: Sequence[Ruling], stops: Mapping[str, str], skipped: Mapping[float, str]) -> Judged:
    """Put the rulings together with the advantages at every place."""
    rows, chosen = [], set()
    for place in runs.places:
        own = runs.at(place)
        labels = present([own.best_of(method) for method in (SGD, *own.methods)])
        chosen |= {*labels}
        compared = [label for label in labels if label != own.best_of(SGD)]
        rows += advantages(own, compared, stops, place=place, reason=skipped.get(place, ""))
    return Judged([*rulings], rows, chosen)
