"""The gate of an intervention: who decides whether and where it acts.

With gate ``oracle`` the caller names the false words. With ``probe`` a detector reads the question
first, in one prefill. Where it fires, the constrained run acts on the span that it found; where it
does not, the unconstrained answer is kept and nothing runs again. With ``soft`` the detector acts
from a small probability on, ``SOFT_FLOOR``, and the constraint is as strong as the detector is
sure: attention to the words that it found is multiplied by 1 - probability (of mode ``scale``: that
far from 1 to the factor), in each question by its own.

Detectors read the question as a user asks it. The prompts that are scored continue with the opening
of an answer, and share all tokens before it, which ``cloze_spans`` checks.
"""

from collections.abc import Iterable
from typing import Literal, cast, get_args

from interp.arguments import check_choice
from interp.errors import UserError
from interp.forward.batch import Span
from interp.models.hooked_model import HookedModel
from interp.moved import old_names
from interp.premises.encode import EncodedPremises, encode_question
from interp.premises.joint import AnyPremises
from interp.premises.questions import QuestionKind
from probes.detector.detections import Detection, PremiseDetections, spans_of

Gate = Literal["oracle", "probe", "soft"]
"""Who says where the false object is: the caller, or a detector, or one that says how strongly."""

SOFT_FLOOR = 0.25
"""The probability from which a detector acts with gate ``soft``."""


def check_gate(gate: str) -> Gate:
    """The gate. Raises UserError for an unknown one, and lists the known."""
    return cast(Gate, check_choice("gate", gate, get_args(Gate)))


def lowest_probability(gate: Gate) -> float | None:
    """From which probability on the detector acts; None for its own threshold."""
    return SOFT_FLOOR if gate == "soft" else None


def strengths_of(detections: Iterable[Detection], gate: Gate) -> tuple[float, ...] | None:
    """How much of the constraint acts in each question; None for all of it."""
    return tuple(found.probability for found in detections) if gate == "soft" else None


def cloze_spans(
    model: HookedModel,
    premises: AnyPremises,
    encoded: EncodedPremises,
    *,
    kind: QuestionKind,
    detections: PremiseDetections | None,
) -> list[Span | None] | None:
    """The spans found in the questions, as spans of the prompts that are scored; None for None.

    Raises:
        UserError: the two prompts differ before the end of a span.
    """
    if detections is None:
        return None
    spans = spans_of(detections.of(kind))
    for item, span in zip(encoded.items, spans, strict=True):
        if span is None:
            continue
        asked = encode_question(model.tokenizer, premises.fill(item.question, kind)).tokens
        if span[1] > len(asked) or asked[: span[1]] != item.prompt(kind).tokens[: span[1]]:
            raise UserError(
                f"the span [{span[0]}, {span[1]}) found in the question about "
                f"{item.question.subject!r} is not in the prompt with the opening of an answer"
            )
    return spans


__getattr__ = old_names(__name__)
