"""``interp evaluate RUN --questions FILE`` as a function: a run's heads on one's own questions.

Writes questions.jsonl (each question, where the constraint acted, both answers and the verdicts on
them) and questions.json (the rates). Answers are kept in shards until both are written, so that an
interrupted call goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interp.commands.evaluate import EvaluateSettings, SiteToScore, chosen_effects, run_detector
from interp.commands.locate import DEFAULT_FRACTION, IDENTITY
from interp.commands.locate_joint import AnyEffects, check_prompts
from interp.errors import UserError
from interp.evaluation.judges import Judge, judge_by_words
from interp.evaluation.question_answers import QuestionAnswers, evaluate_questions
from interp.figures.tables import settings_of
from interp.files.documents import write_json, write_jsonl
from interp.files.shape import Maybe, check_shape
from interp.heads.headset import HeadSet, Site
from interp.interventions.head_constraint import Constraint, Mode
from interp.models.hooked_model import HookedModel
from interp.premises.joint import AnySplit
from interp.premises.question_files import load_questions
from interp.premises.question_list import QuestionList
from interp.report.read_run import read_evaluation
from interp.runs.clock import one_moment
from interp.runs.identity import conditions
from interp.runs.job_runner import StoredJobRunner
from interp.runs.lock import one_process
from interp.runs.resources import run_resources
from interp.runs.shards import Engine, InProcess, remove_shards

SHARDS = Path("shards") / "questions"
ANSWERS, RATES = "questions.jsonl", "questions.json"
_EVALUATED = {"site": str, "mode": str, "heads": [[int, int]], "factor": Maybe(float)}


@dataclass(frozen=True)
class QuestionSettings:
    """Questions of one's own in place of the held-out ones."""

    questions: Path | None = None
    """Ask the questions of this file (.csv, .json, .jsonl, .txt) in place of the held-out ones;
    site, mode and heads are those of the run's evaluation, or as named here."""
    columns: str | None = None
    """Which column of --questions is which part: question=prompt,answer=gold,label=is_fp."""
    answer_null: int = 0
    """With --questions: how many random head sets answer them too; each asks them again."""

    def __post_init__(self) -> None:
        if self.answer_null < 0:
            raise UserError(f"answer_null is {self.answer_null}: it is a number of head sets")
        if self.questions is None and (self.columns is not None or self.answer_null):
            raise UserError("columns and answer_null are for --questions FILE: name the file")

    def load(self) -> QuestionList | None:
        """The questions of the file; None without one."""
        if self.questions is None:
            return None
        return load_questions(self.questions, columns=self.columns)


def must_evaluate_first(run: Path, settings: EvaluateSettings) -> bool:
    """Whether site or mode is to be that of an evaluation which the run does not have yet."""
    open_choice = "best" in (settings.site, settings.mode)
    return open_choice and not (run / "evaluation.json").is_file()


@one_process
@one_moment(IDENTITY)
def evaluate_questions_run(
    model: HookedModel,
    split: AnySplit,
    effects: Mapping[Site, AnyEffects],
    *,
    questions: QuestionList,
    settings: EvaluateSettings,
    run: Path,
    judge: Judge = judge_by_words,
    random_sets: int = 0,
    engine: Engine | None = None,
    progress: bool = True,
) -> QuestionAnswers:
    """Answer the questions without and with the run's heads, and write the outcome to the run.

    Args:
        settings: heads, site, mode, factor, gate and seed; see `constraint_of_run`.
        engine: where answers are made; by default in this process.

    Raises:
        UserError: what `evaluate_questions` and `constraint_of_run` refuse, or another model than
            the run's.
    """
    check_prompts(run, model)
    constraint = constraint_of_run(run, effects, settings)
    spans_missing = any(question.object_span is None for question in questions)
    detector = None
    if settings.gate != "oracle" or spans_missing:
        detector = run_detector(model, split, run, seed=settings.seed, progress=progress)
    stages = StoredJobRunner(run / SHARDS, engine or InProcess(model), conditions(model))
    with run_resources(run, IDENTITY, model):
        answers = evaluate_questions(
            model,
            questions,
            heads=constraint,
            gate=settings.gate,
            detector=detector,
            judge=judge,
            reference=split.search,
            random_sets=random_sets,
            seed=settings.seed,
            progress=progress,
            stages=stages,
        )
    write_jsonl(run / ANSWERS, (answer.to_row() for answer in answers.answers))
    write_json(run / RATES, answers.to_dict())
    remove_shards(run / SHARDS)
    return answers


def constraint_of_run(
    run: Path, effects: Mapping[Site, AnyEffects], settings: EvaluateSettings
) -> Constraint:
    """The heads and what they do: as the settings name it, and else as the run was evaluated.

    ``site="best"`` is the site that did best in evaluation.json, ``mode="best"`` the mode that was
    evaluated at the site. The heads are the evaluation's too, unless another number than the
    default is given, or no evaluation is needed.

    Raises:
        UserError: a site that was not searched, or that no evaluation chose a mode for.
    """
    chosen: Mapping[str, Any] = {}
    if "best" in (settings.site, settings.mode):
        chosen = _evaluated(run, settings.site)
    site: Site = chosen["site"] if settings.site == "best" else settings.site
    found = chosen_effects(effects, replace(settings, site=site), run)[site]
    mode: Mode = chosen["mode"] if settings.mode == "best" else settings.mode
    factor = (chosen.get("factor") or 0.0) if settings.mode == "best" else settings.factor
    if chosen and settings.heads == DEFAULT_FRACTION:
        pairs = tuple((layer, head) for layer, head in chosen["heads"])
        heads = HeadSet(pairs, site, "evaluated in the run")
    else:
        heads = found.select(count=settings.count(found.n_heads))
    steps = settings.decoding_steps
    if steps is None and settings.mode == "best":
        steps = chosen.get("decoding_steps")
    return Constraint(
        heads,
        mode,
        factor if mode == "scale" else 0.0,
        steps if site == "attention" else None,
    )


def _evaluated(run: Path, site: SiteToScore) -> Mapping[str, Any]:
    """The setting of evaluation.json at a site, the best one for ``best``."""
    path = run / "evaluation.json"
    again = "run `interp evaluate` on it again, or name --site and --mode"
    found = settings_of(read_evaluation(path))
    fits = [setting for setting in found if site in ("best", setting.get("site"))]
    if not fits:
        raise UserError(f"{run} was not evaluated at site {site!r}: {again}")
    return check_shape(fits[0], _EVALUATED, str(path), advice=again)
