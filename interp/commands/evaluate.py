"""``interp evaluate`` as a function: choose a setting on the search part, score it held out.

Writes settings.csv (search part), evaluation.json, null.csv and generations.jsonl (held-out part).
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from interp.arguments import check_choice, whole_number
from interp.commands.known import split_known
from interp.commands.locate import DEFAULT_FRACTION, IDENTITY
from interp.commands.locate_joint import AnyEffects, check_prompts, load_search
from interp.commands.marks import mark_evaluated
from interp.errors import UserError
from interp.evaluation.answers import ask_all
from interp.evaluation.evaluate import RANDOM_SETS, Evaluation, evaluate
from interp.evaluation.settings import SettingMode, choose_setting, compare_settings
from interp.files.documents import write_json, write_jsonl, write_table
from interp.heads.effects import count_of_fraction
from interp.heads.headset import Site
from interp.heads.joint import JointEffects, SelectedBy
from interp.interventions.gate import Gate, check_gate, lowest_probability
from interp.interventions.head_constraint import SITE_MODES, Constraint, Mode, check_mode
from interp.interventions.unit_table import action_name
from interp.jobs import JobRunner
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from interp.premises.joint import AnyPremises, AnySplit, parts_of
from interp.premises.questions import Premises
from interp.premises.registry import load_relation
from interp.runs.clock import one_moment, run_clock
from interp.runs.identity import conditions, model_identity
from interp.runs.job_runner import StoredJobRunner
from interp.runs.lock import one_process
from interp.runs.resources import run_resources
from interp.runs.shards import Engine, InProcess
from probes.detector.detect import detect_premises
from probes.detector.detections import Detector, PremiseDetections
from probes.detector.detector import DETECTOR_FOLDER, has_detector
from probes.detector.support_detector import load_detector
from probes.detector.train import premises_beside, train_detector

logger = logging.getLogger(__name__)

SHARDS = Path("shards") / "evaluate"
SCORED = Path("scored")
"""The folder of the results on relations that were not searched."""

SiteToScore = Literal["output", "attention", "best"]
AnswersFor = Literal["best", "all", "none"]
ModeToScore = Literal["best", "zero", "mean", "resample", "scale"]
CANDIDATES: dict[Site, tuple[SettingMode, ...]] = {
    "output": (("zero", 0.0), ("scale", -1.0)),
    "attention": (("zero", 0.0),),
}
"""Modes that ``mode="best"`` tries at each site; -1 reverses a head's output."""
CURVE_COUNTS = (1, 3, 8, 14)


@dataclass(frozen=True)
class EvaluateSettings:
    """What is evaluated.

    The best of several sites and modes has the most gain on the search part, and the least cost
    among settings with about the same gain.
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
    decoding_steps: int | None = None
    """At the attention site: in how many decoding steps of an answer the constraint acts after the
    prefill; by default in all. Preference is read in the prefill and does not change."""
    gate: Gate = "oracle"
    """Where the constraint acts: oracle is told which words are false; probe finds them, with a
    detector trained on the search part and on other relations that ship; soft does so too, and
    constrains as strongly as the detector is sure."""
    random_sets: int = RANDOM_SETS
    """Random head sets in the null, at least 20, matched per layer; 0 for no null."""
    counts: tuple[int, ...] = CURVE_COUNTS
    """Numbers of heads on the gain-against-cost curve, beside that of --heads."""
    every_mode: bool = False
    """Also draw the gain-against-cost curve of the other modes, on the search part."""
    answers: AnswersFor = "best"
    """For which settings greedy answers are asked: the slow part."""
    premises: str | None = None
    """Another relation: the run's heads are scored on its held-out part, in RUN/scored/NAME."""
    leave_one_out: bool = False
    """For a run over several relations: score each one under the heads of all others."""
    select_by: SelectedBy = "mean"
    """How one head set is chosen for several relations: by the mean of the effects, the worst
    relation, or the relations' votes."""
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
        if self.factor and self.mode != "scale":
            raise UserError(f"a factor ({self.factor:g}) is for --mode scale, not {self.mode!r}")
        check_gate(self.gate)
        check_choice("way to select", self.select_by, SelectedBy)
        if self.leave_one_out and (self.premises is not None or self.gate != "oracle"):
            raise UserError(
                "leave_one_out scores the run's own relations, at the known object: leave "
                "--premises and --gate out"
            )
        if self.decoding_steps is not None:
            whole_number("decoding_steps", self.decoding_steps, least=0)
            if self.site == "output":
                raise UserError("decoding_steps is for the attention site: leave it out")
        if self.site != "best" and self.mode != "best":
            check_mode(self.site, self.mode)

    def count(self, n_all: int) -> int:
        """How many heads that is of ``n_all``."""
        return int(self.heads) if self.heads >= 1 else count_of_fraction(self.heads, n_all)


