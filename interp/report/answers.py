"""Answers before and after the constraint, cut into pieces for marking.

A piece is plain text with the role it plays: the object that the question presupposes, the true
object, the false object, or nothing. The template turns roles into tags; no text becomes markup.
"""

import re
from dataclasses import dataclass
from typing import Literal

from interp.evaluation.answer_pair import AnswerPair
from interp.forward.batch import Span

Role = Literal["", "object", "true", "false"]


@dataclass(frozen=True)
class Piece:
    """A stretch of text and its role ("" for none)."""

    text: str
    role: Role = ""


class MarkedPair(AnswerPair):
    """An answer pair that cuts its texts into pieces for marking."""

    def question_pieces(self) -> tuple[Piece, ...]:
        """The question, with the object it presupposes as a piece of its own."""
        return mark_object(self.question, self.object_span)

    def answer_pieces(self, answer: str) -> tuple[Piece, ...]:
        """An answer, with each naming of the true and of the false object as its own piece."""
        return mark_names(answer, true_object=self.true_object, false_object=self.false_object)


def mark_object(question: str, span: Span) -> tuple[Piece, ...]:
    """A question, with the characters [start, end) of the object as a piece of its own."""
    start, end = span
    pieces = Piece(question[:start]), Piece(question[start:end], "object"), Piece(question[end:])
    return tuple(piece for piece in pieces if piece.text)


def mark_names(answer: str, *, true_object: str, false_object: str) -> tuple[Piece, ...]:
    """Cut `answer` at whole-word namings of either object, whatever the case of the letters.

    Where one name lies inside the other (Guinea, Papua New Guinea) the longer one is meant. The
    pieces put together are the answer again.
    """
    names: dict[str, Role] = {true_object.lower(): "true"}
    names.setdefault(false_object.lower(), "false")
    names.pop("", None)
    if not names:
        return (Piece(answer),) if answer else ()
    longest_first = sorted(names, key=lambda name: len(name), reverse=True)
    pattern = re.compile(
        rf"(?<!\w)({'|'.join(re.escape(name) for name in longest_first)})(?!\w)", re.IGNORECASE
    )
    pieces: list[Piece] = []
    for position, text in enumerate(pattern.split(answer)):
        if not text:
            continue
        # split() returns plain text and the caught name in turn.
        role: Role = names.get(text.lower(), "") if position % 2 else ""
        pieces.append(Piece(text, role))
    return tuple(pieces)
