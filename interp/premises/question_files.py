"""``load_questions``: read other people's files of questions.

* ``.csv``: a header, and a row a question. The columns are ``question`` and, where they are known,
  ``answer``, ``label``, ``subject``, ``relation``, ``object`` (the true one) and ``false_object``.
* ``.jsonl``, or ``.json`` with a list: objects with these keys. A question may be a list of
  questions, each of which has the object's other parts.
* ``.txt``: a question a line, and nothing else is known.

Where there are both ``answer`` and ``answers``, both count; of ``object`` and ``true_object`` the
first that is filled. Other columns are ignored, except that one whose name is a known one but for
case, spaces or a plural is refused: it would be missed without a word. ``columns`` says which
column or key is which part, such as ``question=prompt,label=is_fp``; a dotted path leads into
nested objects (``object=requested_rewrite.target_true.str``).

Several right answers are a list (`interp.files.list_cells`) or parted by semicolons. Names and
answers get single spaces (`interp.files.cells`). In a CSV, ``1912.0`` is what pandas makes of 1912
beside an empty cell, and is read as 1912, unless the column has numbers without a point.

A label says whether the question has a false premise; the accepted words are in `LABELS`. A
question without a label, of which both objects are given, has a false premise if it names the false
object and not the true one, and none if it names the true object only.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.arguments import of_kind
from interp.checked import checked
from interp.errors import UserError, errors_in
from interp.files.cells import clean_name, name_key, whole_number
from interp.files.list_cells import list_in
from interp.files.rows import (
    Row,
    check_parts,
    column_pairs,
    json_rows,
    table_rows,
    value_at_path,
)
from interp.files.text import read_text
from interp.premises.question_list import PremiseLabel, QuestionList, RawQuestion
from interp.premises.relation import names

PARTS: dict[str, tuple[str, ...]] = {
    "question": ("question", "questions"),
    "answer": ("answer", "answers"),
    "label": ("label",),
    "subject": ("subject",),
    "relation": ("relation",),
    "object": ("object", "true_object"),
    "false_object": ("false_object", "edited_object"),
}
"""The parts of a question, and the columns in which they are looked for."""
LABELS: dict[PremiseLabel, tuple[str, ...]] = {
    "false_premise": ("1", "true", "yes", "y", "false premise", "fp", "invalid"),
    "true_premise": ("0", "false", "no", "n", "true premise", "tp", "valid", "normal"),
}
"""What a label may be, in any case and with ``_`` or ``-`` for a space."""
SUFFIXES = (".csv", ".json", ".jsonl", ".txt")
_EXAMPLE = "question=prompt,answer=gold,label=is_fp"
_TYPED = re.compile(r"[+-]?\d+|\d{1,3}(,\d{3})+|\d+(\.\d+){2,}")
"""Numbers as pandas writes none where it writes 1912.0: 1912, 1,912 and 5.36.1."""
_PART_OF = {name: part for part, names_of_it in PARTS.items() for name in names_of_it}
_LABEL_OF: dict[str, PremiseLabel] = {
    word: label for label, words in LABELS.items() for word in words
}


@checked
def load_questions(
    path: str | Path, *, columns: str | Mapping[str, str] | None = None
) -> QuestionList:
    """The questions of a CSV, JSON, JSON lines or text file.

    Args:
        columns: the column of each part, as pairs ``part=column`` parted by commas, or as a
            mapping; parts that are not named keep their own columns.

    Raises:
        UserError: no such file, a file of another kind, without questions or without the columns,
            or a row that cannot be read; the message names the file and the line.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: not a file of questions; known endings: {', '.join(SUFFIXES)}")
    given = _mapping(columns)
    if suffix == ".txt":
        if given:
            raise UserError(f"{path}: a text file has no columns: leave columns out")
        found = list(_lines(path))
    else:
        found = list(_questions(path, given))
    return QuestionList(tuple(found), str(path))


def _mapping(columns: str | Mapping[str, str] | None) -> dict[str, str]:
    if columns is None:
        return {}
    if isinstance(columns, str):
        return dict(column_pairs(columns, known=PARTS, example=_EXAMPLE))
    check_parts(columns, PARTS)
    return {part: of_kind("a column's name", name, str) for part, name in columns.items()}


def _lines(path: Path) -> Iterator[RawQuestion]:
    """A question a line; empty lines are left out."""
    for line, text in enumerate(re.split("\r\n|\r|\n", read_text(path)), start=1):
        if text.strip():
            with errors_in(f"{path}: line {line}"):
                yield RawQuestion(text.strip(), line=line)


def _questions(path: Path, given: Mapping[str, str]) -> Iterator[RawQuestion]:
    """The questions of each row of a table."""
    with errors_in(path):
        if path.suffix.lower() == ".csv":
            rows = _without_points(list(table_rows(path)))
        else:
            rows = json_rows(path, such_as='{"question": …}')
        for line, row in rows:
            with errors_in(f"line {line}"):
                yield from _of_row(row, given, line)


