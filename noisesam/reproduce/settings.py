"""The scales of a reproduction and their settings: one sweep file each, found by its name in the folder of experiments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from noisesam.errors import ConfigurationError, unknown_name
from noisesam.experiments import CalibrationPlan, Job, Sweep, read_calibration, read_sweep
from noisesam.reproduce.controls import CONTROLS
from noisesam.reproduce.evidence import DEEP, LINEAR, MAIN, TWO_LAYER
from noisesam.training.config import Config, ModelConfig

PAPER = "baek2024"
CALIBRATION = "calibration.toml"


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is.

    Attributes:
        name: toy, cpu, gpu or controls.
        title: What it is, in a line.
        minutes: What it may take on two cores; None where it takes what it is given.
        by_method: Whether whole methods are run one after the other, those with wrong labels first, so that a scale that is
            stopped early has its most telling runs; otherwise seed by seed, so that it has whole seeds.
        stem: How the names of its sweep files begin.
        controls: Whether its settings are controls: grids that are judged by rules of their own, in which a run may diverge.
    """

    name: str
    title: str
    minutes: float | None
    by_method: bool = False
    stem: str = ""
    controls: bool = False


SCALES = {
    "toy": Scale("toy", "linear and two-layer linear models on Gaussian data", 0.5),
    "cpu": Scale("cpu", "small models on subsets of real images", 45.0, stem=f"{PAPER}-cpu"),
    "gpu": Scale("gpu", "CIFAR-10 with ResNet-18", None, by_method=True, stem=f"{PAPER}-gpu"),
    "controls": Scale("controls", "matched controls, an MLP on digits", 45.0, stem="control", controls=True),
}


def scale_named(name: str) -> Scale:
    """Return a scale.

    Raises:
        InputError: There is no such scale.

    Example:
        >>> scale_named("cpu").minutes
        45.0
    """
    if name not in SCALES:
        raise unknown_name("scale", name, SCALES)
    return SCALES[name]


@dataclass(frozen=True)
class Setting:
    """One setting of a scale: its sweep, and its runs by variant.

    Attributes:
        name: What the sweep file's name adds to the scale's.
        file: The sweep file.
        sweep: What it says.
        kind: One of `evidence.KINDS`: what the model is.
        variants: "main" for the setting itself, and what was changed otherwise -> the runs, in the order of the sweep. A
            control is a grid without a setting that the others vary: all of its runs are "main".
    """

    name: str
    file: Path
    sweep: Sweep
    kind: str
    variants: dict[str, tuple[Job, ...]]

    @property
    def jobs(self) -> list[Job]:
        """Return every run of the setting."""
        return [job for jobs in self.variants.values() for job in jobs]

    @property
    def tuning(self) -> list[Config]:
        """Return the configurations of the calibration's runs; none where nothing is calibrated."""
        if self.sweep.calibration is None:
            return []
        return [job.config for own in self.sweep.calibration_jobs(Path()).values() for job in own]

    @property
    def reference(self) -> Config:
        """Return the configuration of the setting itself: that of its first run."""
        return self.variants[MAIN][0].config


def experiments_folder(folder: Path | None = None) -> Path:
    """Return the folder of the sweep files: the one given, `experiments` here, or that of the checkout.

    Raises:
        ConfigurationError: There is none.
    """
    checkout = Path(__file__).resolve().parents[2] / "experiments"
    places = [folder] if folder is not None else [Path("experiments"), checkout]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ConfigurationError(
            f"No folder {places[0]}",
            expected="the folder of the sweep files, which lies in a clone of the project",
            remedy="Run the command inside a clone, or name the folder with --experiments",
        )
    return found


def sweep_files(scale: Scale, folder: Path) -> dict[str, Path]:
    """Return the sweep files of a scale by the name of their setting.

    Raises:
        ConfigurationError: The folder holds none.
    """
    stem = scale.stem
    found = {
        path.stem.removeprefix(stem).removeprefix("-") or scale.name: path for path in sorted(folder.glob(f"{stem}*.toml"))
    }
    if not found:
        raise ConfigurationError(
            f"No {stem}*.toml in {folder}",
            expected=f"one sweep file per setting of the scale {scale.name}",
            remedy="Run the command inside a clone of the project, or name the folder with --experiments",
        )
    return found


def read_settings(scale: Scale, folder: Path, out: Path, *, provisional: bool = False) -> list[Setting]:
    """Read the sweep files of a scale and list its runs.

    Args:
        scale: The scale.
        folder: Folder of the sweep files and of the calibration table.
        out: Folder that the runs go to, under the name of their setting.
        provisional: Take the first try of every method that is not calibrated yet: good enough to estimate time.

    Returns:
        The settings, by name.

    Raises:
        ConfigurationError: A file is missing or not understood, or the calibration table lacks a setting or is stale.
        InputError: A control for which there is no rule.
    """
    return [_setting(scale, name, path, folder, out, provisional) for name, path in sweep_files(scale, folder).items()]


