"""Score a treatment of false premises, in the same way for every treatment.

``score`` gives the preference per prompt on false premises and their true-premise twins, greedy
answers to the questions, and seconds per question, for any of
``interp.evaluation.baselines.methods``. Where a gate does not fire, a prompt keeps the untreated
values, bit for bit.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from interp.errors import UserError
from interp.evaluation.answers import answers_under
from interp.evaluation.baselines.methods import (
    Gated,
    Method,
    NoIntervention,
    SystemPrompt,
    interventions_of,
)
from interp.evaluation.baselines.steering import Steering, steered_answers, steered_preference
from interp.evaluation.preference import Preference, preference_under
from interp.forward.generate import MAX_NEW_TOKENS
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.interventions.gate import cloze_spans
from interp.models.hooked_model import HookedModel
from interp.premises.encode import EncodedPremises, EncodedPrompt, encode_questions
from interp.premises.questions import Premises, QuestionKind
from probes.detector.detect import detect_premises
from probes.detector.detections import Detection, PremiseDetections, spans_of

KINDS: tuple[QuestionKind, ...] = ("false", "twin")


@dataclass(frozen=True, eq=False)
class TreatmentScore:
    """One treatment's scores on some premises, prompts in the order of the questions.

    Attributes:
        false, twin: Preference; one set, or one for each random draw.
        answers: greedy answers by kind of question, for the kinds that were asked for.
        seconds: seconds per question to give those answers, detection included.
        detections: the gate's detections, by kind of question.
    """

    name: str
    false: Preference
    twin: Preference
    answers: Mapping[QuestionKind, tuple[str, ...]] = field(default_factory=dict)
    seconds: Mapping[QuestionKind, float] = field(default_factory=dict)
    detections: Mapping[QuestionKind, tuple[Detection, ...]] = field(default_factory=dict)

    def of(self, kind: QuestionKind) -> Preference:
        """The preferences on false premises, or on their twins."""
        return {"false": self.false, "twin": self.twin}[kind]


def score(
    model: HookedModel,
    premises: Premises,
    treatment: Method,
    *,
    name: str,
    answers: Sequence[QuestionKind] = (),
    untreated: TreatmentScore | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
) -> TreatmentScore:
    """Score one treatment on premises, such as the held-out part of a split.

    Args:
        name: the treatment's name in tables.
        answers: kinds of questions to answer greedily and to time, which is slow.
        untreated: the score of ``NoIntervention`` on the same premises with the same answers, kept
            where a gate does not fire; by default it is computed if a gate needs it.

    Raises:
        UserError: an unknown treatment, or an ``untreated`` of other premises or without answers.
    """
    if not isinstance(treatment, Method):
        known = ", ".join(kind.__name__ for kind in get_args(Method))
        raise UserError(f"unknown treatment {type(treatment).__name__}; known: {known}")
    system = treatment.text if isinstance(treatment, SystemPrompt) else None
    encoded = as_encoded(model, premises, system=system)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "progress": progress}
    scoring = _Scoring(model, premises, treatment, encoded, options)
    if isinstance(treatment, Gated):
        untreated = untreated or score(
            model, premises, NoIntervention(), name="untreated", answers=answers, **options
        )
        _check_untreated(untreated, encoded, answers)
        begin = time.perf_counter()
        found = detect_premises(model, premises, detector=treatment.detector, progress=progress)
        detecting = (time.perf_counter() - begin) / (len(KINDS) * len(encoded))
        scoring = replace(scoring, gate=(found, untreated), detecting=detecting)
    false, twin = (scoring.preference(kind) for kind in KINDS)
    texts: dict[QuestionKind, tuple[str, ...]] = {}
    seconds: dict[QuestionKind, float] = {}
    for kind in answers:
        prompts = encode_questions(model.tokenizer, premises, kind, system=system)
        texts[kind], seconds[kind] = scoring.answers(prompts, kind)
    detections: dict[QuestionKind, tuple[Detection, ...]] = {}
    if scoring.gate is not None:
        detections = {kind: scoring.gate[0].of(kind) for kind in KINDS}
    return TreatmentScore(name, false, twin, texts, seconds, detections)


@dataclass(frozen=True)
class _Scoring:
    """A treatment on some premises.

    Attributes:
        options: ``max_new_tokens`` and ``progress``.
        gate: of a gated treatment, the detections and the score where it does not fire.
        detecting: seconds per question that the detector took.
    """

    model: HookedModel
    premises: Premises
    treatment: Method
    encoded: EncodedPremises
    options: Mapping[str, Any]
    gate: tuple[PremiseDetections, TreatmentScore] | None = None
    detecting: float = 0.0

    def preference(self, kind: QuestionKind) -> Preference:
        """The preferences under the treatment."""
        model, premises, treatment = self.model, self.premises, self.treatment
        progress, gated = self.options["progress"], {}
        if isinstance(treatment, Steering):
            return steered_preference(model, premises, treatment, kind=kind, progress=progress)
        if self.gate is not None:
            found, untreated = self.gate
            spans = cloze_spans(model, premises, self.encoded, kind=kind, detections=found)
            gated = {"spans": spans, "unconstrained": untreated.of(kind)}
        under = interventions_of(model, treatment)
        return preference_under(
            model, self.encoded, kind, interventions=under, progress=progress, **gated
        ).without_first()

    def answers(
        self, prompts: Sequence[EncodedPrompt], kind: QuestionKind
    ) -> tuple[tuple[str, ...], float]:
        """The answers, and seconds per question."""
        model, options, more = self.model, dict(self.options), 0.0
        begin = time.perf_counter()
        if isinstance(self.treatment, Steering):
            texts = steered_answers(model, prompts, self.treatment, **options)
        else:
            if self.gate is not None:
                found, untreated = self.gate
                spans = spans_of(found.of(kind))
                options |= {"spans": spans, "baseline": untreated.answers[kind]}
                more = self.detecting + spans.count(None) / len(spans) * untreated.seconds[kind]
            under = interventions_of(model, self.treatment)[0]
            if under.needs_mean:
                options["mean"] = mean_output(model, self.encoded)
            texts = answers_under(
                model, prompts, under or None, neutral=self.encoded.mask, **options
            )
        return texts, (time.perf_counter() - begin) / len(prompts) + more


def _check_untreated(
    untreated: TreatmentScore, encoded: EncodedPremises, answers: Sequence[QuestionKind]
) -> None:
    asked = (encoded.subjects, encoded.templates)
    if (untreated.false.subjects, untreated.false.templates) != asked:
        raise UserError("`untreated` was scored on other premises: score NoIntervention() on these")
    missing = [kind for kind in answers if kind not in untreated.answers]
    if missing:
        raise UserError(f"`untreated` has no answers to {missing[0]!r} questions: ask for them")
