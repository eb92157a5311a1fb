"""Examples from the rows of public data sets; their columns tell the format.

Known are our own format (`prompt`, `answer` and what else `Example` has), the instruction format of
LLM-Adapters (arXiv 2304.01933: `instruction`, `input`, `output`, `answer`), GSM8K (`question`,
`answer` with ``#### 72`` at its end), both with what else of an `Example` they have, and the
arithmetic sets of the SVAMP repository (`Question` with placeholders, `Numbers`, `Equation`,
`Answer`). Anything else is read through a mapping of columns that the user gives.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, get_args

from interp.arguments import check_choice
from interp.errors import UserError
from interp.files.list_cells import list_in
from interp.files.rows import Row, check_parts, column_pairs
from interp.moelora.data.examples import AnswerKind, Example
from interp.moelora.data.numbers import as_text, plain_number

_LISTS = ("options", "also_true")
_BESIDE = ("task", "subject", "false_object", *_LISTS)
"""Parts of an `Example` that a row of another format may have beside its own columns."""
_FIELDS = ("task", "prompt", "answer", "response", "subject", "kind", "false_object", *_LISTS)
LONGEST_EQUATION = 200
_PLACEHOLDER = re.compile(r"\bnumber(\d{1,6})\b")


@dataclass(frozen=True)
class ColumnMapping:
    """Which column of a table holds which part of an `Example`; prompt and answer are needed.

    Made from text such as ``prompt=Question,answer=Answer`` by `parse`.
    """

    columns: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        fields = [field for field, _ in self.columns]
        check_parts(fields, _FIELDS)
        if missing := [field for field in ("prompt", "answer") if field not in fields]:
            raise UserError(f"columns: say which column is the {missing[0]}: {missing[0]}=NAME")

    @classmethod
    def parse(cls, text: str) -> "ColumnMapping":
        """Read ``part=column`` pairs, parted by commas."""
        example = "prompt=Question,answer=Answer"
        return cls(column_pairs(text, known=_FIELDS, example=example))

    def __call__(self, row: Row, task: str) -> Example:
        """The example of a row."""
        cells = {field: (column, _value(row, column)) for field, column in self.columns}
        return _from_cells(cells, task)


def ours(row: Row, task: str) -> Example:
    """A row of our own format. Columns that an example does not have are ignored."""
    return _from_cells({field: (field, row.get(field)) for field in _FIELDS}, task)


def _from_cells(cells: Mapping[str, tuple[str, Any]], task: str) -> Example:
    """The example whose parts have these (column, value); an empty cell is no part."""
    parts: dict[str, Any] = {"task": task}
    for field, (column, value) in cells.items():
        if not _is_missing(value):
            read = _texts if field in _LISTS else text_of
            parts[field] = read(column, value)
    if "kind" in parts:
        check_choice("kind", parts["kind"], get_args(AnswerKind))
    return Example(**{"prompt": "", "answer": "", **parts})


def _with_parts(row: Row, task: str, **parts: str) -> Example:
    """The example of a row of another format, with the parts of `_BESIDE` that it has."""
    cells = {field: (field, row.get(field)) for field in _BESIDE}
    return _from_cells(cells | {field: (field, text) for field, text in parts.items()}, task)


def instruction(row: Row, task: str) -> Example:
    """LLM-Adapters and Alpaca: an instruction, perhaps an input to it, and the whole output."""
    row = {"input": "", "answer": "", **row}
    parts = (_cell(row, "instruction"), _cell(row, "input"))
    output = _cell(row, "output")
    answer = _cell(row, "answer").strip() or output
    return _with_parts(
        row,
        task,
        prompt="\n".join(part.strip() for part in parts if part.strip()),
        answer=plain_number(answer),
        response=output.strip(),
    )


def worked(row: Row, task: str) -> Example:
    """GSM8K: worked steps, then the answer behind ``####``; calculator marks are taken out."""
    steps, marked, answer = _cell(row, "answer").rpartition("####")
    answer = answer.strip()
    if not marked:
        return _with_parts(row, task, prompt=_cell(row, "question"), answer=answer)
    steps = re.sub(r"<<[^<>]*>>", "", steps).strip()
    response = f"{steps}\nThe answer is {answer}.".strip()
    question = _cell(row, "question")
    return _with_parts(row, task, prompt=question, answer=answer, response=response)


