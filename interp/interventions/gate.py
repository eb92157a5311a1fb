"""Whether to act, and where: the gate that an intervention goes by.

With gate ``oracle`` somebody says which words are false. With ``probe`` a detector reads the
question first: one prefill for all questions. Where it fires, the constrained run acts on the span
that it found; where it does not, the unconstrained answer stands, and nothing runs again.

Detections are made on the bare question, as a user asks it. The prompts that are scored have the
opening of an answer behind it, and the same tokens up to there, which ``cloze_spans`` checks.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from interp.arguments import one_of
from interp.errors import UserError
from interp.forward.batch import Span
from interp.models.hooked_model import HookedModel
from interp.moved import old_names
from interp.premises.encode import EncodedPremises, encode_question
from interp.premises.questions import Premises, QuestionKind
from probes.detector.detections import Detection, spans_of

Gate = Literal["oracle", "probe"]
"""Who says where the false object is: the caller, or a detector."""


def check_gate(gate: str) -> None:
    """Raise UserError for an unknown gate, and list the known."""
    one_of("gate", gate, get_args(Gate))


def cloze_spans(
    model: HookedModel,
    premises: Premises,
    encoded: EncodedPremises,
    kind: QuestionKind,
    detections: Sequence[Detection],
) -> list[Span | None]:
    """The spans found in the bare questions, as spans of the prompts that are scored.

    Raises:
        UserError: up to the end of a span the two prompts differ.
    """
    spans = spans_of(detections)
    for item, span in zip(encoded.items, spans, strict=True):
        if span is None:
            continue
        bare = encode_question(model.tokenizer, premises.fill(item.question, kind)).tokens
        if span[1] > len(bare) or bare[: span[1]] != item.prompt(kind).tokens[: span[1]]:
            raise UserError(
                f"the span [{span[0]}, {span[1]}) found in the question about "
                f"{item.question.subject!r} is not in the prompt with the opening of an answer"
            )
    return spans


__getattr__ = old_names(__name__)
