"""Sentences follow the numbers, whichever way they point."""

from __future__ import annotations

import functools
import math

import pytest

from noisesam import analysis
from noisesam.analysis.mechanism_findings import _exp

GOOD = {"peak": 0.95, "last": 0.93, "memorised": 0.3, "activation": 0.5}
BAD = {"peak": 0.85, "last": 0.5, "memorised": 0.95, "activation": 4.0}
SAME: dict = {}


sentences_of = functools.cache(analysis.findings)


def said(runs, *words: str) -> str:
    """Return the one sentence that holds all the words."""
    found = [sentence for sentence in sentences_of(runs) if all(word in sentence for word in words)]
    assert len(found) == 1, sentences_of(runs)
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "early", "last", "memory", "norm"),
    [
        (GOOD, "1-sam is ahead by", "1-sam is ahead by", "1-sam memorises fewer of them than sgd", ", smaller ("),
        (BAD, "1-sam is behind by", "1-sam is behind by", "1-sam memorises more of them than sgd", ", larger ("),
    ],
    ids=["gain", "loss"],
)
def test_the_verdict_on_1_sam_comes_out_both_ways(study, arguments, early, last, memory, norm):
    runs = study({"sgd": {}, "1-sam": arguments})
    assert early in said(runs, "Stopped where the noisy validation accuracy is highest", "test accuracy")
    assert last in said(runs, "At the end of training 1-sam reaches")
    assert memory in said(runs, "Wrong labels memorised at the end")
    assert norm in said(runs, "norm of the last hidden activation,", "1-sam")
    assert norm in said(runs, "norm of the last layer's weight,", "1-sam")
    assert "95% interval" in said(runs, "At the end of training 1-sam reaches")
    assert "3 seeds" in said(runs, "At the end of training 1-sam reaches")


def test_a_difference_within_the_spread_is_not_called_one(study):
    runs = study({"sgd": {}, "1-sam": SAME, "sam": SAME})
    assert "cannot be told from none" in said(runs, "At the end of training 1-sam reaches")
    assert "cannot be told apart" in said(runs, "batch sam gains", "and 1-sam")


@pytest.mark.parametrize(
    ("sam", "verdict"), [({"peak": 0.92}, "less than 1-sam"), ({"peak": 0.98}, "more than 1-sam")], ids=["less", "more"]
)
def test_batch_sam_may_gain_less_or_more(study, sam, verdict):
    assert verdict in said(study({"sgd": {}, "1-sam": GOOD, "sam": sam}), "batch sam gains", "over sgd")


@pytest.mark.parametrize("keeper", ["j-sam", "l-sam"])
def test_either_part_may_keep_the_gain(study, keeper):
    loser = {"j-sam": "l-sam", "l-sam": "j-sam"}[keeper]
    runs = study({"sgd": {}, "1-sam": GOOD, keeper: GOOD, loser: SAME})
    kept = said(runs, "At the end of training, of 1-sam's gain")
    shares = {
        part.split(" keeps ")[0].split(" ")[-1]: part.split(" keeps ")[1] for part in kept.split(", ") if " keeps " in part
    }
    fractions = {name: 0.0 if text.startswith("none") else float(text.split("%")[0]) for name, text in shares.items()}
    # The invented gain is 23 points, with a jitter of 0.2 each.
    assert fractions[keeper] == pytest.approx(100, abs=6)
    assert fractions[loser] == pytest.approx(0, abs=6)
    worth = {"j-sam": "the Jacobian part (j-sam) is worth", "l-sam": "the logit-scale part (l-sam) is worth"}
    assert said(runs, "At the end of training the", "is worth").startswith(f"At the end of training {worth[keeper]}")


def test_no_gain_is_not_divided_into_parts(study):
    runs = study({"sgd": {}, "1-sam": BAD, "j-sam": GOOD, "l-sam": SAME})
    assert "1-sam has no gain over sgd that could be divided" in said(runs, "At the end of training 1-sam has no gain")
    assert "j-sam +2" in said(runs, "At the end of training 1-sam has no gain")


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [(1.5, "towards the correctly labelled"), (0.5, "towards the wrongly labelled")],
)
def test_the_gradient_weight_may_shift_either_way(study, gain, verdict):
    runs = study({"sgd": {"rule_gain": {"j_sam": gain}}, "1-sam": SAME})
    sentence = said(runs, "the step of each rule weighs")
    assert f"j-sam {gain:.3f}, {verdict} (" in sentence


def test_one_seed_is_never_a_finding(study):
    runs = study({"sgd": {}, "1-sam": GOOD, "j-sam": GOOD, "l-sam": SAME}, seeds=(0,))
    sentences = sentences_of(runs)
    assert not any("nan" in sentence for sentence in sentences)
    assert "one seed, so no interval: not yet a finding" in said(runs, "At the end of training 1-sam reaches")
    assert not any("95% interval" in sentence for sentence in sentences)


def test_a_study_without_the_baseline_or_without_probes_says_so_or_nothing(study):
    runs = study({"1-sam": {"probe": False, "true_labels": False, "validation": False}})
    assert analysis.findings(runs)[-1] == "There is no run of sgd, so nothing is said on gains."
    both = study({"sgd": {"probe": False, "true_labels": False, "validation": False}})
    sentences = analysis.findings(both)
    assert not any("nan" in sentence for sentence in sentences)
    assert "an upper bound, chosen on the test set" in sentences[0]
    assert not any(word in sentence for sentence in sentences for word in ("norm", "memorised", "weighs"))


def test_the_best_of_several_settings_is_chosen_on_validation_and_named(study):
    runs = study(
        {
            "sgd": {},
            "small": {"method": "1-sam", "rho": 0.05, "peak": 0.8},
            "large": {"method": "1-sam", "rho": 0.1, "peak": 0.95},
        }
    )
    note = said(runs, "Of 2 settings of 1-sam")
    assert note.startswith("Of 2 settings of 1-sam, rho=0.1 stands for it: its mean accuracy on the noisy validation examples")
    assert "1-sam (rho=0.1) reaches" in said(runs, "At the end of training 1-sam")


def test_a_baseline_that_fits_no_noise_is_said_to_show_little(study):
    def warned(memorised: float) -> bool:
        runs = study({"sgd": {"memorised": memorised}, "1-sam": GOOD})
        return any("never fits the wrong labels beyond chance" in sentence for sentence in sentences_of(runs))

    assert warned(0.1)
    assert not warned(0.8)


def test_unfinished_runs_are_said_to_be(study):
    runs = study({"sgd": {}, "1-sam": {"finish": False}})
    assert analysis.findings(runs)[0].startswith("3 of 6 runs did not finish; their last evaluation stands for the end")


def test_a_foreign_run_with_norms_beyond_any_ratio_does_not_hide_the_others(study):
    runs = study({"sgd": {}, "1-sam": GOOD | {"activation": 1e15}})
    (said,) = (sentence for sentence in analysis.findings(runs) if "norm of the last hidden activation" in sentence)
    assert "1-sam 3.33e+14, larger" in said
    assert _exp(800.0) == math.inf  # an interval of two seeds that are as far apart


def test_experiments_are_told_apart(study):
    low = {"noise": {"kind": "symmetric", "rate": 0.2}}
    runs = study(
        {"sgd": {}, "1-sam": GOOD, "sgd-low": {"method": "sgd", "sections": low}, "low": {"method": "1-sam", "sections": low}}
    )
    sentences = analysis.findings(runs)
    assert {sentence.split("] ")[0] for sentence in sentences} == {"[noise.rate=0.4", "[noise.rate=0.2"}
