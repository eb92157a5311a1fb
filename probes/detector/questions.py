"""Questions as a detector reads them: in the chat format, with the question's tokens and words.

At training time the positions of subject and object are known. The *completion* is the last token
of whichever comes last: the first token at which the model has read the whole premise. At detection
time only the text is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from interp.forward.batch import Span
from interp.models import render_chat
from interp.premises import Premises, Question
from interp.premises.encode import token_span, tokenize
from probes.activation_reader import TokensToRead
from probes.activations import PremiseKind
from probes.detector.words import word_spans, words_of_tokens


@dataclass(frozen=True)
class AskedQuestion:
    """A raw question in the chat prompt.

    Attributes:
        text: the question.
        tokens: ids of the whole prompt, without padding.
        span: the question's tokens [start, end) in it.
        offsets: of each of those tokens, its characters in ``text``.
    """

    text: str
    tokens: tuple[int, ...]
    span: Span
    offsets: tuple[Span, ...]

    @cached_property
    def words(self) -> tuple[Span, ...]:
        """The question's words, in characters."""
        return word_spans(self.text)

    @cached_property
    def word_of(self) -> tuple[int | None, ...]:
        """The last word that each of the question's tokens touches, if any."""
        return words_of_tokens(self.words, self.offsets, self.text)

    @property
    def to_read(self) -> TokensToRead:
        """The prompt up to the question's end, read at all tokens of the question."""
        return TokensToRead(self.tokens, tuple(range(*self.span)))

    def chars_at(self, tokens: Span) -> Span:
        """The question's characters in these tokens of the prompt, without space at their edges."""
        first, last = tokens[0] - self.span[0], tokens[1] - 1 - self.span[0]
        # A token may hold characters in front of the question, or behind it.
        start, end = max(self.offsets[first][0], 0), min(self.offsets[last][1], len(self.text))
        piece = self.text[start:end]
        return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())

    def tokens_at(self, chars: Span) -> Span:
        """The prompt's tokens that hold characters of the question."""
        start, end = token_span(self.offsets, self.text, chars)
        return self.span[0] + start, self.span[0] + end


@dataclass(frozen=True)
class LabelledQuestion:
    """A question whose premise is known to be false (label 1) or true (label 0).

    Attributes:
        asked: how it is put to the model.
        label: 1 for a false premise.
        question: the fact and the template that it was made from.
        subject, object: characters in the question.
        counts: whether layer, calibration and threshold are chosen by it; it is fitted on anyway.
    """

    asked: AskedQuestion
    label: int
    question: Question
    subject: Span
    object: Span
    counts: bool = True

    @property
    def object_tokens(self) -> Span:
        """The object's tokens, counted from the question's first."""
        return self._from_first(self.object)

    @property
    def subject_tokens(self) -> Span:
        """The subject's tokens, counted from the question's first."""
        return self._from_first(self.subject)

    def _from_first(self, chars: Span) -> Span:
        start, end = self.asked.tokens_at(chars)
        return start - self.asked.span[0], end - self.asked.span[0]

    @property
    def completion(self) -> int:
        """The token at which the premise is complete, counted from the question's first."""
        last = max(self.subject, self.object, key=lambda span: span[1])
        return self.asked.tokens_at(last)[1] - 1 - self.asked.span[0]


@dataclass(frozen=True)
class BackgroundText:
    """A text in which nothing false is presupposed.

    Attributes:
        asked: how it is put to the model.
        relation, group: what it is about, as `groups_of` names subjects; None for neither.
    """

    asked: AskedQuestion
    relation: str | None = None
    group: str | None = None


def tokenize_question(tokenizer: Any, text: str, *, system: str | None = None) -> AskedQuestion:
    """A question in the model's chat format. Raises UserError for an empty one."""
    rendered = render_chat(tokenizer, text, system=system)
    encoding = tokenize(tokenizer, rendered)
    ids, offsets, begin = (
        encoding["input_ids"],
        encoding["offset_mapping"],
        rendered.question_start,
    )
    return located_question(text, rendered.text, ids, offsets=offsets, begin=begin)


def located_question(
    text: str, prompt: str, ids: Sequence[int], *, offsets: Sequence[Span], begin: int
) -> AskedQuestion:
    """A question that begins at character ``begin`` of a prompt with these tokens and offsets."""
    first = begin + len(text) - len(text.lstrip())
    last = begin + len(text.rstrip())
    start, end = token_span(offsets, prompt, (first, last), what="question")
    of_question = tuple((left - begin, right - begin) for left, right in offsets[start:end])
    return AskedQuestion(text, tuple(ids), (start, end), of_question)


def label_questions(
    tokenizer: Any, premises: Premises, questions: Iterable[Question], *, counts: bool = True
) -> list[LabelledQuestion]:
    """Each question with its false object, and then its true-premise twin."""
    kinds: tuple[tuple[PremiseKind, int], ...] = (("false", 1), ("twin", 0))
    found = []
    for question, (kind, label) in product(questions, kinds):
        filled = premises.fill(question, kind)
        asked = tokenize_question(tokenizer, filled.text)
        spans = filled.subject, filled.object
        found.append(LabelledQuestion(asked, label, question, *spans, counts=counts))
    return found
