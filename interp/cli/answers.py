"""Answers on the screen: each question with the words that were constrained, before and after."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from interp.evaluation.answer_pair import AnswerPair

SHOWN_CHARACTERS = 160


def print_answers(pairs: Iterable[AnswerPair], console: Console, *, count: int) -> None:
    """The first ``count`` questions of each kind, the answer before and, if it changed, after."""
    by_kind: dict[str, list[AnswerPair]] = {}
    for pair in pairs:
        by_kind.setdefault(pair.kind, []).append(pair)
    for kind, of_kind in by_kind.items():
        console.print(f"\n{kind.replace('_', ' ')}s", style="bold")
        for pair in of_kind[:count]:
            acted_on = (pair.object_span,) if pair.acted_on is None else pair.acted_on
            question = Text(pair.question)
            for start, end in acted_on:
                question.stylize("reverse", start, end)
            console.print(question)
            console.print(f"  before  {_short(pair.baseline)}", markup=False, highlight=False)
            changed = pair.constrained != pair.baseline
            after = _short(pair.constrained) if changed else "(the same)"
            console.print(f"  after   {after}", markup=False, highlight=False)


def _short(text: str) -> str:
    """One line of at most ``SHOWN_CHARACTERS``."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}…"
