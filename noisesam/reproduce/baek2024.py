"""The paper's claims from one place: what a scale runs, what its runs say, and by which rule. Nothing here prints or draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from noisesam.analysis import paired_differences, summary
from noisesam.errors import RunError
from noisesam.reproduce.claims import comparisons, judge, verdicts
from noisesam.reproduce.controls import CLAIMED, ControlTables, judge_control, together
from noisesam.reproduce.controls_runs import read_control
from noisesam.reproduce.evidence import MAIN, Evidence
from noisesam.reproduce.evidence_runs import evidence_of
from noisesam.reproduce.findings import FITTED
from noisesam.reproduce.manifest_checks import check_manifests
from noisesam.reproduce.published import beside_published
from noisesam.reproduce.settings import Scale, Setting
from noisesam.runs import RunCollection, open_runs


@dataclass(frozen=True)
class Findings:
    """What a scale found.

    Attributes:
        scale: The scale.
        claims: One row per claim and setting: claim, statement, setting, verdict, estimate, reason.
        verdicts: One row per claim over the settings.
        tables: Further tables by name, each written beside the claims.
        manifests: Manifests of all runs, as they were checked.
        runs: Setting -> variant -> runs.
        fitted: Setting -> share of the wrong labels that SGD fits at the last epoch, mean over seeds.
        toy: The tables of the toy, for its figures.
        controls: The tables of the controls.
    """

    scale: Scale
    claims: pd.DataFrame
    verdicts: pd.DataFrame
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    manifests: tuple[Any, ...] = ()
    runs: dict[str, dict[str, RunCollection]] = field(default_factory=dict)
    fitted: dict[str, float] = field(default_factory=dict)
    toy: Any = None
    controls: ControlTables | None = None

    @property
    def shows_nothing(self) -> list[str]:
        """Return the settings in which SGD did not come to fit half of the wrong labels."""
        return [setting for setting, share in self.fitted.items() if not share >= FITTED]


def find_toy(scale: Scale, toy: Any) -> Findings:
    """Judge the claims that the toy can test.

    Args:
        scale: The toy scale.
        toy: The tables of `noisesam.reproduce.toy_grid`.
    """
    claims = judge([], toy)
    # Accuracies, ratios and peaks by run lie beside the figures that draw them.
    tables = {"comparisons": comparisons([], toy), "peaks": toy.peaks, "ratio-table": toy.ratio_table(), "traps": toy.traps}
    return Findings(scale, claims, verdicts(claims), tables=tables, toy=toy)


def find(scale: Scale, settings: Sequence[Setting]) -> Findings:
    """Read the finished runs of a scale, check their manifests, and judge every claim by its rule.

    Args:
        scale: The scale.
        settings: Its settings, whose runs are made.

    Returns:
        Claims, tables, manifests and runs.

    Raises:
        RunError: A run is missing or damaged, or a manifest contradicts what was asked for.
    """
    runs = {setting.name: _opened(setting) for setting in settings}
    manifests = [one for variants in runs.values() for collection in variants.values() for one in check_manifests(collection)]
    evidence = {setting.name: evidence_of(_together(runs[setting.name]), setting=setting.name) for setting in settings}
    claims = judge([*evidence.values()], None)
    return Findings(
        scale,
        claims,
        verdicts(claims),
        tables={"comparisons": comparisons([*evidence.values()]), **_tables(scale, settings, runs, evidence)},
        manifests=tuple(manifests),
        runs=runs,
        fitted={name: fitted_by_sgd(variants[MAIN]) for name, variants in runs.items()},
    )


def find_controls(scale: Scale, settings: Sequence[Setting]) -> Findings:
    """Read the runs of the controls, check their manifests, and judge each by the rule of its sweep file.

    The claims that a control's runs test as well are judged by their own rules; the other claims have no row.

    Args:
        scale: The scale of the controls.
        settings: The controls, whose runs are made; runs that diverged are left out of everything and named.

    Returns:
        The controls' tables, the claims, and the manifests.

    Raises:
        RunError: A run is missing or damaged, or a manifest contradicts what was asked for.
    """
    manifests, judged, evidence, about, listed = [], [], [], [], []
    for setting in settings:
        runs = _opened(setting)[MAIN]
        listed += [(setting.name, run.path.name, run.id, run.status) for run in runs]
        finished = runs.filter(status="finished")
        manifests += check_manifests(finished)
        judged.append(judge_control(read_control(setting.name, runs)))
        about.append(settings_table([setting], {setting.name: {MAIN: finished}})[[*_ABOUT_CONTROLS]])
        if setting.name in CLAIMED:
            evidence.append(evidence_of(finished, setting=setting.name))
    claims, compared = (_claimed(table) for table in (judge(evidence), comparisons(evidence)))
    controls = together(judged)
    tables = {
        "controls": controls.verdicts,
        "advantages": controls.advantages,
        "points": controls.points,
        "settings": pd.concat(about, ignore_index=True),
        "comparisons": compared,
        "runs": pd.DataFrame(listed, columns=["control", "run", "id", "status"]),
    }
    return Findings(scale, claims, verdicts(claims), tables, manifests=tuple(manifests), controls=controls)


def _claimed(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of a claim in the control that tests it."""
    kept = table["claim"] == table["setting"].map(CLAIMED)
    return table[kept].reset_index(drop=True)


