"""Questions that somebody else wrote: as they are asked, with what is known about them.

Such a question is one text. Perhaps it is known whether it presupposes something false, what would
be a right answer, and which words in it are false. Questions that are made from facts and templates
are `interp.premises.Premises`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from interp.arguments import check_choice, listed, of_kind, texts
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.forward.batch import Span
from interp.lazy import pd
from interp.whole_words import mentions

PremiseLabel = Literal["false_premise", "true_premise"]
"""What a question presupposes is false, or it is true."""
UNLABELLED = "unlabelled"
"""The group of questions without a label."""
GROUPS: tuple[str, ...] = (*get_args(PremiseLabel), UNLABELLED)


@dataclass(frozen=True)
class RawQuestion:
    """One question, and what its file says about it.

    Attributes:
        text: the question.
        answers: right answers, any of which counts.
        label: whether its premise is false or true; None where this is not known.
        subject: what it is about; questions about one subject are resampled together.
        relation: how subject and object belong together.
        true_object: the object that is true of the subject.
        false_object: the object that a false premise puts in its place.
        line: its line in the file, or its entry in a JSON list, from 1; 0 without a file.

    Raises UserError for an empty question, a control character in it, or an unknown label.
    """

    text: str
    answers: tuple[str, ...] = ()
    label: PremiseLabel | None = None
    subject: str | None = None
    relation: str | None = None
    true_object: str | None = None
    false_object: str | None = None
    line: int = 0

    def __post_init__(self) -> None:
        of_kind("the question", self.text, str)
        object.__setattr__(self, "answers", texts("answers", self.answers))
        for name in ("subject", "relation", "true_object", "false_object"):
            if getattr(self, name) is not None:
                of_kind(name, getattr(self, name), str)
        if not self.text.strip():
            raise UserError("the question is empty")
        if control := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", self.text):
            raise UserError(f"the question holds the control character {control[0]!r}")
        if self.label is not None:
            check_choice("label", self.label, get_args(PremiseLabel))

    @property
    def right_answers(self) -> tuple[str, ...]:
        """The right answers and the true object; empty where neither is known."""
        known = self.answers if self.true_object is None else (*self.answers, self.true_object)
        return tuple(dict.fromkeys(known))

    @property
    def group(self) -> str:
        """Its label, or ``unlabelled``."""
        return self.label or UNLABELLED

    @property
    def cluster(self) -> str:
        """What it is resampled with: questions about one subject, or with the same words."""
        return self.subject or self.text

    @property
    def object_span(self) -> Span | None:
        """The characters of the object that it presupposes, if that is known and stands in it.

        This is the false object; in a question labelled ``true_premise`` it is the true one. The
        name is looked for as whole words, ignoring case, and the last mention counts.
        """
        name = self.true_object if self.label == "true_premise" else self.false_object
        if name is None:
            return None
        return max(mentions(self.text, name, apart_from=(self.subject or "",)), default=None)


@dataclass(frozen=True)
class QuestionList(Displayed):
    """Questions in the order of their file.

    Attributes:
        questions: at least one.
        source: the file's name, or what else they come from.

    The same question may stand there twice: it counts as often, and its copies are resampled
    together. Raises UserError without a question, or for one question under two labels.
    """

    questions: tuple[RawQuestion, ...]
    source: str = "questions"

    def __post_init__(self) -> None:
        if not self.questions:
            raise UserError(f"{self.source}: holds no questions")
        first: dict[str, RawQuestion] = {}
        for question in self.questions:
            before = first.setdefault(question.text, question)
            if before.label != question.label:
                raise UserError(
                    f"{self.source}: line {question.line}: the question of line {before.line} "
                    f"again, but {question.group} and not {before.group}"
                )

    @classmethod
    def of(
        cls, questions: Iterable[str | RawQuestion], source: str = "questions"
    ) -> "QuestionList":
        """From texts, or from questions, or both.

        Raises UserError for one text alone, or anything else.
        """
        return cls(tuple(map(_as_question, listed("questions", questions, "texts"))), source)

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[RawQuestion]:
        return iter(self.questions)

    @property
    def texts(self) -> tuple[str, ...]:
        """The questions alone."""
        return tuple(question.text for question in self.questions)

    @property
    def n_repeated(self) -> int:
        """How many questions have the same words as an earlier one."""
        return len(self.questions) - len(set(self.texts))

    def counts(self) -> dict[str, int]:
        """How many questions each group has; groups without any are left out."""
        found = Counter(question.group for question in self.questions)
        return {group: found[group] for group in GROUPS if found[group]}

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a question; ``answers`` are joined by semicolons, the span is in characters."""
        rows = [
            {
                "line": question.line,
                "question": question.text,
                "answers": "; ".join(question.answers),
                "label": question.group,
                "subject": question.subject,
                "relation": question.relation,
                "true_object": question.true_object,
                "false_object": question.false_object,
                "object_span": question.object_span,
            }
            for question in self.questions
        ]
        return pd.DataFrame(rows)

    def _shown(self) -> Shown:
        counts = ", ".join(f"{n} {group.replace('_', ' ')}" for group, n in self.counts().items())
        words = f"{len(self)} questions of {self.source}: {counts}."
        return Shown(words, (self.to_dataframe().filter(items=["question", "answers", "label"]),))


def _as_question(given: Any) -> RawQuestion:
    if isinstance(given, str):
        return RawQuestion(given)
    return of_kind("a question", given, RawQuestion, advice="give it as text or as a RawQuestion")
