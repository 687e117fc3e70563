"""`fit`: one configuration in, one run on disk out; killed at any moment, it goes on where its last checkpoint stands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from noisesam.allocation import keep_freed_memory
from noisesam.data.loading import own_path
from noisesam.errors import NoisesamError, RunError
from noisesam.runs import Run, RunWriter, open_run, portable_configuration, setting_hash
from noisesam.runs.checkpoints import committed_steps, read_payload
from noisesam.runs.verify import missing_before
from noisesam.training.checkpoint import accelerators, seed_generators
from noisesam.training.config import Config
from noisesam.training.load import config_to_dict, load_config
from noisesam.training.loop import Loop, Progress
from noisesam.training.precision import deterministic_cudnn, tf32_allowed
from noisesam.training.preparation import Prepared, prepare
from noisesam.training.seeding import PURPOSES, seed_for
from noisesam.training.validation import validate


def fit(
    config: Config | Mapping[str, Any] | str | Path,
    directory: str | Path | None = None,
    *,
    data_root: str | Path | None = None,
    progress: Progress | None = None,
    resume: bool = True,
) -> Run:
    """Train one configuration, measure it on the way, and save everything as a run.

    The run is a function of the configuration: on one machine, with one version of torch and one number of threads, it
    repeats bit for bit on the CPU (all but `step_seconds`), also when it was killed and resumed in between, also with another
    tracking section. Torch's global generators, thread count and precision settings are afterwards as before.

    `training.augmentation` and `training.precision` are of the training steps alone: evaluation and tracking see plain images
    in `training.dtype`. The exception are the gradient norms that come with the steps (`visited_gradient_norm`).
    From then on the process keeps the memory that it frees, see `noisesam.keep_freed_memory`.

    Args:
        config: a `Config`, a nested mapping, or the path of a TOML file.
        directory: where the run is saved; None for runs/<method>-<hash of the setting>-seed<seed> under the working directory.
        data_root: folder that holds the data set, see `noisesam.data.load`.
        progress: called after every step with the steps taken, the steps in total and a line of text.
        resume: go on with the unfinished run of this configuration that the directory holds; with False any run there is an
            error.

    Returns:
        The finished run. One that was finished before is returned as it is.

    Raises:
        ConfigurationError: the configuration is not understood.
        InputError: data, model or method refuse what they are given.
        RunError: the directory holds another configuration or cannot be written, or the training diverged; the manifest then
            says `failed` and why.

    Example:
        >>> import tempfile
        >>> from noisesam.training import fit
        >>> config = {"data": {"train_size": 64}, "model": {"name": "linear"}, "training": {"epochs": 2}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = fit(config, Path(folder) / "run")
        ...     run.status, sorted(run.metrics.query("split == 'test'").metric.unique())
        ('finished', ['accuracy', 'count', 'loss', 'margin'])
    """
    checked = load_config(config)
    validate(checked)
    keep_freed_memory()
    plain, data_file = config_to_dict(checked), own_path(checked.data.name)
    path = Path(directory) if directory is not None else default_directory(checked)
    if (path / "manifest.json").exists():
        if not resume:
            raise RunError(
                f"{path} already holds a run",
                expected="a new directory (resume=False, --no-resume)",
                remedy="Choose another, delete it, or let the run be resumed.",
            )
        writer = RunWriter.resume(path, config=plain, data_file=data_file)
        if writer.status == "finished":
            writer.close()
            return open_run(path)
        with _verdict(writer):
            prepared = prepare(checked, data_root=data_root)
        _refuse_damage(writer, path, prepared)
    else:
        # Everything that can be refused is refused before there is a directory.
        prepared = prepare(checked, data_root=data_root)
        writer = _create(path, prepared, plain, data_file)
    with _verdict(writer), _surroundings(prepared):
        loop = Loop(prepared, writer, progress)
        try:
            _begin(loop, path)
            loop.run()
        except Exception:
            with contextlib.suppress(NoisesamError):
                loop.keep_what_was_measured()
            raise
        writer.finish()
    return open_run(path)


def _begin(loop: Loop, path: Path) -> None:
    """Start at the newest checkpoint, or at step 0."""
    steps = committed_steps(path)
    if steps:
        loop.resume(*read_payload(path, steps[-1]))
    else:
        loop.start()


def _refuse_damage(writer: RunWriter, path: Path, prepared: Prepared) -> None:
    """Refuse to go on behind a part that is damaged or missing: what a checkpoint stands for is not written again."""
    steps = committed_steps(path)
    found = missing_before(open_run(path), steps[-1], steps[-1] / prepared.order.steps_per_epoch) if steps else []
    if found:
        writer.close()
        raise RunError(found[0].message, remedy=found[0].remedy)


def _create(path: Path, prepared: Prepared, plain: dict[str, Any], data_file: Path | None) -> RunWriter:
    """Begin a new run on disk."""
    splits, noise = prepared.splits, prepared.splits.train.noise
    devices = accelerators(prepared.model)
    sizes = {
        "train": len(splits.train),
        "validation": 0 if splits.validation is None else len(splits.validation),
        "test": 0 if splits.test is None else len(splits.test),
        "probe": 0 if splits.probe is None else len(splits.probe),
        "classes": splits.train.num_classes,
        "input_shape": list(splits.train.inputs.shape[1:]),
    }
    return RunWriter.create(
        path,
        config=plain,
        seeds={
            purpose: seed_for(prepared.config.seed, purpose)
            for purpose in PURPOSES
            if purpose != "augmentation" or prepared.augmentation is not None
        },
        noise=None if noise is None else noise.to_dict(),
        data=sizes,
        data_file=data_file,
        gpu=torch.cuda.get_device_name(devices[0]) if devices else None,
        gpu_count=len(devices),
    )


@contextlib.contextmanager
def _verdict(writer: RunWriter) -> Iterator[None]:
    """Write into the manifest why a run failed; an interrupted or killed one stays `running` and can be resumed."""
    try:
        yield
    except Exception as error:
        # The disk may be what failed: then the manifest cannot say so, and the first error is the one that matters.
        with contextlib.suppress(NoisesamError):
            writer.fail(str(error) or type(error).__name__)
        raise
    except BaseException:
        writer.close()
        raise


@contextlib.contextmanager
def _surroundings(prepared: Prepared) -> Iterator[None]:
    """Give the run its generators and threads, and the caller theirs back."""
    threads, devices = torch.get_num_threads(), accelerators(prepared.model)
    with contextlib.ExitStack() as settings:
        settings.enter_context(torch.random.fork_rng(devices=[device.index or 0 for device in devices]))
        settings.enter_context(torch.enable_grad())
        if devices:
            settings.enter_context(deterministic_cudnn())
            # What is measured is measured alike, whatever the steps are computed in.
            settings.enter_context(tf32_allowed(False))
        try:
            if prepared.config.training.threads is not None:
                torch.set_num_threads(prepared.config.training.threads)
            seed_generators(prepared.model, seed_for(prepared.config.seed, "dropout"))
            prepared.model.train()
            yield
        finally:
            torch.set_num_threads(threads)


def default_directory(config: Config) -> Path:
    """Return where `fit` puts a run that is given no directory: it follows from the configuration and the data.

    Args:
        config: a configuration from `load_config`.

    Returns:
        runs/<method>-<hash of the setting>-seed<seed>, relative to the working directory.

    Example:
        >>> default_directory(load_config({"method": {"name": "sam", "rho": 0.1}, "seed": 3})).name[-5:]
        'seed3'
    """
    key = setting_hash(*portable_configuration(config_to_dict(config), data_file=own_path(config.data.name)))
    return Path("runs") / f"{config.method.name}-{key[:8]}-seed{config.seed}"
