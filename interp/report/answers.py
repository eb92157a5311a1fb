"""Questions and answers split into pieces, so that a page can highlight objects.

A piece is plain text with a role: the object that the question presupposes, the true object, the
false object, what one of two answers has and the other has not, or none. The template turns roles
into tags; no text becomes markup.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from itertools import pairwise, zip_longest
from typing import Literal

from interp.evaluation.answer_pair import AnswerPair
from interp.forward.batch import Span
from interp.whole_words import mentions
from probes.detector.words import word_spans

Role = Literal["", "object", "true", "false", "removed", "added"]


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
        return mark_names(
            answer,
            true_object=self.true_object,
            false_object=self.false_object,
            subject=self.subject,
        )


def mark_object(question: str, span: Span) -> tuple[Piece, ...]:
    """A question, with the characters [start, end) of the object as a separate piece."""
    return _mark_spans(question, [span], "object")


def mark_names(
    answer: str, *, true_object: str, false_object: str, subject: str = ""
) -> tuple[Piece, ...]:
    """Split `answer` at mentions of either object, as whole words, whatever the case and accents.

    Where one name contains the other (Papua New Guinea, Guinea), the longer one is matched. What is
    a part of a longer subject (Mexico City) is no object. The pieces joined are the answer.
    """
    roles: tuple[tuple[Role, str], ...] = (("true", true_object), ("false", false_object))
    spans: list[tuple[int, int, Role]] = [
        (start, -end, role)
        for role, name in roles
        for start, end in mentions(answer, name, apart_from=(subject,))
    ]
    pieces, at = [], 0
    for start, end, role in sorted(spans, key=lambda span: span[:2]):
        if start >= at:
            pieces += [Piece(answer[at:start]), Piece(answer[start:-end], role)]
            at = -end
    return tuple(piece for piece in (*pieces, Piece(answer[at:])) if piece.text)


def mark_changes(before: str, after: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Two texts, with the words that only the first, and that only the second has, as pieces.

    Words are compared with the punctuation behind them, and without the space. The pieces of either
    text joined are the text.
    """
    words, others = _words_with_punctuation(before), _words_with_punctuation(after)
    compared = SequenceMatcher(
        None,
        [before[slice(*word)] for word in words],
        [after[slice(*word)] for word in others],
        False,
    )
    removed, added = [], []
    for start, end, other_start, other_end in _changes(compared.get_matching_blocks()):
        if start < end:
            removed.append((words[start][0], words[end - 1][1]))
        if other_start < other_end:
            added.append((others[other_start][0], others[other_end - 1][1]))
    return _mark_spans(before, removed, "removed"), _mark_spans(after, added, "added")


def _changes(blocks: Sequence[Match]) -> Iterator[tuple[int, int, int, int]]:
    """What lies between matching blocks: [start, end) in one sequence and in the other.

    A single match between two changes is chance, and part of one change.
    """
    start = other_start = 0
    for block, following in zip_longest(blocks, blocks[1:]):  # the last is empty, at the end
        end, other_end = block.a + block.size, block.b + block.size
        before = block.a > start and block.b > other_start
        after = following and following.a > end and following.b > other_end
        if block.size == 1 and before and after:
            continue
        if block.a > start or block.b > other_start:
            yield start, block.a, other_start, block.b
        start, other_start = end, other_end


def _words_with_punctuation(text: str) -> list[Span]:
    """The characters of each word up to the next one, without the space at the end.

    What stands before the first word belongs to it; a text without words is one word.
    """
    if not text.strip():
        return []
    starts = [0, *(start for start, _ in word_spans(text)[1:]), len(text)]
    return [(start, start + len(text[start:end].rstrip())) for start, end in pairwise(starts)]


def _mark_spans(text: str, spans: Sequence[Span], role: Role) -> tuple[Piece, ...]:
    """A text with the characters of each span, which are in order, as a piece of this role."""
    pieces, done = [], 0
    for start, end in spans:
        pieces += [Piece(text[done:start]), Piece(text[start:end], role)]
        done = end
    return tuple(piece for piece in (*pieces, Piece(text[done:])) if piece.text)