def equation(row: Row, task: str) -> Example:
    """SVAMP, MAWPS, ASDiv-A: numbers stand apart from the text, the equation in prefix notation.

    The response works the equation out: ``(41 + 44) - 3 = 82``. The text with its placeholders is
    the subject, so that one problem with other numbers never stands on the other side of a split.
    """
    text = _cell(row, "Question")
    numbers = [plain_number(word) for word in _cell(row, "Numbers").split()]

    def put_in(words: str) -> str:
        return _PLACEHOLDER.sub(lambda match: _number_at(numbers, int(match[1])), words)

    prompt = re.sub(r" +([.,?!;:])", r"\1", put_in(text)).strip()
    answer = plain_number(_cell(row, "Answer"))
    infix = _infix(put_in(_cell(row, "Equation")).split())
    return Example(
        task=task,
        prompt=prompt,
        answer=answer,
        response=f"{infix} = {answer}. The answer is {answer}.",
        subject=text,
    )


FORMATS: tuple[tuple[tuple[str, ...], Callable[[Row, str], Example]], ...] = (
    (("prompt", "answer"), ours),
    (("instruction", "output"), instruction),
    (("Question", "Numbers", "Equation", "Answer"), equation),
    (("question", "answer"), worked),
)
"""The columns that each format is known by, and its reader, in order of precedence."""


def detect(columns: Iterable[str]) -> Callable[[Row, str], Example]:
    """The reader for a table of these columns. Raises `UserError` where no format fits."""
    present = list(columns)
    for needed, reader in FORMATS:
        if set(needed) <= set(present):
            return reader
    known = "; ".join(" + ".join(needed) for needed, _ in FORMATS)
    raise UserError(
        f"no known format has the columns {', '.join(present) or '(none)'}; known: {known}; "
        "name the columns yourself, such as columns=prompt=Question,answer=Answer"
    )


def _value(row: Row, column: str) -> Any:
    if column not in row:
        raise UserError(f"no column {column!r}; found {', '.join(map(str, row)) or 'none'}")
    return row[column]


def _cell(row: Row, column: str) -> str:
    value = _value(row, column)
    return "" if _is_missing(value) else text_of(column, value)


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty. Zero and false are something; NaN is how tables write nothing."""
    if value is None or isinstance(value, str | tuple):
        return not value
    return isinstance(value, float | Decimal) and math.isnan(value)


def text_of(column: str, value: Any) -> str:
    """A text, number or truth value as text. Raises `UserError` that names the column for others.

    A number has no exponent, a whole one no point; a truth value is ``true`` or ``false``.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{Decimal(value):f}"  # str() has a limit of digits
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise UserError(f"{column} must be text or a number, got {value}")
        return as_text(value)
    raise UserError(f"{column} must be text or a number, got {type(value).__name__}")


def _texts(column: str, value: Any) -> tuple[str, ...]:
    """A list of texts, or a CSV cell that holds one: written as a list, or parted by semicolons."""
    if isinstance(value, str):
        entries = list_in(column, value)
        if entries is None:
            return tuple(part.strip() for part in value.split(";") if part.strip())
        value = entries
    if not isinstance(value, list | tuple):
        raise UserError(f"{column} must be a list, got {type(value).__name__}")
    if any(_is_missing(part) for part in value):
        raise UserError(f"{column} holds an empty entry: leave it out")
    return tuple(text_of(column, part) for part in value)


def _number_at(numbers: list[str], index: int) -> str:
    if index >= len(numbers):
        raise UserError(f"the question uses number{index}, but Numbers holds {len(numbers)}")
    return numbers[index]


def _infix(words: list[str]) -> str:
    """An equation in prefix notation as people write it."""
    rest = list(words)
    if len(rest) > LONGEST_EQUATION:
        raise UserError(f"Equation has {len(rest)} words; at most {LONGEST_EQUATION} are read")

    def term(outer: bool) -> str:
        if not rest:
            raise UserError(f"Equation {' '.join(words)!r} ends too early")
        word = rest.pop(0)
        if word not in ("+", "-", "*", "/"):
            return plain_number(word)
        left, right = term(False), term(False)
        return f"{left} {word} {right}" if outer else f"({left} {word} {right})"

    text = term(True)
    if rest:
        raise UserError(f"Equation {' '.join(words)!r} has words left over: {' '.join(rest)}")
    return text
