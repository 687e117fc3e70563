"""Saved runs: the contract on disk, written so that nothing is lost and read without torch.

    <run>/manifest.json                    configuration, seeds, noise, versions, hardware, status; never host, user or path
          metrics/part-<step>.parquet      tidy: step, epoch, split, group, metric, value
          examples/part-<step>.parquet     one row per tracked example and step
          checkpoints/step-<step>.safetensors + .json

Columns, units and meanings stand in `noisesam.runs.schema`.
"""

from noisesam.runs.checkpoints import Checkpoint
from noisesam.runs.checks import validate_manifest
from noisesam.runs.collection import RunCollection, open_runs
from noisesam.runs.manifest import build_manifest, configuration_hash, portable_configuration, setting_hash
from noisesam.runs.reader import Problem, Run, open_run
from noisesam.runs.schema import EXAMPLES_COLUMNS, GROUPS, METRICS, METRICS_COLUMNS, SCHEMA_VERSION, SPLITS
from noisesam.runs.verify import verify
from noisesam.runs.writer import RunWriter

__all__ = [
    "EXAMPLES_COLUMNS",
    "GROUPS",
    "METRICS",
    "METRICS_COLUMNS",
    "SCHEMA_VERSION",
    "SPLITS",
    "Checkpoint",
    "Problem",
    "Run",
    "RunCollection",
    "RunWriter",
    "build_manifest",
    "configuration_hash",
    "open_run",
    "open_runs",
    "portable_configuration",
    "setting_hash",
    "validate_manifest",
    "verify",
]
