"""Greedy answers to the questions, and the objects that they name.

The questions are asked as a user asks them, without the cloze. An answer *names* an object if it
contains one of its names as whole words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from interp.checked import checked
from interp.evaluation.answer_pair import AnswerKind, AnswerPair
from interp.evaluation.jobs import AnswersJob, greedy_texts
from interp.forward.batch import Span
from interp.forward.generate import MAX_NEW_TOKENS
from interp.interventions.gate import strengths_of
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.jobs import RUN_HERE, JobRunner, OutputSpec
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.premises.encode import EncodedPrompt, encode_questions
from interp.premises.joint import AnyPremises
from interp.premises.questions import Question, QuestionKind
from interp.premises.relation import FilledQuestion
from interp.statistics.significance import mean_interval
from probes.detector.detections import Detection, PremiseDetections, spans_of

ANSWERS = OutputSpec(texts=True)
QUESTION_KINDS: dict[AnswerKind, QuestionKind] = {"false_premise": "false", "true_premise": "twin"}
ANSWER_KINDS = tuple(QUESTION_KINDS)


@dataclass(frozen=True)
class AskedQuestions:
    """The questions of some premises as prompts, with their unconstrained answers."""

    kind: AnswerKind
    questions: tuple[Question, ...]
    filled: tuple[FilledQuestion, ...]
    prompts: tuple[EncodedPrompt, ...]
    baseline: tuple[str, ...]
    mask: str


def baseline_answers(
    model: HookedModel, premises: AnyPremises, kind: AnswerKind, **options: Any
) -> AskedQuestions:
    """The unconstrained model's answers to every question; options of `answers_under`."""
    check_hooked(model)
    questions = premises.questions()
    filled = tuple(premises.fill(question, QUESTION_KINDS[kind]) for question in questions)
    prompts = encode_questions(model.tokenizer, premises, QUESTION_KINDS[kind])
    return AskedQuestions(
        kind=kind,
        questions=questions,
        filled=filled,
        prompts=prompts,
        baseline=answers_under(model, prompts, description=f"answers, {kind}", **options),
        mask=premises.mask,
    )


@checked
def ask_all(
    model: HookedModel,
    premises: AnyPremises,
    *,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> dict[AnswerKind, AskedQuestions]:
    """Unconstrained answers to the false-premise questions and to their twins."""
    asked: dict[AnswerKind, AskedQuestions] = {}
    for kind in ANSWER_KINDS:
        asked[kind] = baseline_answers(model, premises, kind, progress=progress, stages=stages)
    return asked


def answer_pairs(
    model: HookedModel,
    asked: AskedQuestions,
    constraint: Constraint | Intervention,
    *,
    detections: PremiseDetections | None = None,
    **options: Any,
) -> tuple[AnswerPair, ...]:
    """Answer the same questions under the constraint, beside the baseline's answers.

    Args:
        detections: where the constraint acts, by default at the objects. A question in which
            nothing was found keeps the baseline's answer and is not asked again.
        options: ``mean``, ``max_new_tokens``, ``progress`` and ``stages`` of `answers_under`.
    """
    found = None if detections is None else detections.of(QUESTION_KINDS[asked.kind])
    under = Intervention.of(constraint)
    constrained = answers_under(
        model,
        asked.prompts,
        under,
        spans=None if found is None else spans_of(found),
        strengths=None if found is None else strengths_of(found, under.gate),
        baseline=asked.baseline,
        neutral=asked.mask,
        description=f"constrained, {asked.kind}",
        **options,
    )
    acted_on = [None] * len(constrained) if found is None else [_words_of(each) for each in found]
    answered = zip(
        asked.questions, asked.filled, asked.baseline, constrained, acted_on, strict=True
    )
    return tuple(
        AnswerPair(
            kind=asked.kind,
            template=question.template,
            subject=question.subject,
            true_object=question.true_object,
            false_object=question.false_object,
            question=filled.text,
            object_span=filled.object,
            baseline=before,
            constrained=after,
            baseline_names_true=question.names_true(before),
            baseline_names_false=question.names_false(before),
            constrained_names_true=question.names_true(after),
            constrained_names_false=question.names_false(after),
            acted_on=words,
        )
        for question, filled, before, after, words in answered
    )


def _words_of(detection: Detection) -> tuple[Span, ...]:
    """The characters that a detector found, if it fired."""
    return (detection.char_span,) if detection.fired and detection.char_span else ()


def answers_under(
    model: HookedModel,
    prompts: Sequence[EncodedPrompt],
    intervention: Intervention | None = None,
    *,
    spans: Sequence[Span | None] | None = None,
    strengths: Sequence[float] | None = None,
    baseline: Sequence[str] = (),
    mean: Float[Tensor, "layer head d_head"] | None = None,
    neutral: str | None = None,
    description: str = "answers",
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> tuple[str, ...]:
    """The greedy answer to every prompt, under an intervention or under none.

    Args:
        spans: where the intervention acts in each prompt, by default at its object. A prompt with
            None is not run: its answer is that of ``baseline``.
        strengths: how much of the intervention acts in each prompt; by default all of it.
        mean, neutral: the values that modes ``mean`` and ``resample`` put in.
    """
    at = [prompt.object for prompt in prompts] if spans is None else spans
    found = {row: span for row, span in enumerate(at) if span is not None}
    job = AnswersJob(
        tuple(tuple(prompts[row].tokens) for row in found),
        intervention,
        () if intervention is None else tuple(found.values()),
        mean,
        neutral,
        max_new_tokens,
        None if strengths is None else tuple(strengths[row] for row in found),
    )
    done = stages.run(
        greedy_texts, model, job, description=description, output=ANSWERS, progress=progress
    )
    answers = dict(zip(found, done.texts, strict=True))
    return tuple(answers[row] if row in answers else baseline[row] for row in range(len(prompts)))


def mention_rates(
    pairs: Sequence[AnswerPair], run: Literal["baseline", "constrained"], *, seed: int = 0
) -> dict[str, list[float] | None]:
    """Share of answers that name the true and the false object, with intervals over subjects.

    None for both without answers.
    """
    subjects = [pair.subject for pair in pairs]
    rates: dict[str, list[float] | None] = {}
    for which in ("true", "false"):
        named = [float(getattr(pair, f"{run}_names_{which}")) for pair in pairs]
        interval = list(mean_interval(named, subjects, seed=seed)) if named else None
        rates[f"{which}_object_mention_rate"] = interval
    return rates
