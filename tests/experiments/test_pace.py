"""What an epoch takes is learnt by kind of run, so that the time left does not jump between quick and slow models."""

from __future__ import annotations

from pathlib import Path

import pytest

from noisesam.experiments.jobs import Job
from noisesam.experiments.pace import Pace
from noisesam.training import load_config


def job(name: str, model: str, method: str, examples: int = 1000) -> Job:
    rho = {} if method == "sgd" else {"rho": 0.1}
    config = {"data": {"train_size": examples}, "model": {"name": model}, "method": {"name": method, **rho}}
    return Job(load_config(config), Path(name))


@pytest.fixture
def pace() -> Pace:
    kinds = [("mlp", "sgd"), ("mlp", "1-sam"), ("linear", "sgd"), ("mlp", "sgd"), ("mlp", "l-sam"), ("linear", "sgd")]
    return Pace([job(f"run{number}", *kind) for number, kind in enumerate(kinds)])


def test_without_a_timed_epoch_epochs_are_counted(pace):
    assert {pace.seconds_per_epoch(number) for number in range(6)} == {1.0}
    pace.told(0, 0, 5.0)
    assert pace.seconds_per_epoch(0) == 1.0


def test_a_run_takes_what_its_kind_took_then_what_its_model_took_then_what_all_took(pace):
    for number, per_epoch in ((0, 1.0), (1, 3.0)):
        pace.told(number, 0, 0.0)
        pace.told(number, 10, 10 * per_epoch)
    assert pace.seconds_per_epoch(3) == pytest.approx(1.0)  # mlp, sgd
    assert pace.seconds_per_epoch(4) == pytest.approx(2.0)  # mlp with a method of which there was none yet
    assert pace.seconds_per_epoch(5) == pytest.approx(2.0)  # no model like it yet
    pace.told(2, 0, 0.0)
    pace.told(2, 1, 50.0)
    assert pace.seconds_per_epoch(5) == pytest.approx(50.0)
    assert pace.seconds_per_epoch(4) == pytest.approx(2.0)


def test_an_epoch_of_a_tenth_of_the_examples_takes_a_tenth():
    pace = Pace([job("whole", "mlp", "sgd"), job("tenth", "mlp", "sgd", 100)])
    pace.told(0, 0, 0.0)
    pace.told(0, 5, 10.0)
    assert pace.seconds_per_epoch(1) == pytest.approx(0.2)


def test_what_is_only_guessed_is_told_from_what_is_known(pace):
    pace.told(0, 0, 0.0)
    pace.told(0, 10, 10.0)
    assert [pace.knows(number) for number in range(6)] == [True, True, False, True, True, False]


def test_epochs_that_a_resumed_run_had_behind_it_are_not_timed(pace):
    pace.told(0, 40, 100.0)
    pace.told(0, 42, 108.0)
    assert pace.seconds_per_epoch(3) == pytest.approx(4.0)
