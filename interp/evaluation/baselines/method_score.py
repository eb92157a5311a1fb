"""What else could be done about false premises: every treatment scored in the same way.

``score`` gives for each treatment (``interp.evaluation.baselines.methods``) the preference per
prompt on false premises and their true-premise twins, greedy answers to the bare questions, and
seconds per question.

Where a gate does not fire, the model runs as it is: those prompts' figures are the untreated ones,
to the last bit.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from interp.premises.encode import EncodedPremises, encode_questions
from interp.premises.questions import Premises, QuestionKind
from probes.detector.detect import detect_premises
from probes.detector.detections import Detection, PremiseDetections, spans_of

KINDS: tuple[QuestionKind, ...] = ("false", "twin")


@dataclass(frozen=True, eq=False)
class TreatmentScore:
    """One treatment's figures on some premises, prompts in the order of the questions.

    Attributes:
        false, twin: Preference; one set, or one for each random draw.
        answers: greedy answers by kind of question, as far as they were asked for.
        seconds: seconds per question of giving those answers, detection included.
        detections: what the gate said, by kind of question.
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
    """Score one treatment on premises, best on the held-out part of a split.

    Args:
        name: what tables call it.
        answers: kinds of questions to answer greedily (and to time), the slow part.
        untreated: the score of ``NoIntervention`` on the same premises with the same answers, which
        a
            gate takes over where it does not fire; made anew if a gate needs it and it is None.

    Raises:
        UserError: an unknown treatment, or an ``untreated`` of other premises or without answers.
    """
    if not isinstance(treatment, Method):
        known = "NoIntervention, SystemPrompt, Steering, Constraint, RandomHeads, Gated"
        raise UserError(f"unknown treatment {type(treatment).__name__}; known: {known}")
    system = treatment.text if isinstance(treatment, SystemPrompt) else None
    encoded = as_encoded(model, premises, system=system)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "progress": progress}
    gate: _Gate | None = None
    if isinstance(treatment, Gated):
        untreated = untreated or score(
            model, premises, NoIntervention(), name="untreated", answers=answers, **options
        )
        _check_untreated(untreated, encoded, answers)
        begin = time.perf_counter()
        found = detect_premises(model, premises, detector=treatment.detector, progress=progress)
        seconds_each = (time.perf_counter() - begin) / (len(KINDS) * len(encoded))
        gate = _Gate(found, untreated, seconds_each)
    scoring = _Scoring(model, premises, treatment, encoded, system, gate, options)
    false, twin = (scoring.preference(kind) for kind in KINDS)
    texts: dict[QuestionKind, tuple[str, ...]] = {}
    seconds: dict[QuestionKind, float] = {}
    for kind in answers:
        texts[kind], seconds[kind] = scoring.answers(kind)
    detections: dict[QuestionKind, tuple[Detection, ...]] = {}
    if gate is not None:
        detections = {kind: gate.found.of(kind) for kind in KINDS}
    return TreatmentScore(name, false, twin, texts, seconds, detections)


@dataclass(frozen=True)
class _Gate:
    """What a gated treatment goes by.

    Attributes:
        found: what the detector says of each question.
        untreated: the score that stands where it does not fire.
        seconds: of detecting, per question.
    """

    found: PremiseDetections
    untreated: TreatmentScore
    seconds: float


@dataclass(frozen=True)
class _Scoring:
    """One treatment as it is scored."""

    model: HookedModel
    premises: Premises
    treatment: Method
    encoded: EncodedPremises
    system: str | None
    gate: _Gate | None
    options: Mapping[str, Any]

    def preference(self, kind: QuestionKind) -> Preference:
        """The preferences under the treatment."""
        model, premises, gate = self.model, self.premises, self.gate
        progress = self.options["progress"]
        if isinstance(self.treatment, Steering):
            return steered_preference(model, premises, self.treatment, kind, progress=progress)
        spans = unconstrained = None
        if gate is not None:
            spans = cloze_spans(model, premises, self.encoded, kind, gate.found.of(kind))
            unconstrained = gate.untreated.of(kind)
        return preference_under(
            model,
            self.encoded,
            kind,
            interventions_of(model, self.treatment),
            spans=spans,
            unconstrained=unconstrained,
            progress=progress,
        ).without_first()

    def answers(self, kind: QuestionKind) -> tuple[tuple[str, ...], float]:
        """The answers, and seconds per question."""
        model, gate = self.model, self.gate
        prompts = encode_questions(model.tokenizer, self.premises, kind, system=self.system)
        begin = time.perf_counter()
        if isinstance(self.treatment, Steering):
            texts = steered_answers(model, prompts, self.treatment, **self.options)
            return texts, (time.perf_counter() - begin) / len(prompts)
        under = interventions_of(model, self.treatment)[0]
        needs_mean = any(part.mode == "mean" for part in under.heads)
        spans = None if gate is None else spans_of(gate.found.of(kind))
        texts = answers_under(
            model,
            prompts,
            under or None,
            spans=spans,
            baseline=() if gate is None else gate.untreated.answers[kind],
            mean=mean_output(model, self.encoded) if needs_mean else None,
            neutral=self.encoded.mask,
            **self.options,
        )
        each = (time.perf_counter() - begin) / len(prompts)
        if gate is not None and spans is not None:
            each += gate.seconds + spans.count(None) / len(spans) * gate.untreated.seconds[kind]
        return texts, each


def _check_untreated(
    untreated: TreatmentScore, encoded: EncodedPremises, answers: Sequence[QuestionKind]
) -> None:
    asked = (encoded.subjects, encoded.templates)
    if (untreated.false.subjects, untreated.false.templates) != asked:
        raise UserError("`untreated` was scored on other premises: score NoIntervention() on these")
    missing = [kind for kind in answers if kind not in untreated.answers]
    if missing:
        raise UserError(f"`untreated` has no answers to {missing[0]!r} questions: ask for them")