@one_process
@one_moment(IDENTITY)
def evaluate_run(
    model: HookedModel,
    split: AnySplit,
    effects: Mapping[Site, AnyEffects],
    *,
    settings: EvaluateSettings,
    run: Path,
    engine: Engine | None = None,
    progress: bool = True,
) -> list[Evaluation]:
    """Score the run's heads on its held-out part; the best setting comes first.

    The shards are kept, a few hundred small files: another call reuses those that it needs.

    Args:
        engine: where the shards are computed; by default in this process.

    Raises:
        UserError: a site that was not searched; another model than the run's, or one whose prompts
            have other words or tokens (`interp.commands.locate_joint.check_prompts`).
    """
    check_prompts(run, model)
    chosen = chosen_effects(effects, settings, run)
    modes: dict[Site, list[SettingMode]] = {site: modes_at(site, settings) for site in chosen}
    stages = StoredJobRunner(run / SHARDS, engine or InProcess(model), conditions(model))
    folder, scored = run, split.held_out
    with run_resources(run, IDENTITY, model):
        if settings.premises is not None:
            folder, scored = _other_relation(model, settings.premises, run, progress=progress)
        n_heads = settings.count(next(iter(chosen.values())).n_heads)
        table = compare_settings(
            model,
            split.search,
            chosen,
            counts=sorted({*settings.counts, n_heads}),
            modes=_curve_modes(modes) if settings.every_mode else modes,
            seed=settings.seed,
            progress=progress,
            stages=stages,
        )
        best = _best_rows(table, modes, n_heads)
        constraints = []
        for row in best:
            site = table.at[row, "site"]
            named = {action_name(*mode): mode for mode in modes[site]}
            heads = chosen[site].select(count=n_heads)
            steps = settings.decoding_steps if site == "attention" else None
            constraints.append(Constraint(heads, *named[table.at[row, "mode"]], steps))
        evaluations = _evaluated(
            model,
            split,
            constraints,
            scored=scored,
            settings=settings,
            folder=folder,
            stages=stages,
            progress=progress,
        )
    table["chosen"] = table.index == best[0]
    _write(run, evaluations, table, folder=folder)
    stages.remove_others()
    return evaluations


def chosen_effects(
    effects: Mapping[Site, AnyEffects], settings: EvaluateSettings, run: Path
) -> dict[Site, AnyEffects]:
    """The effects at the sites that are scored, which select as the settings say."""
    sites: tuple[Site, ...] = tuple(effects) if settings.site == "best" else (settings.site,)
    missing = [site for site in sites if site not in effects]
    if missing:
        raise UserError(f"{run} was searched at site {', '.join(effects)}, not {missing[0]!r}")
    found: dict[Site, AnyEffects] = {}
    for site in sites:
        of_site = effects[site]
        if isinstance(of_site, JointEffects):
            of_site = replace(of_site, selected_by=settings.select_by)
        found[site] = of_site
    return found


def _other_relation(
    model: HookedModel, name: str, run: Path, *, progress: bool
) -> tuple[Path, Premises]:
    """The folder and the held-out part of a relation that the run need not have searched."""
    search, _, _ = load_search(run)
    folder = run / SCORED / load_relation(name).name
    identity = {
        **{"premises": name, "seed": search.seed, "limit": search.limit, "check": search.check},
        **model_identity(model),
    }
    split = split_known(
        model, folder, IDENTITY, identity=identity, minimum=search.minimum, progress=progress
    )
    return folder, split.held_out


def _evaluated(
    model: HookedModel,
    split: AnySplit,
    constraints: list[Constraint],
    *,
    scored: AnyPremises,
    settings: EvaluateSettings,
    folder: Path,
    stages: JobRunner,
    progress: bool,
) -> list[Evaluation]:
    """The evaluation of each constraint on what is scored; the answers of the first, or of all.

    With a detector's gate the last one is of the first constraint again, told where the object is.

    Args:
        folder: of the results. A relation that was not searched has a detector of its own there,
            which has not seen it.
    """
    answers = {}
    if settings.answers != "none":
        answers = ask_all(model, scored, progress=progress, stages=stages)
    detector: PremiseDetections | None = None
    if settings.gate != "oracle":  # once, for all constraints
        unseen = parts_of(scored)
        trained = run_detector(
            model, split, folder, unseen=unseen, seed=settings.seed, progress=progress
        )
        least = lowest_probability(settings.gate)
        detector = detect_premises(model, scored, detector=trained, least=least, progress=progress)
    options: dict[str, Any] = {"reference": split.search, "seed": settings.seed}
    options |= {"progress": progress, "stages": stages}
    evaluations = [
        evaluate(
            model,
            scored,
            heads=constraint,
            gate=settings.gate,
            detector=detector,
            random_sets=settings.random_sets,
            answers=answers if number == 0 or settings.answers == "all" else {},
            **options,
        )
        for number, constraint in enumerate(constraints)
    ]
    if settings.gate != "oracle":  # what the gate keeps of the gain is seen beside this
        told = evaluate(model, scored, heads=constraints[0], random_sets=0, answers={}, **options)
        evaluations.append(told)
    return evaluations


