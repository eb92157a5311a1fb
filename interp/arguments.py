"""Arguments as a method needs them; anything else is refused by the argument's name.

Numbers and lists may be numpy's and torch's too.
"""

import math
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np

from interp.errors import UserError

Kind = TypeVar("Kind")
_SHOWN = 60


def shown(given: Any) -> str:
    """A value in a message; its type if its ``repr`` is long or says little."""
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
        if isinstance(given, str | bytes):
            raise TypeError(given)
        number = float(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} is a number, not {shown(given)}") from error
    if not math.isfinite(number):
        raise UserError(f"{what} is a finite number, not {shown(given)}")
    return number


def indices(what: str, given: Any, count: int) -> list[int]:
    """Places among ``count``, from a list of them, or from a mask with an entry for each.

    Raises UserError for anything else, or a place that is not there.
    """
    entries = listed(what, given, "numbers")
    if entries and all(isinstance(entry, bool) for entry in entries):
        if len(entries) != count:
            raise UserError(f"{what} is a mask of {len(entries)} entries for {count}")
        return [place for place, kept in enumerate(entries) if kept]
    places = [whole_number(f"an entry of {what}", entry) for entry in entries]
    if bad := [place for place in places if not -count <= place < count]:
        raise UserError(f"{what} has {bad[0]}: there are {count}")
    return places


def listed(what: str, given: Any, entries: str = "entries") -> list[Any]:
    """The entries of a list, tuple, array, tensor or generator.

    Raises:
        UserError: anything else; also a text, a mapping or a table.
    """
    if hasattr(given, "tolist"):
        given = given.tolist()
    named = isinstance(given, str | bytes | Mapping) or hasattr(given, "columns")
    if named or not isinstance(given, Iterable):
        raise UserError(f"{what} is a list of {entries}, not {shown(given)}")
    return list(given)


def texts(what: str, given: Any) -> tuple[str, ...]:
    """Several texts. Raises UserError for one text alone, whose letters would be taken."""
    found = tuple(listed(what, given, "texts"))
    for text in found:
        if not isinstance(text, str):
            raise UserError(f"{what} are texts, not {shown(text)}")
    return found


def plain(given: Any) -> Any:
    """The array of a pandas column, whose index is not wanted; anything else as it is."""
    return np.array(given) if hasattr(given, "to_numpy") else given


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


def of_kind(what: str, given: Any, kind: type[Kind], *, advice: str = "") -> Kind:
    """The argument itself. Raises UserError, with ``advice``, unless it is of a class."""
    if not isinstance(given, kind):
        advice = f": {advice}" if advice else ""
        raise UserError(f"{what} is a {kind.__name__}, not {shown(given)}{advice}")
    return given


def check_choice(what: str, given: Any, known: Any) -> Any:
    """A known name. Raises UserError for any other, and lists the known ones.

    Args:
        known: the names, or a ``Literal`` of them.
    """
    names = get_args(known) or list(known)
    if not isinstance(given, str) or given not in names:
        raise UserError(f"unknown {what} {given!r}; known: {', '.join(names)}")
    return given


def as_path(what: str, given: Any) -> Path:
    """A path. Raises UserError for anything but a text or a path."""
    if not isinstance(given, str | os.PathLike) or isinstance(given, bytes):
        raise UserError(f"{what} is a path, not {shown(given)}")
    return Path(given)
