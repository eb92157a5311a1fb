"""Cells of a table that hold a list, as the tools that write tables put one into text.

``["a", "b"]`` is JSON. ``['a', 'b']``, ``('a', 'b')`` and ``{'a', 'b'}`` are Python's list, tuple
and set; ``array(['a', 'b'], dtype=object)`` is how pandas writes a list from Hugging Face, and
``['a' 'b']`` how numpy prints one: Python itself would read that as the one text ``ab``.
"""

import ast
import re
import warnings
from typing import Any

from interp.errors import UserError
from interp.files.text import parse_json

LONGEST_LIST = 20_000
"""Characters of a cell that is read as Python's or numpy's list."""
_QUOTED = r"u?(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
_BETWEEN = r"\s,:()\[\]{}"
_TOKEN = re.compile(
    r"(?P<array>\b(?:np\.|numpy\.)?array\(|,\s*dtype=[^,)]*\))"
    rf"|(?P<item>{_QUOTED}|(?P<unclosed>['\"])|[^{_BETWEEN}'\"]+)(?P<next>\s*(?=[^{_BETWEEN}]))?",
    re.DOTALL,
)
_LIST = re.compile(r"\[.*\]|(?:np\.|numpy\.)?array\(\s*\[.*\)", re.DOTALL)
_TUPLE_OR_SET = re.compile(
    r"\(\s*['\"].*['\"]\s*,?\s*\)|\{\s*['\"].*['\"]\s*\}|\(\)|set\(\)"
    # Numbers with Python's spaces: (1,000) is how accountants write minus a thousand.
    r"|\(\s*-?[\d.]+,(?:\s+-?[\d.]+,?)*\s*\)|\{\s*-?[\d.]+(?:,\s+-?[\d.]+)*\s*\}",
    re.DOTALL,
)


def list_in(part: str, cell: str) -> list[Any] | None:
    """The entries of a cell that holds a list, in their order; None for a cell of plain text.

    Args:
        part: what the cell holds, for the message.

    Raises:
        UserError: the cell looks like a list, but is none that can be read.
    """
    cell = cell.strip()
    if not _LIST.fullmatch(cell) and not _TUPLE_OR_SET.fullmatch(cell):
        return None
    try:
        found = parse_json(cell)
    except UserError:
        found = _list_of_python(part, cell)
    if isinstance(found, str) and cell.startswith("("):
        return None  # a text in parentheses, such as ("Heroes")
    if not isinstance(found, list | tuple):
        raise UserError(_wrong(part))
    return list(found)


def python_value(text: str) -> Any:
    """What Python wrote as a text: lists, tuples, dictionaries, texts and numbers; numpy's lists.

    Raises ValueError for anything else, and for a list that numpy cut short.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash that escapes nothing
            return ast.literal_eval(_TOKEN.sub(_as_python, text.strip()))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError("not a value as Python writes it") from error


def _list_of_python(part: str, cell: str) -> Any:
    if len(cell) > LONGEST_LIST:
        raise UserError(f"{_wrong(part)} in {LONGEST_LIST} characters")
    if cell == "set()":
        return []
    if cell.startswith("{"):
        cell = f"[{cell[1:-1]}]"  # a set has no order, but its text has one
    try:
        return python_value(cell)
    except ValueError as error:
        raise UserError(f'{_wrong(part)}; write it as ["…", "…"]') from error


def _wrong(part: str) -> str:
    return f"{part} begins and ends like a list, but is no list that JSON or Python reads"


def _as_python(token: re.Match[str]) -> str:
    """A piece of numpy's text as Python writes it: a comma behind an entry that has none."""
    if token["array"]:
        return "(" if token["array"].endswith("(") else ")"
    if token["unclosed"] or token["item"] == "...":
        raise ValueError("a text without an end, or a list without its middle")
    if token["next"] == "":
        raise ValueError("two entries without a space between them")
    item = "None" if token["item"] == "nan" else token["item"]
    return f"{item}, " if token["next"] else item
