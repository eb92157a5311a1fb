"""Ask questions without and with an intervention, and judge both answers.

The questions are somebody's own (`interp.premises.QuestionList`). With gate ``probe`` a detector
finds the words to act on. With gate ``oracle`` they are those that the file names; the detector
decides about questions in which it names none. A question on which nothing acts is not asked again:
it keeps its answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.evaluation.answers import answers_under
from interp.evaluation.evaluate import setting_of
from interp.evaluation.judges import Judge, Verdict, judge_by_words, judged
from interp.figures.questions import questions_table
from interp.forward.batch import Span
from interp.forward.generate import MAX_NEW_TOKENS
from interp.heads.headset import Head, HeadSet, Site
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.gate import Gate, lowest_probability
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.intervention import Intervention
from interp.interventions.random_controls import random_interventions
from interp.jobs import RUN_HERE, JobRunner
from interp.lazy import pd
from interp.models import model_info
from interp.models.hooked_model import HookedModel
from interp.models.limits import positions_of_model
from interp.premises.encode import DEFAULT_MASK, EncodedPrompt, encode_question
from interp.premises.joint import AnyPremises
from interp.premises.question_list import QuestionList, RawQuestion
from interp.premises.relation import FilledQuestion
from interp.statistics.significance import mean_interval
from probes.detector.detect import detect
from probes.detector.detections import Detector

FoundBy = Literal["file", "detector"]
MEASURES = ("rebuts", "names_answer", "names_false_object")
"""What a `Verdict` says, in order."""


@dataclass(frozen=True)
class ActedOn:
    """Whether and where an intervention acts in a question.

    Attributes:
        fired: whether it acts.
        by: who decided: the file that names the words, or the detector.
        probability: the detector's, of a false premise.
        words: characters [start, end) of the question.
        tokens: tokens [start, end) of its chat prompt.
    """

    fired: bool
    by: FoundBy
    probability: float | None = None
    words: Span | None = None
    tokens: Span | None = None


@dataclass(frozen=True)
class QuestionAnswer:
    """One question with its answers without (``baseline``) and with the intervention."""

    question: RawQuestion
    acted: ActedOn
    baseline: str
    constrained: str
    baseline_verdict: Verdict
    constrained_verdict: Verdict

    def to_row(self) -> dict[str, Any]:
        """The line of ``questions.jsonl``."""
        words = self.acted.words if self.acted.fired else None
        return {
            "line": self.question.line,
            "question": self.question.text,
            "label": self.question.label,
            "answers": list(self.question.right_answers),
            "false_object": self.question.false_object,
            "fired": self.acted.fired,
            "found_by": self.acted.by,
            "probability": self.acted.probability,
            "words": None if words is None else list(words),
            "baseline": self.baseline,
            "constrained": self.constrained,
            "baseline_verdict": asdict(self.baseline_verdict),
            "constrained_verdict": asdict(self.constrained_verdict),
        }


@dataclass(frozen=True)
class QuestionAnswers(Displayed):
    """The answers to a list of questions; ``to_dict`` is ``questions.json``.

    Attributes:
        intervention: what acted, with its gate.
        model, dtype, n_all_heads: the model's spec, its dtype and its number of heads.
        source: where the questions come from.
        judge: the judge's name.
        answers: one a question, in order.
        null: for each random set of heads, the verdict on every question; empty without a null.
    """

    intervention: Intervention
    model: str
    dtype: str
    n_all_heads: int
    source: str
    judge: str
    answers: tuple[QuestionAnswer, ...]
    null: tuple[tuple[Verdict, ...], ...] = ()
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The content of questions.json; rates are [value, low, high], or None without questions.

        A rate's ``n`` is that of its group, except for what is known of some questions only:
        ``n_with_answer`` and ``n_with_false_object``.
        """
        grouped: dict[str, list[int]] = {}
        for index, answer in enumerate(self.answers):
            grouped.setdefault(answer.question.group, []).append(index)
        return {
            "model": self.model,
            "dtype": self.dtype,
            **setting_of(self.intervention, self.n_all_heads),
            "gate": self.intervention.gate,
            "judge": self.judge,
            "source": self.source,
            "n": len(self.answers),
            "groups": {group: self._group(grouped[group]) for group in sorted(grouped)},
        }

    def _group(self, rows: Sequence[int]) -> dict[str, Any]:
        """The rates of the questions of one label."""
        answers = [self.answers[row] for row in rows]
        verdicts = [each.baseline_verdict for each in answers]
        after = [each.constrained_verdict for each in answers]
        clusters = [each.question.cluster for each in answers]

        def rate(values: Iterable[float | None]) -> list[float] | None:
            """Over the questions in which the value is known."""
            pairs = zip(values, clusters, strict=True)
            known = [(float(value), cluster) for value, cluster in pairs if value is not None]
            return list(mean_interval(*zip(*known, strict=True), seed=self.seed)) if known else None

        def change(name: str) -> list[float] | None:
            pairs = zip(verdicts, after, strict=True)
            values = ((getattr(old, name), getattr(new, name)) for old, new in pairs)
            return rate(None if old is None else float(new) - old for old, new in values)

        group = {
            "n": len(answers),
            "n_subjects": len(set(clusters)),
            "n_with_answer": sum(verdict.names_answer is not None for verdict in verdicts),
            "n_with_false_object": sum(each.names_false_object is not None for each in verdicts),
            "fired": rate(each.acted.fired for each in answers),
            "unchanged": rate(each.constrained == each.baseline for each in answers),
            "baseline": {name: rate(getattr(each, name) for each in verdicts) for name in MEASURES},
            "constrained": {name: rate(getattr(each, name) for each in after) for name in MEASURES},
            "change": {name: change(name) for name in MEASURES},
        }
        if self.null:
            drawn = [[verdicts[row] for row in rows] for verdicts in self.null]
            group["random_null"] = {
                "n_sets": len(drawn),
                **{name: _null_of(drawn, group["constrained"][name], name) for name in MEASURES},
            }
        return group

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a question, with the columns of ``questions.jsonl``."""
        return pd.DataFrame([answer.to_row() for answer in self.answers])

    def _shown(self) -> Shown:
        fired = sum(answer.acted.fired for answer in self.answers)
        words = (
            f"{len(self.answers)} questions of {self.source} under {self.intervention.name}, gate "
            f"{self.intervention.gate}: it acted on {fired}."
        )
        return Shown(words, (questions_table(self.to_dict()),))


def _null_of(
    drawn: Sequence[Sequence[Verdict]], chosen: Sequence[float] | None, name: str
) -> dict[str, float] | None:
    """One rate under random sets [set][question]: mean, 95th percentile, where the heads' own is.

    None where the rate is not known.
    """
    if chosen is None:
        return None
    known = [[getattr(verdict, name) for verdict in verdicts] for verdicts in drawn]
    rates = [np.mean([flag for flag in flags if flag is not None]) for flags in known]
    return {
        "mean": float(np.mean(rates)),
        "p95": float(np.quantile(rates, 0.95)),
        "percentile_of_selected": float(np.mean([each < chosen[0] for each in rates]) * 100),
    }


@checked
def evaluate_questions(
    model: HookedModel,
    questions: QuestionList,
    *,
    heads: HeadSet | Iterable[Head] | Constraint | ExpertConstraint | Intervention,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    gate: Gate = "probe",
    detector: Detector | None = None,
    judge: Judge = judge_by_words,
    reference: AnyPremises | None = None,
    random_sets: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> QuestionAnswers:
    """Answer every question without and with an intervention, and judge both answers.

    Args:
        heads: a HeadSet, (layer, head) tuples with ``site``, a Constraint, an ExpertConstraint, or
            an Intervention of several.
        gate: ``probe``: it acts where ``detector`` finds a false premise; ``soft``: there as
            strongly as it is sure; ``oracle``: at the words that the questions name, and where none
            are named as the detector says.
        detector: by default ``probes.detector_for(model)``.
        judge: says of an answer whether it rebuts the premise.
        reference: premises whose mean output mode ``mean`` puts in, and whose neutral word mode
            ``resample``.
        random_sets: random sets of heads, matched per layer, under which the questions are
            answered too; each asks again all questions on which the intervention acts.
        stages: where answers are made, and kept; by default here, at once.

    Raises:
        UserError: a question longer than the model has positions for, an empty intervention, mode
            ``mean`` without ``reference``, or a head that the model does not have.
    """
    under = Intervention.of(heads, site, mode=mode, factor=factor, gate=gate).check(model)
    if not len(under):
        raise UserError("there is nothing to compare: the intervention has no heads and no experts")
    if under.needs_mean and reference is None:
        raise UserError("mode 'mean' needs the premises that the mean is over: give reference")
    prompts = encode_asked(model, questions)
    acted = where_to_act(model, questions, prompts, gate=gate, detector=detector, progress=progress)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "progress": progress,
        "stages": stages,
    }
    baseline = answers_under(model, prompts, description="answers, questions", **options)
    options["baseline"] = baseline
    options["spans"] = [place.tokens if place.fired else None for place in acted]
    if gate == "soft":
        options["strengths"] = [place.probability or 0.0 for place in acted]
    options["neutral"] = DEFAULT_MASK if reference is None else reference.mask
    if under.needs_mean and reference is not None:
        options["mean"] = mean_output(model, as_encoded(model, reference))
    constrained = answers_under(
        model, prompts, under, description="constrained, questions", **options
    )
    asked = questions.questions
    null = []
    for random in random_interventions(model, under, random_sets, seed=seed):
        drawn = answers_under(model, prompts, random, description="random heads", **options)
        null.append(tuple(judged(judge, asked, drawn)))
    rows = zip(
        *(asked, acted, baseline, constrained),
        *(judged(judge, asked, answers) for answers in (baseline, constrained)),
        strict=True,
    )
    return QuestionAnswers(
        intervention=under,
        model=model_info(model).spec,
        dtype=model_info(model).dtype,
        n_all_heads=model.cfg.n_layers * model.cfg.n_heads,
        source=questions.source,
        judge=getattr(judge, "__name__", type(judge).__name__),
        answers=tuple(QuestionAnswer(*row) for row in rows),
        null=tuple(null),
        seed=seed,
    )


def encode_asked(model: HookedModel, questions: QuestionList) -> tuple[EncodedPrompt, ...]:
    """Every question as a user asks it; ``object`` is its object, or else the whole question.

    Raises UserError for the first question that has more tokens than the model has positions; its
    line is named, and nothing has run.
    """
    found = []
    most = positions_of_model(model.original_model).table
    for question in questions:
        whole = (0, len(question.text))
        filled = FilledQuestion(question.text, whole, question.object_span or whole)
        prompt = encode_question(model.tokenizer, filled)
        if most is not None and len(prompt.tokens) > most:
            raise UserError(
                f"{questions.source}: line {question.line}: the question has "
                f"{len(prompt.tokens)} tokens with its chat format, and the model has {most} "
                "positions: shorten it or leave it out"
            )
        found.append(prompt)
    return tuple(found)


def where_to_act(
    model: HookedModel,
    questions: QuestionList,
    prompts: Sequence[EncodedPrompt],
    *,
    gate: Gate,
    detector: Detector | None,
    progress: bool = True,
) -> tuple[ActedOn, ...]:
    """Where the intervention acts in each question; the detector reads those it decides about."""
    known = [question.object_span if gate == "oracle" else None for question in questions]
    texts = [text for text, span in zip(questions.texts, known, strict=True) if span is None]
    least = lowest_probability(gate)
    detections = (
        iter(detect(model, texts, detector=detector, least=least, progress=progress))
        if texts
        else iter(())
    )
    acted = []
    for prompt, span in zip(prompts, known, strict=True):
        if span is not None:
            acted.append(ActedOn(True, "file", None, span, prompt.object))
            continue
        found = next(detections)
        place = found.char_span, found.token_span
        acted.append(ActedOn(found.fired, "detector", found.probability, *place))
    return tuple(acted)
