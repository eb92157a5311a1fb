"""Answers on the screen: each question with the words that were constrained, before and after.

On a terminal, words are marked by colours; in a pipe or a file, by the marks of
`interp.asking.compared`, and every answer is one line.
"""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from interp.asking.compared import marked_text
from interp.evaluation.answer_pair import AnswerPair
from interp.report.answers import Piece, Role, mark_changes, mark_object

SHOWN_CHARACTERS = 160
STYLES: dict[Role, str] = {"object": "reverse", "removed": "red", "added": "bold green"}


def print_answers(pairs: Iterable[AnswerPair], console: Console, *, count: int) -> None:
    """The first ``count`` questions of each kind, the answer before and, if it changed, after."""
    by_kind: dict[str, list[AnswerPair]] = {}
    for pair in pairs:
        by_kind.setdefault(pair.kind, []).append(pair)
    for kind, of_kind in by_kind.items():
        console.print(f"\n{kind.replace('_', ' ')}s", style="bold")
        for pair in of_kind[:count]:
            acted_on = (pair.object_span,) if pair.acted_on is None else pair.acted_on
            question = (Piece(pair.question),)
            if acted_on:
                question = mark_object(pair.question, acted_on[0])
            before, after = mark_changes(_short(pair.baseline), _short(pair.constrained))
            same = pair.constrained == pair.baseline
            answers = {"before": before, "after": (Piece("(the same)"),) if same else after}
            print_answer(console, question=question, answers=answers)


_EMPTY = (Piece("(empty: the model ended at once)"),)


def print_answer(
    console: Console,
    *,
    question: Sequence[Piece],
    answers: Mapping[str, Sequence[Piece]],
    note: str = "",
) -> None:
    """A question, a note and the answers by name, all in pieces."""
    width = max(map(len, answers))
    if not console.is_terminal:
        lines = [
            f"{name:{width}}  {' '.join(marked_text(a or _EMPTY).split())}"
            for name, a in answers.items()
        ]
        for line in (marked_text(question), *(f"  {line}" for line in (note, *lines) if line)):
            console.out(line, highlight=False)
        return
    console.print(_styled(question), style="bold")
    if note:
        console.print(f"  {note}", style="dim", markup=False, highlight=False)
    table = Table.grid(padding=(0, 2))
    for name, answer in answers.items():
        table.add_row("", Text(name, style="dim"), _styled(answer or _EMPTY))
    console.print(table)


def _styled(pieces: Sequence[Piece]) -> Text:
    return Text.assemble(*((piece.text, STYLES.get(piece.role, "")) for piece in pieces))


def _short(text: str) -> str:
    """One line of at most ``SHOWN_CHARACTERS``."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}…"
