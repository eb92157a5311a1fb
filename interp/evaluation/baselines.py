"""What else could be done about false premises: every treatment scored in the same way.

A treatment is a value: nothing (``Untreated``), a system prompt (``SystemPrompt``), steering
(``interp.evaluation.steering``), a constraint at the known object (``Constraint``), random heads
under the same constraint (``RandomHeads``), or the constraint where a detector says that the
premise is false (``Gated``). ``score`` gives for each the preference per prompt on false premises
and their true-premise twins, greedy answers to the bare questions, and seconds per question.

Where a gate does not fire, the model runs as it is: those prompts' figures are the untreated ones,
to the last bit.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from interp.errors import UserError
from interp.evaluation.preference import Preference, preference
from interp.evaluation.treatments import (
    Gated,
    Treatment,
    Untreated,
    bare_prompts,
    constraining,
    timed_answers,
    treated_answers,
    treated_preference,
)
from interp.generation import MAX_NEW_TOKENS
from interp.heads.locate import as_encoded
from interp.interventions.constraint import Constraint
from interp.interventions.gate import Detection, detect
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises, QuestionKind

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
    model: Any,
    premises: Premises,
    treatment: Treatment,
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
        untreated: the score of ``Untreated`` on the same premises with the same answers, which a
            gate takes over where it does not fire; made anew if a gate needs it and it is None.

    Raises:
        UserError: an unknown treatment, or an ``untreated`` of other premises or without answers.
    """
    if not isinstance(treatment, Treatment):
        known = "Untreated, SystemPrompt, Steering, Constraint, RandomHeads, Gated"
        raise UserError(f"unknown treatment {type(treatment).__name__}; known: {known}")
    encoded = as_encoded(model, premises)
    if isinstance(treatment, Gated):
        if untreated is None:
            untreated = score(
                model, premises, Untreated(), name="untreated", answers=answers,
                max_new_tokens=max_new_tokens, progress=progress,
            )  # fmt: skip
        _check_untreated(untreated, encoded, answers)
        return _score_gated(
            model, premises, encoded, treatment, untreated, name, answers, max_new_tokens, progress
        )
    false, twin = (
        treated_preference(model, premises, encoded, kind, treatment, progress) for kind in KINDS
    )
    texts: dict[QuestionKind, tuple[str, ...]] = {}
    seconds: dict[QuestionKind, float] = {}
    for kind in answers:
        texts[kind], seconds[kind] = treated_answers(
            model, premises, kind, treatment, max_new_tokens, progress
        )
    return TreatmentScore(name, false, twin, texts, seconds)


def _check_untreated(
    untreated: TreatmentScore, encoded: EncodedPremises, answers: Sequence[QuestionKind]
) -> None:
    asked = (encoded.subjects, encoded.templates)
    if (untreated.false.subjects, untreated.false.templates) != asked:
        raise UserError("`untreated` was scored on other premises: score Untreated() on these")
    missing = [kind for kind in answers if kind not in untreated.answers]
    if missing:
        raise UserError(f"`untreated` has no answers to {missing[0]!r} questions: ask for them")


def _score_gated(
    model: Any,
    premises: Premises,
    encoded: EncodedPremises,
    gated: Gated,
    untreated: TreatmentScore,
    name: str,
    answers: Sequence[QuestionKind],
    max_new_tokens: int,
    progress: bool,
) -> TreatmentScore:
    found: dict[QuestionKind, Preference] = {}
    texts: dict[QuestionKind, tuple[str, ...]] = {}
    seconds: dict[QuestionKind, float] = {}
    detections: dict[QuestionKind, tuple[Detection, ...]] = {}
    for kind in KINDS:
        questions = [premises.fill(one, kind).text for one in premises.questions()]
        begin = time.perf_counter()
        said = detect(model, questions, detector=gated.detector, progress=progress)
        detecting = (time.perf_counter() - begin) / len(questions)
        detections[kind] = said
        found[kind] = _gated_preference(
            model, encoded, kind, gated.constraint, said, untreated.of(kind), progress
        )
        if kind not in answers:
            continue
        fired = [index for index, one in enumerate(said) if one.fired]
        prompts = [bare_prompts(model, premises, kind)[index] for index in fired]
        spans = [span for one in said if one.fired and (span := one.token_span)]
        within = constraining(model, premises, gated.constraint, spans)
        new, each = timed_answers(model, prompts, within, max_new_tokens, progress)
        kept = list(untreated.answers[kind])
        for index, text in zip(fired, new, strict=True):
            kept[index] = text
        texts[kind] = tuple(kept)
        share = len(fired) / len(said)
        seconds[kind] = detecting + share * each + (1 - share) * untreated.seconds[kind]
    return TreatmentScore(name, found["false"], found["twin"], texts, seconds, detections)


def _gated_preference(
    model: Any,
    encoded: EncodedPremises,
    kind: QuestionKind,
    constraint: Constraint,
    detections: Sequence[Detection],
    untreated: Preference,
    progress: bool,
) -> Preference:
    """The untreated values, and those of the constraint where the detector fired."""
    fired = [index for index, one in enumerate(detections) if one.fired]
    if not fired:
        return untreated
    items = []
    for index in fired:
        item, span = encoded.items[index], detections[index].token_span
        assert span is not None
        prompt = replace(item.prompt(kind), object=span)
        items.append(replace(item, false=prompt) if kind == "false" else replace(item, twin=prompt))
    some = replace(encoded, items=tuple(items))
    held = preference(model, some, kind, constraint, [constraint.heads], progress=progress)
    merged: dict[str, np.ndarray] = {}
    for measure in ("logit_difference", "p_true", "p_false"):
        merged[measure] = getattr(untreated, measure).copy()
        merged[measure][fired] = getattr(held, measure)
    return replace(untreated, **merged)
