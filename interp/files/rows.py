"""Rows of tables that people keep as CSV or JSON, and which column is which part.

A row is a mapping from column to value, with the number of its line (or of its entry, in a JSON
list). The cells of a CSV are texts; the values of JSON are whatever they are.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.errors import UserError, errors_in
from interp.files.text import csv_rows, parse_json, read_text

Row = Mapping[str, Any]


def json_rows(path: Path, *, such_as: str = '{"prompt": …}') -> Iterator[tuple[int, Row]]:
    """One JSON object a line, or one list of objects as the whole file.

    Args:
        such_as: the object that a message about another value gives as an example.

    Raises UserError with the line or entry, but without the file's name.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows: Sequence[Any] = parse_json(text)
        for number, row in enumerate(rows, start=1):
            yield number, _object(row, f"entry {number}", such_as)
        return
    # Not splitlines(): a line separator may stand inside a JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        with errors_in(f"line {number}"):
            row = parse_json(line)
        yield number, _object(row, f"line {number}", such_as)


def _object(row: Any, where: str, such_as: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where}: must hold a JSON object such as {such_as}")
    return row


def table_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV below its header, by column.

    Raises UserError with the line, but without the file's name.
    """
    header: list[str] = []
    for line, cells in csv_rows(read_text(path)):
        if header:
            yield line, dict(zip(header, cells, strict=True))
            continue
        header = [cell.strip() for cell in cells]
        with errors_in(f"line {line}"):
            check_header(header)


def check_header(names: Sequence[str]) -> None:
    """Raise UserError if two columns have one name: the one would hide the other."""
    if repeated := [name for name in names if name and list(names).count(name) > 1]:
        raise UserError(f"two columns are named {repeated[0]!r}")


def column_pairs(text: str, *, known: Collection[str], example: str) -> tuple[tuple[str, str], ...]:
    """The ``part=column`` pairs of a text, parted by commas.

    Args:
        known: the parts that there are.
        example: a right text, for the message.

    Raises:
        UserError: something else than such pairs, or a part that is not known.
    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals and part.strip() and column.strip() for part, equals, column in pairs):
        raise UserError(f"columns: {text!r} must be pairs such as {example}")
    found = tuple((part.strip(), column.strip()) for part, _, column in pairs)
    check_parts((part for part, _ in found), known)
    return found


def check_parts(parts: Iterable[str], known: Collection[str]) -> None:
    """Raise UserError for a part of a mapping of columns that is not known."""
    if unknown := [part for part in parts if part not in known]:
        raise UserError(f"columns: unknown part {unknown[0]!r}; known: {', '.join(known)}")


def value_at_path(row: Row, column: str) -> Any:
    """The value of a column, or of a dotted path such as ``rewrite.target_new.str``.

    A column of just that name comes first. A number in the path is a place in a list, from 0.

    Raises:
        UserError: the row has no such column.
    """
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            found = ", ".join(map(str, row)) or "none"
            raise UserError(f"no column {column!r}; found {found}")
    return value
