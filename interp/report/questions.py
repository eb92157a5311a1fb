"""The section of a report on questions of one's own: rates, and a few answers before and after.

It is there if the run holds ``questions.json``; the answers stand in ``questions.jsonl``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.figures.questions import RATES, group_name, question_sentences, questions_table
from interp.figures.tables import setting_name
from interp.files.shape import Maybe, check_shape
from interp.files.text import read_json_lines, read_json_object
from interp.lazy import pd
from interp.premises.relation import names
from interp.report.answers import Piece, mark_names, mark_object

SHOWN = 10
"""Answers on the page."""
_RATE = Maybe([float, float, float])
_RUN = dict.fromkeys(RATES, _RATE)
_NULL = {"n_sets": int, **dict.fromkeys(RATES, Maybe({"mean": float, "p95": float}))}
_GROUP = {
    **{"n": int, "n_subjects": int, "fired": _RATE, "unchanged": _RATE},
    **dict.fromkeys(("baseline", "constrained", "change"), _RUN),
    "random_null": Maybe(_NULL),
}
_CONTENT = {
    **dict.fromkeys(("source", "judge"), str),
    **dict.fromkeys(("site", "mode", "gate"), Maybe(str)),
    **{"n": int, "groups": {str: _GROUP}},
}
_VERDICT = {"rebuts": bool, "names_answer": Maybe(bool), "names_false_object": Maybe(bool)}
_ROW = {
    **dict.fromkeys(("question", "baseline", "constrained"), str),
    **dict.fromkeys(("label", "false_object"), Maybe(str)),
    **{"answers": [str], "fired": bool, "words": Maybe([int, int])},
    **dict.fromkeys(("baseline_verdict", "constrained_verdict"), _VERDICT),
}
_AGAIN = "run `interp evaluate --questions` on this run again"


@dataclass(frozen=True)
class ShownAnswer:
    """An answer in pieces, and its verdict in words."""

    heading: str
    pieces: tuple[Piece, ...]
    verdict: str


@dataclass(frozen=True)
class QuestionCard:
    """One question, with the words found as a piece of their own, and its answers."""

    question: tuple[Piece, ...]
    group: str
    note: str
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True)
class QuestionsSection:
    """What the page shows of questions of one's own."""

    source: str
    setting: str
    sentences: tuple[str, ...]
    table: "pd.DataFrame"
    n: int
    cards: tuple[QuestionCard, ...]


def questions_section(run: Path) -> QuestionsSection | None:
    """The section of a run, or None if there are no questions in it.

    Of the answers, the first `SHOWN` are shown; those that the constraint changed come first.

    Raises UserError for a malformed file.
    """
    path = run / "questions.json"
    if not path.is_file():
        return None
    content = check_shape(read_json_object(path), _CONTENT, str(path), advice=_AGAIN)
    rows = sorted(
        read_answers(run / "questions.jsonl"), key=lambda row: row["baseline"] == row["constrained"]
    )
    return QuestionsSection(
        source=Path(content["source"]).name,
        setting=setting_name(content),
        sentences=question_sentences(content),
        table=questions_table(content),
        n=len(rows),
        cards=tuple(map(_card, rows[:SHOWN])),
    )


def read_answers(path: Path) -> Iterator[Mapping[str, Any]]:
    """The checked lines of ``questions.jsonl``. Raises UserError with the line."""
    for number, row in read_json_lines(path, surrogates=True):
        where = f"{path}, line {number}"
        check_shape(row, _ROW, where, advice=_AGAIN)
        if row["words"] is not None:
            start, end = row["words"]
            if not 0 <= start < end <= len(row["question"]):
                raise UserError(f"{where}: words lie outside the question; {_AGAIN}")
        yield row


def _card(row: Mapping[str, Any]) -> QuestionCard:
    words, label = row["words"], row["label"] or "unlabelled"
    question = (Piece(row["question"]),)
    return QuestionCard(
        question=question if words is None else mark_object(row["question"], tuple(words)),
        group=group_name(label),
        note="; ".join(row["answers"]),
        answers=tuple(
            ShownAnswer(heading, _pieces(row, row[run]), _verdict(row[f"{run}_verdict"]))
            for run, heading in (("baseline", "No constraint"), ("constrained", "Constrained"))
            if row["fired"] or run == "baseline"
        ),
    )


def _pieces(row: Mapping[str, Any], answer: str) -> tuple[Piece, ...]:
    """An answer with the right answer that it names, and the false object, as pieces."""
    right = next((name for name in row["answers"] if names(answer, name)), "")
    return mark_names(answer, true_object=right, false_object=row["false_object"] or "")


def _verdict(verdict: Mapping[str, Any]) -> str:
    """Such as ``rebuts, names a right answer``."""
    found = [words for key, words in RATES.items() if verdict.get(key)]
    return ", ".join(found) or "no rebuttal"
