"""Text, JSON, YAML and CSV from strangers.

These readers accept less JSON than Python's parser: no key twice, limited nesting, whole numbers of
64 bits, no infinite numbers, and only text that can be written as UTF-8. NaN is read, because it
marks what was not measured. YAML is read with the safe loader, without aliases (a few of them can
expand to billions of values) and with no key twice. The values can be used without regard to
overflow, recursion or half a surrogate pair.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from interp.errors import UserError, errors_in

LARGEST_TEXT = 256 * 2**20
"""Bytes of a text file; the largest of a run, answers and premises, have a few MB."""
LARGEST_YAML = 2**20
"""Bytes of a YAML file: the parser is slow, and these files are written by hand."""
DEEPEST = 64
_LARGEST_INTEGER = 2**63
_LONGEST_MESSAGE = 400


class _Refused(Exception):
    """A value that parses but is not accepted; the message says why."""


def read_text(path: Path, *, largest: int = LARGEST_TEXT) -> str:
    """A file as text, without a byte-order mark.

    Raises:
        UserError: it cannot be read, is larger than ``largest`` bytes, or is not UTF-8; the message
            names the file, and the line where it is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            # A little more than may be there: a size from stat() says nothing of a pipe.
            raw = file.read(largest + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from error
    if len(raw) > largest:
        raise UserError(f"{path}: is larger than {largest} bytes, which no such file is")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: not UTF-8 text ({error.reason}): save the file as UTF-8"
        ) from error


def one_line(error: BaseException | str, *, longest: int = _LONGEST_MESSAGE) -> str:
    """The first line of an error's message, shortened if it is long; its type if it is empty.

    The second line is added if the first ends in a colon. A KeyError's message is only a key, and
    that of an error of type is about the reader's code: neither says what is wrong with the file,
    so that they are replaced.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if first.endswith(":") and len(lines) > 1:
        first = f"{first} {lines[1]}"
    if isinstance(error, KeyError) and lines:
        first = f"it knows no {first}"
    elif isinstance(error, AttributeError | TypeError | IndexError | ZeroDivisionError):
        first = f"an entry is missing, or of a wrong kind ({type(error).__name__})"
    return first if len(first) <= longest else f"{first[:longest]}…"


def parse_json(text: str, *, surrogates: bool = False) -> Any:
    """A JSON value. Raises UserError for anything else, without a file.

    With `surrogates`, half of a surrogate pair in a text is accepted: a model may generate it.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant
        )
        _check_plain(value, surrogates=surrogates)
    except _Refused as error:
        raise UserError(f"not valid JSON here ({error})") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}: " if "\n" in text.strip() else ""
        raise UserError(f"{line}not valid JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise UserError(f"not valid JSON here (nested deeper than {DEEPEST})") from error
    except ValueError as error:  # a whole number of more digits than Python converts
        raise UserError("not valid JSON here (a number beyond 64 bits)") from error
    return value


def read_json_object(path: Path, *, advice: str = "make the run again") -> dict[str, Any]:
    """A JSON file whose outermost value is an object. Raises UserError, which ends in `advice`."""
    try:
        content = parse_json(read_text(path))
    except UserError as error:
        raise UserError(f"{_without(error, path)}; {advice}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object; {advice}")
    return content


def read_json_lines(path: Path, *, surrogates: bool = False) -> Iterator[tuple[int, Any]]:
    """The number and the value of each line that is not empty; see `parse_json`.

    Raises UserError with the file and the line.
    """
    # Not splitlines(): a line separator may stand inside a JSON text.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip(" \t\r"):
            continue
        with errors_in(f"{path}, line {number}"):
            value = parse_json(line, surrogates=surrogates)
        yield number, value


def csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The first line's number and the cells of each row of a CSV; blank rows are left out.

    Raises UserError with the line, but without a file, for text that is not CSV, and for a row that
    has not as many cells as the first one, the header; and for a header whose names are parted by
    semicolons or tabs.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    n_columns = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"line {line}: not valid CSV ({error})") from error
        if not any(cell.strip() for cell in cells):
            continue
        if not n_columns:
            n_columns = len(cells)
            _check_delimiter(line, cells)
        if len(cells) != n_columns:
            raise UserError(
                f"line {line}: {len(cells)} cells, but the header names {n_columns} columns; "
                "put cells that hold a comma in double quotes"
            )
        yield line, cells


def _check_delimiter(line: int, header: list[str]) -> None:
    """Raise UserError for the one cell of a header that holds several names."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and len([part for part in header[0].split(mark) if part.strip()]) > 1:
            raise UserError(
                f"line {line}: the header's cells are parted by {name}: save the file as CSV "
                "with commas"
            )


class PlainLoader(yaml.SafeLoader):
    """The safe loader, without aliases and without keys given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; an alias is refused."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases are not read", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; a key given twice is refused."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise UserError(f"line {key.start_mark.line + 1}: {key.value[:40]!r} twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, *, loader: type[PlainLoader] = PlainLoader) -> Any:
    """A YAML value. Raises UserError with the line, without a file."""
    try:
        value = yaml.load(text, loader)
        _check_plain(value)
    except _Refused as error:
        raise UserError(f"not valid YAML here ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{line}not valid YAML: {one_line(str(reason))}") from error
    except (
        *(ValueError, TypeError, LookupError),
        *(AttributeError, OverflowError, RecursionError),
    ) as error:  # what the constructors raise on a tag or a date that does not fit its text
        raise UserError(f"not valid YAML: {one_line(error)}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"key {key[:40]!r} twice")
            seen.add(key)
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Refused("a number beyond what a float holds")
    return value


def _constant(name: str) -> float:
    if name != "NaN":
        raise _Refused(f"{name} is not a number")
    return math.nan


def _check_plain(value: Any, *, surrogates: bool = False) -> None:
    """Depth, whole numbers and texts, walked without recursion."""
    left: list[tuple[Any, int]] = [(value, 0)]
    while left:
        item, depth = left.pop()
        if isinstance(item, str):
            if not surrogates:
                _check_text(item)
        elif isinstance(item, int):
            if abs(item) >= _LARGEST_INTEGER:
                raise _Refused("a number beyond 64 bits")
        elif isinstance(item, dict | list | tuple | set):
            if depth >= DEEPEST:
                raise _Refused(f"nested deeper than {DEEPEST}")
            parts = [*item, *item.values()] if isinstance(item, dict) else item
            left.extend((part, depth + 1) for part in parts)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Refused("half of a surrogate pair") from error


def _without(error: UserError, path: Path) -> str:
    """The message with the file's name before it, once."""
    message = str(error)
    return message if message.startswith(str(path)) else f"{path}: {message}"
