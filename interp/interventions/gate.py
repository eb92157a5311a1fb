"""Whether to act, and where: what a detector of false premises says about raw questions.

With gate ``oracle`` somebody says which words are false. With ``probe`` a detector reads the
question first: one prefill for all questions. Where it fires, the constrained run acts on the span
that it found; where it does not, the unconstrained answer stands, and nothing runs again.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from interp.arguments import one_of, shown
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.forward.batch import Span

Gate = Literal["oracle", "probe"]
"""Who says where the false object is: the caller, or a detector."""


@dataclass(frozen=True)
class Detection(Displayed):
    """What a detector says about one question.

    Attributes:
        fired: whether there is a false premise.
        probability: of a false premise, 0 to 1.
        char_span: characters [start, end) of the false object in the question.
        token_span: its tokens [start, end) in the unpadded chat prompt of the question.

    Raises UserError for a detection that fired without saying where, an empty span, or a
    probability outside 0 to 1.
    """

    fired: bool
    probability: float
    char_span: Span | None = None
    token_span: Span | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"a probability lies between 0 and 1, not {self.probability}")
        if self.fired and (self.char_span is None or self.token_span is None):
            raise UserError("a detection that fired needs a char_span and a token_span")
        for name in ("char_span", "token_span"):
            span = getattr(self, name)
            if span is not None and not 0 <= span[0] < span[1]:
                raise UserError(f"{name} [{span[0]}, {span[1]}) is no span")

    def _shown(self) -> Shown:
        verdict = "A false premise" if self.fired else "No false premise found"
        words = f"{verdict}; probability {self.probability:.2f}."
        if self.char_span is not None and self.token_span is not None:
            (start, end), (first, last) = self.char_span, self.token_span
            words += f" Characters {start} to {end} of the question, tokens {first} to {last}."
        return Shown(words)


@runtime_checkable
class Detector(Protocol):
    """Anything that finds false premises in raw questions, such as ``probes.PremiseDetector``."""

    def detect(
        self,
        model: Any,
        questions: Sequence[str],
        *,
        system: str | None = None,
        progress: bool = True,
    ) -> Sequence[Detection]:
        """One detection a question, in order."""
        ...


def check_gate(gate: str) -> None:
    """Raise UserError for an unknown gate, and list the known."""
    one_of("gate", gate, get_args(Gate))


def detect(
    model: Any,
    questions: Sequence[str],
    *,
    detector: Detector | None = None,
    system: str | None = None,
    progress: bool = True,
) -> tuple[Detection, ...]:
    """One detection a question; by default by the detector that belongs to the model.

    That one is ``probes.detector_for(model)``: read from the user's cache, or trained.
    """
    if detector is None:
        # Imported late: probes are built on this package.
        detector = importlib.import_module("probes").detector_for(model)
    if not isinstance(detector, Detector):
        raise UserError(f"detector is a premise detector (probes.Detector), not {shown(detector)}")
    found = tuple(detector.detect(model, questions, system=system, progress=progress))  # type: ignore[union-attr]
    if len(found) != len(questions):
        raise UserError(f"the detector gave {len(found)} detections for {len(questions)} questions")
    return found


def spans_of(detections: Sequence[Detection]) -> list[Span | None]:
    """Where to act in each prompt: the token span where the detector fired, else None."""
    return [one.token_span if one.fired else None for one in detections]
