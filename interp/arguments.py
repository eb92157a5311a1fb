"""What somebody gave for an argument, as a method wants it, or refused by the argument's name.

Numbers and lists may come from numpy and torch as well: what is plainly meant is taken.
"""

import math
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from interp.errors import UserError

Kind = TypeVar("Kind")
_SHOWN = 60


def shown(given: Any) -> str:
    """A value in a message, cut short; of what is long or has no words of its own, the type."""
    text = repr(given)
    if len(text) > _SHOWN or text.startswith("<") or "\n" in text:
        return type(given).__name__
    return text


def whole_number(what: str, given: Any, *, least: int | None = None) -> int:
    """A count. Raises UserError unless it is a whole number and not below ``least``."""
    try:
        number = operator.index(given)
    except TypeError as error:
        raise UserError(f"{what} is a whole number, not {shown(given)}") from error
    if least is not None and number < least:
        raise UserError(f"{what} is at least {least}, not {number}")
    return number


def real_number(what: str, given: Any) -> float:
    """A number. Raises UserError unless it is one, and finite."""
    try:
        if isinstance(given, str | bytes):  # digits are not meant
            raise TypeError(given)
        number = float(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} is a number, not {shown(given)}") from error
    if not math.isfinite(number):
        raise UserError(f"{what} is a finite number, not {shown(given)}")
    return number


def listed(what: str, given: Any, entries: str = "entries") -> list[Any]:
    """The entries of a list, tuple, array, tensor or generator.

    Raises:
        UserError: no such thing; a text, whose letters are not meant; a mapping.
    """
    if hasattr(given, "tolist"):
        given = given.tolist()
    wrong = isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable)
    if wrong:
        raise UserError(f"{what} is a list of {entries}, not {shown(given)}")
    return list(given)


def pairs_of_numbers(
    what: str, given: Any, *, of: str = "(layer, number)"
) -> list[tuple[int, int]]:
    """Pairs of whole numbers, such as heads or spans. Raises UserError for anything else."""
    try:
        pairs = [
            (operator.index(layer), operator.index(number))
            for layer, number in listed(what, given, "pairs")
        ]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{what} are pairs {of}, such as [(0, 1), (2, 3)], not {shown(given)}"
        ) from error
    return pairs


def of_kind(what: str, given: Any, kind: type[Kind], advice: str = "") -> Kind:
    """The argument itself. Raises UserError unless it is of a class, and says where to get one."""
    if not isinstance(given, kind):
        name = kind.__name__
        tail = f": {advice}" if advice else ""
        raise UserError(f"{what} is a {name}, not {shown(given)}{tail}")
    return given


def one_of(what: str, given: Any, known: Iterable[str]) -> str:
    """A name. Raises UserError for an unknown one, and lists the known."""
    names = list(known)
    if not isinstance(given, str) or given not in names:
        raise UserError(f"unknown {what} {given!r}; known: {', '.join(names)}")
    return given


def as_text(what: str, given: Any) -> str:
    """A text. Raises UserError for anything else."""
    if not isinstance(given, str):
        raise UserError(f"{what} is a text, not {shown(given)}")
    return given


def as_path(what: str, given: Any) -> Path:
    """A path. Raises UserError for what is no text and no path."""
    if not isinstance(given, str | os.PathLike) or isinstance(given, bytes):
        raise UserError(f"{what} is a path, not {shown(given)}")
    return Path(given)
