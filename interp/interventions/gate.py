"""The gate of an intervention: who decides whether and where it acts.

With gate ``oracle`` the caller names the false words. With ``probe`` a detector reads the question
first, in one prefill. Where it fires, the constrained run acts on the span that it found; where it
does not, the unconstrained answer is kept and nothing runs again.

Detectors read the question as a user asks it. The prompts that are scored continue with the opening
of an answer, and share all tokens before it, which ``cloze_spans`` checks.
"""

from typing import Literal, cast, get_args

from interp.arguments import check_choice
from interp.errors import UserError
from interp.forward.batch import Span
from interp.models.hooked_model import HookedModel
from interp.moved import old_names
from interp.premises.encode import EncodedPremises, encode_question
from interp.premises.joint import AnyPremises
from interp.premises.questions import QuestionKind
from probes.detector.detections import PremiseDetections, spans_of

Gate = Literal["oracle", "probe"]
"""Who says where the false object is: the caller, or a detector."""


def check_gate(gate: str) -> Gate:
    """The gate. Raises UserError for an unknown one, and lists the known."""
    return cast(Gate, check_choice("gate", gate, get_args(Gate)))


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
