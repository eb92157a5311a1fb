"""The outcome of one question: where the false premise is, and the answers to it."""

from dataclasses import dataclass
from typing import Literal

from interp.forward.batch import Span
from interp.interventions.head_constraint import Constraint
from interp.premises.relation import names
from interp.report.answers import Piece, mark_names, mark_object

FoundBy = Literal["you", "the detector", "nobody"]


@dataclass(frozen=True)
class FoundPremise:
    """The words of a question that are assumed to be false.

    Attributes:
        chars: characters [start, end) of the question; None if there are no such words.
        tokens: the same words as tokens of the unpadded chat prompt.
        found_by: the source of the words.
        probability: the detector's probability of a false premise; None if it was not used.
    """

    chars: Span | None = None
    tokens: Span | None = None
    found_by: FoundBy = "nobody"
    probability: float | None = None


@dataclass(frozen=True)
class Answer:
    """A greedy answer and its duration in seconds."""

    text: str
    seconds: float


@dataclass(frozen=True)
class Answers:
    """The answers to a question without and with the constraint.

    Attributes:
        true_object: the right object if the question's subject is in the known facts, else "".
        constrained: the same object as ``baseline`` if nothing was constrained.
    """

    question: str
    found: FoundPremise
    constraint: Constraint
    baseline: Answer
    constrained: Answer
    true_object: str = ""

    @property
    def false_object(self) -> str:
        """The words that are assumed to be false, or ""."""
        return "" if self.found.chars is None else self.question[slice(*self.found.chars)]

    @property
    def acted(self) -> bool:
        """Whether anything was constrained."""
        return self.found.chars is not None and len(self.constraint.heads) > 0

    @property
    def note(self) -> str:
        """One or two sentences on what was constrained, or why nothing was."""
        probability = self.found.probability
        sure = "" if probability is None else f" (probability {probability:.2f})"
        if self.found.chars is None:
            return (
                f"The detector finds no false premise{sure}: nothing is constrained, and the "
                "answer stays as it is. To constrain all the same, name the words."
            )
        who = "named by you" if self.found.found_by == "you" else f"found by the detector{sure}"
        where = f"“{self.false_object}”, {who}"
        if not self.acted:
            return f"{where}. No head is chosen: the answer stays as it is."
        steps = self.constraint.decoding_steps
        how_long = "" if steps is None else f", in the prefill and {steps} decoding steps"
        return f"{where}. Constrained there: {self.constraint.name}{how_long}."

    def question_pieces(self) -> tuple[Piece, ...]:
        """The question, with the words that are assumed to be false as a separate piece."""
        if self.found.chars is None:
            return (Piece(self.question),)
        return mark_object(self.question, self.found.chars)

    def answer_pieces(self, answer: Answer) -> tuple[Piece, ...]:
        """An answer, with each mention of the true and of the false object as a separate piece."""
        return mark_names(answer.text, true_object=self.true_object, false_object=self.false_object)

    def verdict(self, answer: Answer) -> str:
        """Which object an answer names; "" if the true object is unknown."""
        if not self.true_object:
            return ""
        true = names(answer.text, self.true_object)
        false = bool(self.false_object) and names(answer.text, self.false_object)
        if true and false:
            return "names both"
        if true or false:
            return f"names the {'true' if true else 'false'} object"
        return "names neither"