def _without_points(rows: list[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """The rows, with ``1912`` for ``1912.0`` in each column whose numbers may all be pandas'.

    pandas writes every number of a column with a point. Where one has none, somebody else wrote
    the column, and a 3.0 in it may be a version.
    """
    typed = {
        name for _, row in rows for name, cell in row.items() if _TYPED.fullmatch(cell.strip())
    }
    for line, row in rows:
        mended = {name: whole_number(cell.strip()) for name, cell in row.items()}
        yield line, mended | {name: cell for name, cell in row.items() if name in typed}


def _of_row(row: Row, given: Mapping[str, str], line: int) -> Iterator[RawQuestion]:
    """A row's questions, which share its other parts."""
    _check_columns(row, given)
    cells = {part: _cells(row, part, given.get(part)) for part in PARTS}
    first = {part: next(iter(found), None) for part, found in cells.items()}
    texts = _texts("question", first["question"], lists_in_text=False)
    if not texts:
        raise UserError("the question is empty")
    subject, true_object, false_object = (
        _text(part, first[part]) for part in ("subject", "object", "false_object")
    )
    if true_object and false_object and name_key(true_object) == name_key(false_object):
        raise UserError(f"object and false_object are both {true_object!r}")
    answers = [answer for cell in cells["answer"] for answer in _texts("answer", cell)]
    label = _label(first["label"])
    for text in texts:
        yield RawQuestion(
            text=text,
            answers=tuple(dict.fromkeys(answers)),
            label=label or _label_by_names(text, subject, (true_object, false_object)),
            subject=subject,
            relation=_text("relation", first["relation"]),
            true_object=true_object,
            false_object=false_object,
            line=line,
        )


def _check_columns(row: Row, given: Mapping[str, str]) -> None:
    """Raise UserError for a column that is meant as a part and would not be read as it."""
    for name in row:
        if name in _PART_OF or name in given.values():
            continue
        word = clean_name(name).casefold().replace(" ", "_").replace("-", "_")
        for meant in (word, word.removesuffix("s"), f"{word}s"):
            part = _PART_OF.get(meant)
            if part is not None and part not in given:
                raise UserError(
                    f"the column {name!r} is to be named {meant!r}; or say which column is the "
                    f"{part}: columns {part}=NAME"
                )


def _cells(row: Row, part: str, column: str | None) -> list[Any]:
    """The values of a part, empty ones left out; none of a part that neither row nor user names."""
    if column is not None:
        found = [value_at_path(row, column)]
    else:
        found = [row[name] for name in PARTS[part] if name in row]
        if not found and part == "question":
            columns = ", ".join(map(str, row)) or "none"
            raise UserError(
                f"no column 'question'; found {columns}; name it: columns question=NAME"
            )
    return [value for value in found if not _is_empty(value)]


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not clean_name(value)
    return value is None or value == [] or (isinstance(value, float) and math.isnan(value))


def _text(part: str, value: Any) -> str | None:
    """A text or number as text; None for an empty cell."""
    if _is_empty(value):
        return None
    if isinstance(value, str):  # a question keeps its lines, names and answers have none
        return value.strip() if part == "question" else clean_name(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{part} must be text or a number, not {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables with a missing value write whole numbers
    return json.dumps(value)


def _texts(part: str, value: Any, *, lists_in_text: bool = True) -> tuple[str, ...]:
    """The texts of a list, or of a cell that holds one; empty entries are left out."""
    if isinstance(value, str) and lists_in_text:
        entries = list_in(part, value)
        value = value.split(";") if entries is None else entries
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(filter(None, (_text(part, each) for each in values))))


def _label(value: Any) -> PremiseLabel | None:
    """The label of a cell; None for an empty one."""
    if isinstance(value, bool):
        return "false_premise" if value else "true_premise"
    text = _text("label", value)
    if text is None:
        return None
    word = " ".join(whole_number(text).casefold().replace("_", " ").replace("-", " ").split())
    if word not in _LABEL_OF:
        known = "; ".join(f"{label}: {', '.join(words)}" for label, words in LABELS.items())
        raise UserError(f"unknown label {text[:60]!r}; known are {known}")
    return _LABEL_OF[word]


def _label_by_names(
    text: str, subject: str | None, objects: tuple[str | None, str | None]
) -> PremiseLabel | None:
    """The label of the one object, true or false, that a question names.

    None where it names both or neither. What is a part of the subject's own name is no object.
    """
    true_object, false_object = objects
    if true_object is None or false_object is None:
        return None
    apart = (subject or "",)
    named = [names(text, name, apart_from=apart) for name in (true_object, false_object)]
    if named[0] == named[1]:
        return None
    return "true_premise" if named[0] else "false_premise"
