"""Score a method that acts on false premises, in the same way for every method.

``score`` gives the preference per prompt on false premises and their true-premise twins, greedy
answers to the questions, and seconds per question, for any of
``interp.evaluation.baselines.methods``. Where a gate does not fire, a prompt keeps the values of
the model without an intervention, bit for bit.
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
from interp.moved import old_arguments, old_names
from interp.premises.encode import EncodedPremises, EncodedPrompt, encode_questions
from interp.premises.questions import Premises, QuestionKind
from probes.detector.detect import detect_premises
from probes.detector.detections import Detection, PremiseDetections, spans_of

KINDS: tuple[QuestionKind, ...] = ("false", "twin")

__getattr__ = old_names(__name__)


@dataclass(frozen=True, eq=False)
class MethodScore:
    """One method's scores on some premises, prompts in the order of the questions.

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


@old_arguments(treatment="method", untreated="baseline")
def score(
    model: HookedModel,
    premises: Premises,
    method: Method,
    *,
    name: str,
    answers: Sequence[QuestionKind] = (),
    baseline: MethodScore | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
) -> MethodScore:
    """Score one method on premises, such as the held-out part of a split.

    Args:
        name: the method's name in tables.
        answers: kinds of questions to answer greedily and to time, which is slow.
        baseline: the score of ``NoIntervention`` on the same premises with the same answers, kept
            where a gate does not fire; by default it is computed if a gate needs it.

    Raises:
        UserError: an unknown method, or a ``baseline`` of other premises or without answers.
    """
    if not isinstance(method, Method):
        known = ", ".join(kind.__name__ for kind in get_args(Method))
        raise UserError(f"unknown method {type(method).__name__}; known: {known}")
    system = method.text if isinstance(method, SystemPrompt) else None
    encoded = as_encoded(model, premises, system=system)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "progress": progress}
    scoring = _Scoring(model, premises, method, encoded, options)
    if isinstance(method, Gated):
        baseline = baseline or score(
            model, premises, NoIntervention(), name="none", answers=answers, **options
        )
        _check_baseline(baseline, encoded, answers)
        begin = time.perf_counter()
        found = detect_premises(model, premises, detector=method.detector, progress=progress)
        detecting = (time.perf_counter() - begin) / (len(KINDS) * len(encoded))
        scoring = replace(scoring, gate=(found, baseline), detecting=detecting)
    false, twin = (scoring.preference(kind) for kind in KINDS)
    texts: dict[QuestionKind, tuple[str, ...]] = {}
    seconds: dict[QuestionKind, float] = {}
    for kind in answers:
        prompts = encode_questions(model.tokenizer, premises, kind, system=system)
        texts[kind], seconds[kind] = scoring.answers(prompts, kind)
    detections: dict[QuestionKind, tuple[Detection, ...]] = {}
    if scoring.gate is not None:
        detections = {kind: scoring.gate[0].of(kind) for kind in KINDS}
    return MethodScore(name, false, twin, texts, seconds, detections)


@dataclass(frozen=True)
class _Scoring:
    """A method on some premises.

    Attributes:
        options: ``max_new_tokens`` and ``progress``.
        gate: of a gated method, the detections and the score where it does not fire.
        detecting: seconds per question that the detector took.
    """

    model: HookedModel
    premises: Premises
    method: Method
    encoded: EncodedPremises
    options: Mapping[str, Any]
    gate: tuple[PremiseDetections, MethodScore] | None = None
    detecting: float = 0.0

    def preference(self, kind: QuestionKind) -> Preference:
        model, premises, method = self.model, self.premises, self.method
        progress, gated = self.options["progress"], {}
        if isinstance(method, Steering):
            return steered_preference(model, premises, method, kind=kind, progress=progress)
        if self.gate is not None:
            found, baseline = self.gate
            spans = cloze_spans(model, premises, self.encoded, kind=kind, detections=found)
            gated = {"spans": spans, "unconstrained": baseline.of(kind)}
        under = interventions_of(model, method)
        return preference_under(
            model, self.encoded, kind, interventions=under, progress=progress, **gated
        ).without_first()

    def answers(
        self, prompts: Sequence[EncodedPrompt], kind: QuestionKind
    ) -> tuple[tuple[str, ...], float]:
        """The answers, and seconds per question."""
        model, options, more = self.model, dict(self.options), 0.0
        begin = time.perf_counter()
        if isinstance(self.method, Steering):
            texts = steered_answers(model, prompts, self.method, **options)
        else:
            if self.gate is not None:
                found, baseline = self.gate
                spans = spans_of(found.of(kind))
                options |= {"spans": spans, "baseline": baseline.answers[kind]}
                more = self.detecting + spans.count(None) / len(spans) * baseline.seconds[kind]
            under = interventions_of(model, self.method)[0]
            if under.needs_mean:
                options["mean"] = mean_output(model, self.encoded)
            texts = answers_under(
                model, prompts, under or None, neutral=self.encoded.mask, **options
            )
        return texts, (time.perf_counter() - begin) / len(prompts) + more


def _check_baseline(
    baseline: MethodScore, encoded: EncodedPremises, answers: Sequence[QuestionKind]
) -> None:
    asked = (encoded.subjects, encoded.templates)
    if (baseline.false.subjects, baseline.false.templates) != asked:
        raise UserError("`baseline` was scored on other premises: score NoIntervention() on these")
    if missing := [kind for kind in answers if kind not in baseline.answers]:
        raise UserError(f"`baseline` has no answers to {missing[0]!r} questions: ask for them")
