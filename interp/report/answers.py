"""Questions and answers split into pieces, so that a page can highlight objects.

A piece is plain text with a role: the object that the question presupposes, the true object, the
false object, or none. The template turns roles into tags; no text becomes markup.
"""

import re
from dataclasses import dataclass
from typing import Literal

from interp.evaluation.answer_pair import AnswerPair
from interp.forward.batch import Span

Role = Literal["", "object", "true", "false"]


@dataclass(frozen=True)
class Piece:
    """A part of a text and its role ("" for none)."""

    text: str
    role: Role = ""


class MarkedPair(AnswerPair):
    """An answer pair that splits its texts into pieces."""

    def question_pieces(self) -> tuple[Piece, ...]:
        """The question, with the words at which the constraint acts as a separate piece."""
        acted_on = (self.object_span,) if self.acted_on is None else self.acted_on
        return mark_object(self.question, acted_on[0]) if acted_on else (Piece(self.question),)

    def answer_pieces(self, answer: str) -> tuple[Piece, ...]:
        """An answer, with each mention of the true and of the false object as a separate piece."""
        return mark_names(answer, true_object=self.true_object, false_object=self.false_object)


def mark_object(question: str, span: Span) -> tuple[Piece, ...]:
    """A question, with the characters [start, end) of the object as a separate piece."""
    start, end = span
    pieces = Piece(question[:start]), Piece(question[start:end], "object"), Piece(question[end:])
    return tuple(piece for piece in pieces if piece.text)


def mark_names(answer: str, *, true_object: str, false_object: str) -> tuple[Piece, ...]:
    """Split `answer` at whole-word mentions of either object, ignoring case.

    Where one name contains the other (Papua New Guinea, Guinea), the longer one is matched. The
    pieces joined are the answer.
    """
    names: dict[str, Role] = {true_object.lower(): "true"}
    names.setdefault(false_object.lower(), "false")
    names.pop("", None)
    if not names:
        return (Piece(answer),) if answer else ()
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile(
        rf"(?<!\w)({'|'.join(re.escape(name) for name in longest_first)})(?!\w)", re.IGNORECASE
    )
    # split() returns plain text and names in turn.
    parts = enumerate(pattern.split(answer))
    return tuple(Piece(text, names[text.lower()] if i % 2 else "") for i, text in parts if text)
