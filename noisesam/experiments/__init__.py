"""Experiments as data: what is run is stated in a file before it is run, and running it is a loop over independent jobs.

    run_all(jobs, *, workers=2, executor=None, data_root=None, progress=None, on_failure="raise") -> Outcome
        makes what is not finished, resumes what broke, reports every failure; on processes of one thread each by default,
        on any `concurrent.futures.Executor` otherwise
    read_sweep(path) -> Sweep        a setting, a grid of points, seeds, expectation and decision rule
        .config(point, seed, *, options=None), .jobs(folder, calibration=None), .options(method, calibration), .check()
        .calibration_jobs(folder), .choices(folder) -> the hyper-parameters that the runs of the calibration choose
    read_calibration(path) -> Calibration, write_calibration(path, calibration)
        the committed table: what each method of each sweep is run with, chosen on noisy validation labels; .with_choices([...])
    chosen_by_validation(tries, grids) -> table of every try, its noisy validation accuracy, and which one is taken
    at_chance(run) -> whether a run learnt nothing that shows on the validation split

Nothing here prints or loads torch before a run is made.
"""

from noisesam.experiments.calibration import CalibrationPlan, Choice, Try
from noisesam.experiments.calibration_table import Calibration, read_calibration, write_calibration
from noisesam.experiments.jobs import FailedRunError, Failure, Job, Outcome, Progress, Report, is_finished
from noisesam.experiments.reading import read_sweep
from noisesam.experiments.running import run_all
from noisesam.experiments.selection import at_chance, chosen_by_validation
from noisesam.experiments.sweeps import Point, Sweep

__all__ = [
    "Calibration",
    "CalibrationPlan",
    "Choice",
    "FailedRunError",
    "Failure",
    "Job",
    "Outcome",
    "Point",
    "Progress",
    "Report",
    "Sweep",
    "Try",
    "at_chance",
    "chosen_by_validation",
    "is_finished",
    "read_calibration",
    "read_sweep",
    "run_all",
    "write_calibration",
]