_ABOUT_CONTROLS = (
    "experiment",
    "title",
    "expectation",
    "decision",
    "seeds",
    "runs",
    "realised_rate_lowest",
    "realised_rate_highest",
)


def fitted_by_sgd(runs: RunCollection) -> float:
    """Return the share of the wrong labels that SGD fits at the last epoch, mean over seeds; NaN without SGD."""
    metrics = runs.filter(method="sgd").metrics
    own = metrics[(metrics["split"] == "train") & (metrics["group"] == "noisy") & (metrics["metric"] == "predicts_observed")]
    return float(own.sort_values("step").groupby("run")["value"].last().mean())


def _opened(setting: Setting) -> dict[str, RunCollection]:
    """Open the runs of a setting, variant by variant."""
    found = {}
    for variant, jobs in setting.variants.items():
        missing = [job.name for job in jobs if not (job.folder / "manifest.json").exists()]
        if missing:
            raise RunError(
                f"{len(missing)} runs of {setting.name} are missing, the first {missing[0]}",
                expected="every run of the scale",
                remedy="The same command again makes what is missing",
            )
        collection = open_runs([job.folder for job in jobs])
        if collection.problems:
            raise RunError(f"{collection.problems[0]}", expected="whole runs", remedy="Delete the run and make it again")
        found[variant] = collection
    return found


def _together(variants: dict[str, RunCollection]) -> RunCollection:
    """Return one collection of all variants."""
    return RunCollection([run for collection in variants.values() for run in collection])


def _tables(
    scale: Scale,
    settings: Sequence[Setting],
    runs: dict[str, dict[str, RunCollection]],
    evidence: dict[str, Evidence],
) -> dict[str, pd.DataFrame]:
    """Return the tables that are written beside the claims."""
    summaries, differences = [], []
    for name, variants in runs.items():
        for variant, collection in variants.items():
            front = {"experiment": name, "variant": variant}
            summaries.append(summary(collection).assign(**front))
            if "sgd" in collection.methods:
                differences.append(paired_differences(collection, baseline="sgd").assign(**front))
    published = [beside_published(evidence[one.name], same_setting=scale.name == "gpu") for one in settings if _is_cifar(one)]
    tables = {
        "summary": _front(summaries),
        "differences": _front(differences),
        "evidence": pd.concat([one.runs.assign(experiment=name) for name, one in evidence.items()], ignore_index=True),
        "settings": settings_table(settings, runs),
    }
    return tables | ({"published": pd.concat(published, ignore_index=True)} if published else {})


def settings_table(settings: Sequence[Setting], runs: dict[str, dict[str, RunCollection]]) -> pd.DataFrame:
    """Return one row per setting: what it is, what was expected and by which rule it decides, and what SGD came to fit."""
    rows = []
    for setting in settings:
        main = runs[setting.name][MAIN]
        realised = [float(run.manifest["noise"]["realised_rate"]) for run in main if run.manifest["noise"]]
        rows.append(
            {
                "experiment": setting.name,
                "title": setting.sweep.title,
                "expectation": setting.sweep.expectation,
                "decision": setting.sweep.decision,
                "kind": setting.kind,
                "seeds": len(setting.sweep.seeds),
                "runs": len(setting.jobs),
                "training_examples": int(main[0].manifest["data"]["train"]),
                "realised_rate_lowest": min(realised, default=float("nan")),
                "realised_rate_highest": max(realised, default=float("nan")),
                "wrong_labels_fitted_by_sgd": fitted_by_sgd(main),
            }
        )
    return pd.DataFrame(rows)


def _front(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Join tables, the experiment and its variant in front."""
    if not parts:
        return pd.DataFrame(columns=["experiment", "variant"])
    table = pd.concat(parts, ignore_index=True)
    front = ["experiment", "variant"]
    return table[[*front, *(name for name in table.columns if name not in front)]]


def _is_cifar(setting: Setting) -> bool:
    config = setting.reference
    return config.data.name == "cifar10" and config.noise.kind == "symmetric"
