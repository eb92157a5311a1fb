"""CSV tables from strangers: every cell is read as text first, then as its column's type."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.files.text import one_line, read_text
from interp.lazy import pd

_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def read_table(
    path: Path,
    *,
    texts: Sequence[str] = (),
    numbers: Sequence[str] = (),
    counts: Sequence[str] = (),
    flags: Sequence[str] = (),
    others: bool = False,
    advice: str = "make the run again",
) -> "pd.DataFrame":
    """The columns of a CSV file, each cell checked; an empty number is NaN.

    Args:
        texts, numbers, counts, flags: required columns of text, of finite or missing numbers, of
            whole numbers from zero on, of true and false.
        others: keep further columns too, as numbers where every cell is one, else as text.

    Raises:
        UserError: no such file, a missing column, a cell that does not fit; with its line.
    """
    kinds: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(texts, str),
        **dict.fromkeys(numbers, _number),
        **dict.fromkeys(counts, _count),
        **dict.fromkeys(flags, _flag),
    }
    header, rows, lines = _cells(path)
    missing = [name for name in kinds if name not in header]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}; {advice}")
    columns: dict[str, list[Any]] = {}
    for name in kinds if not others else header:
        at = header.index(name)
        if name not in kinds:
            columns[name] = _guessed([row[at] for row in rows])
            continue
        columns[name] = []
        for line, row in zip(lines, rows, strict=True):
            try:
                columns[name].append(kinds[name](row[at]))
            except ValueError:
                wanted = _WANTED[kinds[name]]
                raise UserError(
                    f"{path}, line {line}: {name} is {row[at][:40]!r}, not {wanted}; {advice}"
                ) from None
    return pd.DataFrame(columns)


def _cells(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows as text, and the line that each begins in."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        line = 1
        for row in reader:
            if not header:
                header = row
            elif row:
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {line}: cannot be read as a CSV table ({len(row)} cells, "
                        f"but the header names {len(header)} columns)"
                    )
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as a CSV table ({one_line(error)})") from error
    if not header:
        raise UserError(f"{path}: cannot be read as a CSV table (it is empty)")
    if len(set(header)) < len(header):
        raise UserError(f"{path}: cannot be read as a CSV table (two columns have one name)")
    return header, rows, lines


def _number(text: str) -> float:
    value = float(text) if text else math.nan
    if math.isinf(value):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = _number(text)
    if not 0 <= value < 2**53 or value != int(value):
        raise ValueError(text)
    return int(value)


def _flag(text: str) -> bool:
    try:
        return _FLAGS[text.strip().lower()]
    except KeyError:
        raise ValueError(text) from None


def _guessed(cells: list[str]) -> list[Any]:
    try:
        return [_number(cell) for cell in cells]
    except ValueError:
        return list(cells)


_WANTED: dict[Callable[[str], Any], str] = {
    _number: "a number",
    _count: "a whole number",
    _flag: "True or False",
}
