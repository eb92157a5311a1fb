"""``load_questions``: read other people's files of questions.

* ``.csv``: a header, and a row a question. The columns are ``question`` and, where they are known,
  ``answer``, ``label``, ``subject``, ``relation``, ``object`` (the true one) and ``false_object``.
* ``.jsonl``, or ``.json`` with a list: objects with these keys. A question may be a list of
  questions, each of which has the object's other parts.
* ``.txt``: a question a line, and nothing else is known.

Other columns are ignored. ``columns`` says which column or key is which part, such as
``question=prompt,label=is_fp``; a dotted path leads into nested objects
(``object=requested_rewrite.target_true.str``).

Several right answers are a JSON list, a list as Python writes it, or parted by semicolons. A label
says whether the question has a false premise; the accepted words are in `LABELS`. A question
without a label, of which both objects are given, has a false premise if it names the false object
and not the true one, and none if it names the true object only.
"""

import ast
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.checked import checked
from interp.errors import UserError, errors_in
from interp.files.rows import (
    Row,
    check_parts,
    column_pairs,
    json_rows,
    table_rows,
    value_at_path,
)
from interp.files.text import parse_json, read_text
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
LONGEST_LIST = 20_000
"""Characters of a cell that is read as a Python list."""
_EXAMPLE = "question=prompt,answer=gold,label=is_fp"
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
    return dict(columns)


def _lines(path: Path) -> Iterator[RawQuestion]:
    """A question a line; empty lines are left out."""
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            with errors_in(f"{path}: line {line}"):
                yield RawQuestion(text.strip(), line=line)


def _questions(path: Path, given: Mapping[str, str]) -> Iterator[RawQuestion]:
    """The questions of each row of a table."""
    with errors_in(path):
        if path.suffix.lower() == ".csv":
            rows = table_rows(path)
        else:
            rows = json_rows(path, such_as='{"question": …}')
        for line, row in rows:
            with errors_in(f"line {line}"):
                yield from _of_row(row, given, line)


def _of_row(row: Row, given: Mapping[str, str], line: int) -> Iterator[RawQuestion]:
    """A row's questions, which share its other parts."""
    cells = {part: _cell(row, part, given.get(part)) for part in PARTS}
    texts = _texts("question", cells["question"], lists_in_text=False)
    if not texts:
        raise UserError("the question is empty")
    true_object, false_object = (_text(part, cells[part]) for part in ("object", "false_object"))
    if true_object is not None and true_object == false_object:
        raise UserError(f"object and false_object are both {true_object!r}")
    label = _label(cells["label"])
    for text in texts:
        yield RawQuestion(
            text=text,
            answers=_texts("answer", cells["answer"]),
            label=label or _label_by_names(text, true_object, false_object),
            subject=_text("subject", cells["subject"]),
            relation=_text("relation", cells["relation"]),
            true_object=true_object,
            false_object=false_object,
            line=line,
        )


def _cell(row: Row, part: str, column: str | None) -> Any:
    """The value of a part; None for a part that the row does not have and nobody named."""
    if column is not None:
        return value_at_path(row, column)
    for name in PARTS[part]:
        if name in row:
            return row[name]
    if part == "question":
        found = ", ".join(map(str, row)) or "none"
        raise UserError(f"no column 'question'; found {found}; name it: columns question=NAME")
    return None


def _text(part: str, value: Any) -> str | None:
    """A text or number as text; None for an empty cell."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{part} must be text or a number, not {type(value).__name__}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables with a missing value write whole numbers
    return json.dumps(value)


def _texts(part: str, value: Any, *, lists_in_text: bool = True) -> tuple[str, ...]:
    """The texts of a list, or of a cell that holds one; empty entries are left out."""
    if isinstance(value, str) and lists_in_text:
        value = _list_in(part, value.strip())
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(filter(None, (_text(part, each) for each in values))))


def _list_in(part: str, cell: str) -> list[Any]:
    """The list that a cell holds: of JSON, of Python, or parted by semicolons."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell.split(";")
    try:
        return parse_json(cell)
    except UserError:
        pass
    wrong = f"{part} begins and ends like a list, but is no list that JSON or Python reads"
    if len(cell) > LONGEST_LIST:
        raise UserError(f"{wrong} in {LONGEST_LIST} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash that escapes nothing
            found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise UserError(wrong) from error
    if not isinstance(found, list):  # such as [1][0], which literal_eval refuses anyway
        raise UserError(wrong)
    return found


def _label(value: Any) -> PremiseLabel | None:
    """The label of a cell; None for an empty one."""
    if isinstance(value, bool):
        return "false_premise" if value else "true_premise"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = _text("label", value)
    if text is None:
        return None
    word = " ".join(text.casefold().replace("_", " ").replace("-", " ").split())
    if word not in _LABEL_OF:
        known = "; ".join(f"{label}: {', '.join(words)}" for label, words in LABELS.items())
        raise UserError(f"unknown label {text[:60]!r}; known are {known}")
    return _LABEL_OF[word]


def _label_by_names(
    text: str, true_object: str | None, false_object: str | None
) -> PremiseLabel | None:
    """The label of the one object that a question names; None where it names both or neither."""
    if true_object is None or false_object is None:
        return None
    named = names(text, true_object), names(text, false_object)
    if named[0] == named[1]:
        return None
    return "true_premise" if named[0] else "false_premise"