def run_detector(
    model: HookedModel,
    split: AnySplit,
    run: Path,
    *,
    unseen: Iterable[Premises] = (),
    seed: int = 0,
    progress: bool = True,
) -> Detector:
    """The run's detector: read from the run or, the first time, trained on its search part.

    Other shipped relations are trained on too, but for ``unseen`` ones. The model's general
    detector is no substitute: its training data may include this run's held-out part. Raises
    UserError for a damaged detector, or one of another model, tokenizer or chat template.
    """
    if has_detector(run):
        return load_detector(run / DETECTOR_FOLDER, model=model)
    logger.warning("training the detector of %s, once: some minutes", run)
    with run_clock(run, IDENTITY):
        parts, unseen = parts_of(split.search), tuple(unseen)
        searched = {part.relation.name for part in parts}
        detector = train_detector(
            model,
            parts,
            known=False,
            beside=premises_beside((*parts, *unseen), seed=seed),
            new_relations=any(part.relation.name not in searched for part in unseen),
            seed=seed,
            progress=progress,
        )
    detector.save(run / DETECTOR_FOLDER)
    return detector


def modes_at(site: Site, settings: EvaluateSettings) -> list[SettingMode]:
    """The candidates for mode ``best``, else the mode, or ``zero`` at a site without that mode."""
    if settings.mode == "best":
        return list(CANDIDATES[site])
    mode: Mode = settings.mode if settings.mode in SITE_MODES[site] else "zero"
    return [(mode, settings.factor if mode == "scale" else 0.0)]


def _curve_modes(modes: Mapping[Site, list[SettingMode]]) -> dict[Site, list[SettingMode]]:
    """The given modes, then all other modes of each site."""
    found: dict[Site, list[SettingMode]] = {}
    for site, first in modes.items():
        others: list[SettingMode] = [(mode, 0.0) for mode in SITE_MODES[site] if mode != "scale"]
        for factor in (-1.0, 0.5) if site == "output" else (0.1, 0.3):
            others.append(("scale", factor))
        found[site] = list(dict.fromkeys([*first, *others]))
    return found


def _best_rows(
    table: "pd.DataFrame", modes: Mapping[Site, list[SettingMode]], n_heads: int
) -> list[int]:
    """The row of each site's best mode with ``n_heads`` heads, the best site first."""
    rows = []
    for site, site_modes in modes.items():
        names = [action_name(*mode) for mode in site_modes]
        fits = (table["site"] == site) & table["mode"].isin(names)
        rows.append(choose_setting(table.loc[fits], n_heads=n_heads))
    best = choose_setting(table.loc[rows], n_heads=n_heads)
    return sorted(rows, key=lambda row: row != best)


def _write(
    run: Path, evaluations: list[Evaluation], table: "pd.DataFrame", *, folder: Path
) -> None:
    """Write the results to ``folder``, and mark the heads in the run's table if that is its own."""
    write_table(folder / "settings.csv", table)
    write_evaluations(folder, evaluations, mark=folder == run)


def write_evaluations(folder: Path, evaluations: list[Evaluation], *, mark: bool = True) -> None:
    """Write null.csv, generations.jsonl and evaluation.json, of which the first is the best.

    Args:
        mark: mark the evaluated heads in the folder's heads.csv.
    """
    nulls = [evaluation.null_dataframe() for evaluation in evaluations]
    write_table(folder / "null.csv", pd.concat(nulls, ignore_index=True))
    write_jsonl(folder / "generations.jsonl", (pair.to_row() for pair in evaluations[0].answers))
    content = evaluations[0].to_dict()
    content["alternatives"] = [other.to_dict() for other in evaluations[1:]]
    write_json(folder / "evaluation.json", content)
    if mark:
        mark_evaluated(folder)
