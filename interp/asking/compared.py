"""``ComparedAnswers``: questions with their answers without and with an intervention.

A notebook shows a table, in which the words that were found false and the words that the
intervention changed are marked; a terminal shows the same as text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.files.documents import write_jsonl
from interp.forward.batch import Span
from interp.interventions.intervention import Intervention
from interp.lazy import pd
from interp.report.answers import Piece, Role, mark_changes, mark_object
from interp.report.page import render_part

MARKS: dict[Role, tuple[str, str]] = {
    "object": ("»", "«"),
    "removed": ("[-", "-]"),
    "added": ("{+", "+}"),
}
"""What stands around a piece of a text without colours."""
SHOWN = 20
"""Questions in a notebook's table."""


@dataclass(frozen=True)
class ComparedAnswer:
    """A question and its greedy answers without (``baseline``) and with the intervention.

    Attributes:
        fired: whether the intervention acted; if not, both answers are the same.
        words: characters [start, end) of the question at which it acted; None where it did not, or
            where it acts at every token.
        probability: the detector's, of a false premise; None where no detector was asked.

    Raises UserError for words that the question does not have.
    """

    question: str
    baseline: str
    constrained: str
    fired: bool
    words: Span | None = None
    probability: float | None = None

    def __post_init__(self) -> None:
        if self.words is not None:
            start, end = self.words
            if not 0 <= start < end <= len(self.question):
                raise UserError(f"words [{start}, {end}) lie outside the question")

    @property
    def changed(self) -> bool:
        """Whether the answer with the intervention is another one."""
        return self.baseline != self.constrained

    @property
    def found(self) -> str:
        """The words at which the intervention acted, or ""."""
        return "" if self.words is None else self.question[slice(*self.words)]

    @property
    def note(self) -> str:
        """Whether and where the intervention acted, and whether that changed the answer."""
        if self.probability is None:
            who = "as told" if self.fired else "no words are named"
        else:
            gate = "open" if self.fired else "closed"
            who = f"gate {gate}, probability of a false premise {self.probability:.2f}"
        if not self.fired:
            return f"{who}: the answer stays as it is"
        where = f"“{self.found}”" if self.words else "every token"
        return f"{who}: constrained at {where}, {'another' if self.changed else 'the same'} answer"

    def question_pieces(self) -> tuple[Piece, ...]:
        """The question, with the words at which the intervention acted as a separate piece."""
        if self.words is None:
            return (Piece(self.question),)
        return mark_object(self.question, self.words)

    def answer_pieces(self) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
        """Both answers, with the words that only one of them has as separate pieces."""
        return mark_changes(self.baseline, self.constrained)

    def to_row(self) -> dict[str, Any]:
        """The values by name: the line of a JSON file, and the row of a table."""
        row = asdict(self)
        start, end = row.pop("words") or (None, None)
        return {**row, "changed": self.changed, "words": self.found, "start": start, "end": end}

    def __str__(self) -> str:
        question, answers = marked_text(self.question_pieces()), self.answer_pieces()
        lines = [question, f"  {self.note}", f"  without  {marked_text(answers[0])}"]
        if self.fired:
            lines.append(f"  with     {marked_text(answers[1])}")
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class ComparedAnswers(Displayed):
    """The answers to several questions, in order.

    Attributes:
        intervention: what acted, with its gate.
        answers: one a question.
    """

    intervention: Intervention
    answers: tuple[ComparedAnswer, ...]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[ComparedAnswer]:
        return iter(self.answers)

    def __getitem__(self, index: int) -> ComparedAnswer:
        return self.answers[index]

    @property
    def sentence(self) -> str:
        """How many questions were constrained, and how many answers changed."""
        return counts_sentence(self.answers)

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a question: answers, ``fired``, ``probability``, ``changed``, and the words."""
        columns = list(ComparedAnswer("", "", "", False).to_row())
        rows = pd.DataFrame([answer.to_row() for answer in self.answers], columns=columns)
        return rows.astype({"start": "Int64", "end": "Int64"})  # whole numbers beside missing ones

    def save(self, path: str | Path) -> Path:
        """Write one JSON object a line; returns the path."""
        return write_jsonl(Path(path), (answer.to_row() for answer in self.answers))

    def _shown(self) -> Shown:
        under = self.intervention
        words = f"{self.sentence} Under {under.name}, gate {under.gate}."
        few, n = self.answers[:SHOWN], len(self)
        table = render_part("compared_answers.html.j2", answers=few, n=n)
        more = [f"({len(few)} of {n}: .to_dataframe())"] if n > len(few) else []
        return Shown(words, fragment=table, text="\n".join([*map(str, few), *more]))

    def __repr__(self) -> str:
        shown = self._shown()
        return f"{shown.words}\n{shown.text}" if shown.text else shown.words


def counts_sentence(answers: Sequence[ComparedAnswer]) -> str:
    """How many questions were constrained, and how many answers changed."""
    fired = sum(answer.fired for answer in answers)
    changed = sum(answer.changed for answer in answers)
    noun = "question" if len(answers) == 1 else "questions"
    return f"{len(answers)} {noun}: {fired} constrained, {changed} answered otherwise."


def marked_text(pieces: Sequence[Piece]) -> str:
    """A text without colours, with its pieces in `MARKS`."""
    marked = ((*MARKS.get(piece.role, ("", "")), piece.text) for piece in pieces)
    return "".join(f"{before}{text}{after}" for before, after, text in marked)
