"""Greedy answers to the bare questions, and which objects they name.

The question is asked as a user would ask it, without the cloze; an answer *names* an object if it
holds one of its names as whole words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from interp.evaluation.answer_pair import AnswerKind, AnswerPair
from interp.evaluation.jobs import AnswersJob, greedy_texts
from interp.forward.batch import Span
from interp.forward.generate import MAX_NEW_TOKENS
from interp.heads.significance import mean_interval
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.jobs import RUN_HERE, JobRunner, OutputSpec
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.premises.encode import EncodedPrompt, encode_questions
from interp.premises.mentions import names, names_any
from interp.premises.questions import Premises, Question, QuestionKind
from probes.detector.detections import Detection, spans_of

ANSWERS = OutputSpec(texts=True)
QUESTION_KINDS: dict[AnswerKind, QuestionKind] = {"false_premise": "false", "true_premise": "twin"}


@dataclass(frozen=True)
class AskedQuestions:
    """The bare questions of some premises as prompts, with their baseline answers."""

    kind: AnswerKind
    questions: tuple[Question, ...]
    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    prompts: tuple[EncodedPrompt, ...]
    baseline: tuple[str, ...]
    mask: str


def ask(
    model: HookedModel,
    premises: Premises,
    kind: AnswerKind,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> AskedQuestions:
    """The unconstrained model's greedy answers to every question."""
    check_hooked(model)
    questions = premises.questions()
    filled = [premises.fill(question, QUESTION_KINDS[kind]) for question in questions]
    prompts = encode_questions(model.tokenizer, premises, QUESTION_KINDS[kind])
    baseline = answers_under(
        model,
        prompts,
        description=f"answers, {kind}",
        max_new_tokens=max_new_tokens,
        progress=progress,
        stages=stages,
    )
    return AskedQuestions(
        kind=kind,
        questions=questions,
        texts=tuple(one.text for one in filled),
        spans=tuple(one.object for one in filled),
        prompts=prompts,
        baseline=baseline,
        mask=premises.relation.mask,
    )


def answer_pairs(
    model: HookedModel,
    asked: AskedQuestions,
    constraint: Constraint | Intervention,
    *,
    detections: Sequence[Detection] | None = None,
    mean: Float[Tensor, "layer head d_head"] | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> tuple[AnswerPair, ...]:
    """The same questions answered under the constraint, beside the baseline's answers.

    It acts at the objects; with ``detections``, on the spans found, and a question in which nothing
    was found keeps the baseline's answer and is not asked again.
    """
    constrained = answers_under(
        model,
        asked.prompts,
        Intervention.of(constraint),
        spans=None if detections is None else spans_of(detections),
        baseline=asked.baseline,
        mean=mean,
        neutral=asked.mask,
        description=f"constrained, {asked.kind}",
        max_new_tokens=max_new_tokens,
        progress=progress,
        stages=stages,
    )
    return tuple(
        _pair(asked, index, asked.baseline[index], answer)
        for index, answer in enumerate(constrained)
    )


def answers_under(
    model: HookedModel,
    prompts: Sequence[EncodedPrompt],
    intervention: Intervention | None = None,
    *,
    spans: Sequence[Span | None] | None = None,
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
            None is not asked: its answer is that of ``baseline``.
        mean, neutral: what modes ``mean`` and ``resample`` put in.
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
    )
    said = stages.made(
        greedy_texts, model, job, description=description, gives=ANSWERS, progress=progress
    )
    asked = dict(zip(found, said.texts, strict=True))
    return tuple(asked[row] if row in asked else baseline[row] for row in range(len(prompts)))


def _pair(asked: AskedQuestions, index: int, baseline: str, constrained: str) -> AnswerPair:
    question = asked.questions[index]
    return AnswerPair(
        kind=asked.kind,
        template=question.template,
        subject=question.subject,
        true_object=question.true_object,
        false_object=question.false_object,
        question=asked.texts[index],
        object_span=asked.spans[index],
        baseline=baseline,
        constrained=constrained,
        baseline_names_true=names_any(baseline, question.true_names),
        baseline_names_false=names(baseline, question.false_object),
        constrained_names_true=names_any(constrained, question.true_names),
        constrained_names_false=names(constrained, question.false_object),
    )


def mention_rates(
    pairs: Sequence[AnswerPair], run: Literal["baseline", "constrained"], *, seed: int = 0
) -> dict[str, list[float]]:
    """Share of answers that name the true and the false object, with intervals over subjects."""
    subjects = [pair.subject for pair in pairs]
    rates = {}
    for which in ("true", "false"):
        named = [float(getattr(pair, f"{run}_names_{which}")) for pair in pairs]
        rates[f"{which}_object_mention_rate"] = list(mean_interval(named, subjects, seed=seed))
    return rates
