"""Check the structure of a parsed file against a shape, a value of the same structure.

A shape is a type (``int``, ``float``, ``str``, ``bool``, ``dict``, ``list``); a tuple of
alternative shapes; a one-element list, for a list of such values; a longer list, for exactly these
values; a dict of required keys (one whose value is a `Maybe` is optional); or ``{str: shape}`` for
any keys. Keys that a shape does not name are accepted. A whole number is also a ``float``; a
boolean is no number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.errors import UserError

Shape = Any


@dataclass(frozen=True)
class Maybe:
    """A value that may be missing or null."""

    shape: Shape


def check_shape(value: Any, shape: Shape, where: str, *, advice: str = "make the run again") -> Any:
    """The value, if it has the shape. Raises UserError that names the first part that differs."""
    problem = _problem(value, shape, "")
    if problem is not None:
        place, wanted = problem
        place = f"{place.lstrip('.')} " if place else ""
        found = "what it is" if place else f"a {type(value).__name__}"
        raise UserError(f"{where}: {place}must be {wanted}, not {found}; {advice}")
    return value


def _problem(value: Any, shape: Shape, place: str) -> tuple[str, str] | None:
    """The first part that does not fit, and what it should be."""
    if isinstance(shape, Maybe):
        return None if value is None else _problem(value, shape.shape, place)
    if isinstance(shape, type):
        return None if _is(value, shape) else (place, _NAMES[shape])
    if isinstance(shape, tuple):
        found = [_problem(value, alternative, place) for alternative in shape]
        return None if None in found else found[0]
    if isinstance(shape, list):
        return _list_problem(value, shape, place)
    return _dict_problem(value, shape, place)


def _list_problem(value: Any, shape: list[Shape], place: str) -> tuple[str, str] | None:
    if not isinstance(value, list | tuple):
        return place, "a list"
    if len(shape) > 1 and len(value) != len(shape):
        return place, f"a list of {len(shape)}"
    wanted = shape * len(value) if len(shape) == 1 else shape
    for index, (item, of_item) in enumerate(zip(value, wanted, strict=True)):
        if problem := _problem(item, of_item, f"{place}[{index}]"):
            return problem
    return None


def _dict_problem(value: Any, shape: Mapping[Any, Shape], place: str) -> tuple[str, str] | None:
    if not isinstance(value, Mapping):
        return place, "an object"
    if set(shape) == {str}:
        wanted = dict.fromkeys(value, shape[str])
    else:
        wanted = dict(shape)
    for key, of_key in wanted.items():
        if key not in value:
            if isinstance(of_key, Maybe):
                continue
            return f"{place}.{key}", "there"
        if problem := _problem(value[key], of_key, f"{place}.{str(key)[:40]}"):
            return problem
    return None


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}
