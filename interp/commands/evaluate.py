"""``interp evaluate`` as a function: choose a setting on the search part, score it on the other.

Writes settings.csv (search split), evaluation.json, null.csv and generations.jsonl (held out).
"""

import csv
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from interp.commands.detector import run_detector
from interp.commands.locate import DEFAULT_FRACTION, IDENTITY, check_same_prompts
from interp.errors import UserError
from interp.evaluation.evaluate import RANDOM_SETS, Evaluation, ask_all, evaluate
from interp.evaluation.settings import (
    SettingMode,
    choose_setting,
    compare_settings,
    setting_mode_name,
)
from interp.files.choice import check_choice
from interp.files.documents import write_atomically, write_json, write_jsonl, write_table
from interp.forward.memory import using_budget
from interp.heads.effects import HeadEffects, count_of_fraction
from interp.heads.headset import Site
from interp.interventions.gate import Gate, check_gate
from interp.interventions.head_constraint import SITE_MODES, Constraint, Mode, check_mode
from interp.jobs import JobRunner
from interp.models.hooked_model import HookedModel
from interp.premises.questions import Split
from interp.report.read_run import read_heads
from interp.runs.clock import one_moment
from interp.runs.lock import one_process
from interp.runs.model_conditions import conditions
from interp.runs.pass_memory import budget_of
from interp.runs.shards import Engine, InProcess
from interp.runs.stages import StoredJobRunner
from interp.runs.threads import threads_of, using_threads
from probes.detector.detect import detect_premises
from probes.detector.detections import Detector, PremiseDetections

logger = logging.getLogger(__name__)

SHARDS = Path("shards") / "evaluate"

SiteToScore = Literal["output", "attention", "best"]
AnswersFor = Literal["best", "all", "none"]
ModeToScore = Literal["best", "zero", "mean", "resample", "scale"]
CANDIDATES: dict[Site, tuple[SettingMode, ...]] = {
    "output": (("zero", 0.0), ("scale", -1.0)),
    "attention": (("zero", 0.0),),
}
"""Modes that ``mode="best"`` tries at each site; -1 turns a head's output round."""
CURVE_COUNTS = (1, 3, 8, 14)


@dataclass(frozen=True)
class EvaluateSettings:
    """What is evaluated.

    Of several sites and modes the best is the one with the most gain on the search part, and the
    least cost among settings that gain about as much.
    """

    heads: float = DEFAULT_FRACTION
    """A fraction of all heads (below 1), or a count."""
    site: SiteToScore = "best"
    """best: score each site of the run; the one that did best on the search part comes first."""
    mode: ModeToScore = "best"
    """What a constrained head does; the attention site knows zero and scale. best: as the search
    part says, of zero and, at the output site, scale -1."""
    factor: float = 0.0
    """The factor of mode scale."""
    gate: Gate = "oracle"
    """Where the constraint acts: oracle is told which words are false; probe finds them, with a
    detector trained on the search part."""
    random_sets: int = RANDOM_SETS
    """Random head sets in the null, at least 20, matched per layer."""
    counts: tuple[int, ...] = CURVE_COUNTS
    """Numbers of heads on the gain-against-cost curve, beside that of --heads."""
    every_mode: bool = False
    """Also draw the gain-against-cost curve of the other modes, on the search part."""
    answers: AnswersFor = "best"
    """For which settings greedy answers are asked: the slow part."""
    seed: int = 0
    """Draws random head sets and resamples."""

    def __post_init__(self) -> None:
        if self.heads <= 0:
            raise UserError(f"heads is a fraction below 1 or a count from 1, not {self.heads:g}")
        if self.heads > 1 and self.heads != int(self.heads):
            raise UserError(f"a count of heads is a whole number, not {self.heads:g}")
        check_choice("site", self.site, SiteToScore)
        check_choice("choice of answers", self.answers, AnswersFor)
        check_choice("mode", self.mode, ModeToScore)
        check_gate(self.gate)
        if self.site != "best" and self.mode != "best":
            check_mode(self.site, self.mode)

    def count(self, n_all: int) -> int:
        """How many heads that is of ``n_all``."""
        return int(self.heads) if self.heads >= 1 else count_of_fraction(self.heads, n_all)


@one_process
@one_moment(IDENTITY)
def evaluate_run(
    model: HookedModel,
    split: Split,
    effects: Mapping[Site, HeadEffects],
    settings: EvaluateSettings,
    run: Path,
    *,
    engine: Engine | None = None,
    progress: bool = True,
) -> list[Evaluation]:
    """Score the run's heads on its held-out part; the best setting comes first.

    Its shards stay, some hundred small files: the same call again, or one that asks for more, takes
    from them what it can.

    Args:
        engine: where the sweeps' shards are made; by default in this process.

    Raises:
        UserError: a site that was not searched; a model that is not the run's, or is asked in other
            words or tokens than the run was (`interp.commands.locate.check_same_prompts`).
    """
    check_same_prompts(run, model)
    sites: tuple[Site, ...] = tuple(effects) if settings.site == "best" else (settings.site,)
    missing = [site for site in sites if site not in effects]
    if missing:
        raise UserError(f"{run} was searched at site {', '.join(effects)}, not {missing[0]!r}")
    chosen: dict[Site, HeadEffects] = {site: effects[site] for site in sites}
    stages = StoredJobRunner(run / SHARDS, engine or InProcess(model), conditions(model))
    budget = budget_of(run, IDENTITY, model)
    with using_threads(threads_of(run, IDENTITY)), using_budget(budget):
        evaluations, table = _evaluated(model, split, chosen, settings, run, stages, progress)
    _write(run, evaluations, table)
    stages.remove_others()
    return evaluations