def _setting(scale: Scale, name: str, path: Path, folder: Path, out: Path, provisional: bool) -> Setting:
    if scale.controls and name not in CONTROLS:
        raise unknown_name("control", name, CONTROLS)
    sweep = read_sweep(path)
    calibration = None if sweep.calibration is None else read_calibration(folder / CALIBRATION)
    try:
        jobs = sweep.jobs(out / name, calibration=calibration)
    except ConfigurationError:
        if not provisional or sweep.calibration is None:
            raise
        jobs = _first_tries(sweep, sweep.calibration, out / name)
    reference = jobs[0].config
    variants: dict[str, list[Job]] = {MAIN: []}
    for job in jobs:
        variants.setdefault(MAIN if scale.controls else variant_of(job.config, reference), []).append(job)
    return Setting(name, path, sweep, kind_of(reference.model), {key: tuple(own) for key, own in variants.items()})


def _first_tries(sweep: Sweep, plan: CalibrationPlan, folder: Path) -> list[Job]:
    """Return the runs with the first try of every calibrated method."""
    return [
        Job(
            sweep.config(point, seed, options=plan.tried(point.method, 0) if point.method in plan.grids else None),
            folder / f"{point.label}-seed{seed}",
        )
        for seed in sweep.seeds
        for point in sweep.points
    ]


def variant_of(config: Config, reference: Config) -> str:
    """Name what sets a run apart from its setting: no-noise, size-10 (percent of the training examples), narrow or wide.

    Example:
        >>> from noisesam.training import load_config
        >>> whole = {"data": {"train_size": 1200, "validation_size": 200}, "noise": {"kind": "symmetric", "rate": 0.4}}
        >>> reference = load_config(whole)
        >>> variant_of(reference, reference), variant_of(load_config(whole, ["data.train_size=300"]), reference)
        ('main', 'size-10')
        >>> narrow = load_config(whole, ["noise.rate=0.0", "model.options={hidden = [8]}"])
        >>> variant_of(narrow, load_config(whole, ["model.options={hidden = [64]}"]))
        'no-noise-narrow'
    """
    parts = []
    if has_wrong_labels(reference) and not has_wrong_labels(config):
        parts.append("no-noise")
    elif config.noise != reference.noise:
        parts.append(f"noise-{round(100 * config.noise.rate)}")
    own, whole = _train_size(config), _train_size(reference)
    if own != whole:
        parts.append(f"size-{round(100 * own / whole)}")
    if config.model != reference.model:
        parts.append("narrow" if _width(config.model) < _width(reference.model) else "wide")
    if config.optimizer.lr != reference.optimizer.lr:
        parts.append(f"lr-{config.optimizer.lr:g}")
    return "-".join(parts) or MAIN


def kind_of(model: ModelConfig) -> str:
    """Return what a model is for the claims: linear, two-layer linear or deep.

    Example:
        >>> kind_of(ModelConfig("linear")), kind_of(ModelConfig("resnet8"))
        ('linear', 'deep')
    """
    return {"linear": LINEAR, "two-layer-linear": TWO_LAYER}.get(model.name, DEEP)


def has_wrong_labels(config: Config) -> bool:
    """Say whether labels are changed."""
    return config.noise.kind == "human" or (config.noise.kind != "none" and config.noise.rate > 0)


def in_order(settings: Iterable[Setting], scale: Scale) -> list[Job]:
    """Return the runs of all settings in the order in which they are made.

    Within a scale `by_method`: wrong labels first, then variant by variant and method by method as the sweep lists them.
    Otherwise seed by seed over all settings, the setting itself before its variants.
    """
    ordered = []
    for setting in settings:
        methods = list(dict.fromkeys(job.config.method.name for job in setting.jobs))
        for number, (variant, jobs) in enumerate(setting.variants.items()):
            for job in jobs:
                clean, method = not has_wrong_labels(job.config), methods.index(job.config.method.name)
                place = (clean, number, method, job.config.seed) if scale.by_method else (variant != MAIN, job.config.seed)
                ordered.append((place, job))
    return [job for _, job in sorted(ordered, key=lambda pair: pair[0])]


def devices(settings: Sequence[Setting]) -> list[str]:
    """Return the devices that the runs ask for."""
    return list(dict.fromkeys(job.config.training.device for setting in settings for job in setting.jobs))


def _train_size(config: Config) -> int:
    """Training examples; a data set that is taken whole counts as larger than any part."""
    return (config.data.train_size or 50_000) - config.data.validation_size


def _width(model: ModelConfig) -> float:
    """Sum of the numbers among the options: enough to tell the narrower of two models of one kind."""
    values = [item for value in model.options.values() for item in (value if isinstance(value, list) else [value])]
    return float(sum(value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)))