def _evaluated(
    model: HookedModel,
    split: Split,
    effects: Mapping[Site, HeadEffects],
    settings: EvaluateSettings,
    run: Path,
    stages: JobRunner,
    progress: bool,
) -> tuple[list[Evaluation], pd.DataFrame]:
    """The evaluation of each site's best setting, and the table that they were chosen from."""
    n_heads = settings.count(next(iter(effects.values())).values[0].numel())
    modes: dict[Site, list[SettingMode]] = {site: modes_at(site, settings) for site in effects}
    table = _settings_table(model, split, effects, modes, settings, n_heads, stages, progress)
    best = _best_rows(table, modes, n_heads)
    asked = {}
    if settings.answers != "none":
        asked = ask_all(model, split.held_out, progress=progress, stages=stages)
    detector: Detector | PremiseDetections | None = _detector(model, split, settings, run, progress)
    if detector is not None:  # once, for all sites
        detector = detect_premises(model, split.held_out, detector=detector, progress=progress)
    evaluations = []
    for row in best:
        site = table.at[row, "site"]
        names = {setting_mode_name(*mode): mode for mode in modes[site]}
        heads = effects[site].select(count=n_heads)
        constraint = Constraint(heads, *names[table.at[row, "mode"]])
        with_answers = row == best[0] or settings.answers == "all"
        evaluations.append(
            evaluate(
                model,
                split.held_out,
                heads=constraint,
                gate=settings.gate,
                detector=detector,
                reference=split.search,
                random_sets=settings.random_sets,
                answers=asked if with_answers else {},
                seed=settings.seed,
                progress=progress,
                stages=stages,
            )
        )
    table["chosen"] = table.index == best[0]
    return evaluations, table


def _detector(
    model: HookedModel, split: Split, settings: EvaluateSettings, run: Path, progress: bool
) -> Detector | None:
    """For gate ``probe`` the run's own detector, else none."""
    if settings.gate != "probe":
        return None
    return run_detector(model, split, run, seed=settings.seed, progress=progress)


def modes_at(site: Site, settings: EvaluateSettings) -> list[SettingMode]:
    """The asked mode, or ``zero`` at a site that does not know it; the candidates for ``best``."""
    if settings.mode == "best":
        return list(CANDIDATES[site])
    mode: Mode = settings.mode if settings.mode in SITE_MODES[site] else "zero"
    return [(mode, settings.factor if mode == "scale" else 0.0)]


def _settings_table(
    model: HookedModel,
    split: Split,
    effects: Mapping[Site, HeadEffects],
    wanted: Mapping[Site, list[SettingMode]],
    settings: EvaluateSettings,
    n_heads: int,
    stages: JobRunner,
    progress: bool,
) -> pd.DataFrame:
    modes: dict[Site, list[SettingMode]] = {site: list(some) for site, some in wanted.items()}
    if settings.every_mode:
        for site in effects:
            others: list[SettingMode] = [(m, 0.0) for m in SITE_MODES[site] if m != "scale"]
            for factor in (-1.0, 0.5) if site == "output" else (0.1, 0.3):
                others.append(("scale", factor))
            modes[site] += [other for other in others if other not in modes[site]]
    counts = sorted({*settings.counts, n_heads})
    return compare_settings(
        model,
        split.search,
        effects,
        counts=counts,
        modes=modes,
        seed=settings.seed,
        progress=progress,
        stages=stages,
    )


def _best_rows(
    table: pd.DataFrame, modes: Mapping[Site, list[SettingMode]], n_heads: int
) -> list[int]:
    """The row of each site's best mode at the asked head count, the best of them first."""
    rows = []
    for site, of_site in modes.items():
        names = [setting_mode_name(*mode) for mode in of_site]
        fits = (table["site"] == site) & table["mode"].isin(names)
        rows.append(choose_setting(table.loc[fits], n_heads=n_heads))
    best = choose_setting(table.loc[rows], n_heads=n_heads)
    return sorted(rows, key=lambda row: row != best)


def _write(run: Path, evaluations: list[Evaluation], table: pd.DataFrame) -> None:
    write_table(run / "settings.csv", table)
    nulls = [one.null_dataframe() for one in evaluations]
    write_table(run / "null.csv", pd.concat(nulls, ignore_index=True))
    write_jsonl(run / "generations.jsonl", (pair.to_row() for pair in evaluations[0].answers))
    content = evaluations[0].to_dict()
    content["alternatives"] = [one.to_dict() for one in evaluations[1:]]
    write_json(run / "evaluation.json", content)
    _mark_selected(run, evaluations)


def _mark_selected(run: Path, evaluations: list[Evaluation]) -> None:
    """heads.csv says which heads were evaluated; all other cells keep their very text."""
    path = run / "heads.csv"
    read_heads(path)  # refuses a table that is none
    chosen = {(one.constraint.site, *head) for one in evaluations for head in one.constraint.heads}
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    text = io.StringIO()
    writer = csv.DictWriter(text, reader.fieldnames or (), lineterminator="\n")
    writer.writeheader()
    for row in reader:
        place = (row["site"], int(row["layer"]), int(row["head"]))
        writer.writerow({**row, "selected": place in chosen})
    write_atomically(path, text.getvalue())
