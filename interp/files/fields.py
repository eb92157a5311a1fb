"""Settings dataclasses from the keys and values of a file, each checked against its field."""

from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from interp.errors import UserError

Kind = TypeVar("Kind")
_WORDS = {
    **{int: "a whole number", float: "a number", bool: "true or false"},
    **{str: "text", Path: "a path"},
}


def from_mapping(
    kind: type[Kind], content: Any, where: str, *, known: dict[str, Any] | None = None
) -> Kind:
    """A dataclass from a mapping of its fields; missing fields have their defaults.

    Args:
        where: what the message begins with.
        known: the fields that may be given with their types; by default all of them.

    Raises:
        UserError: no mapping, an unknown field, a value of another type than its field, or what
            the dataclass itself refuses.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: must hold options as keys, such as `seed: 1`")
    hints = get_type_hints(kind, include_extras=True) if known is None else known
    values = {}
    for key, value in content.items():
        if key not in hints:
            raise UserError(f"{where}: unknown option {_short(key)}; known: {', '.join(hints)}")
        try:
            values[key] = field_value(value, hints[key])
        except ValueError:
            raise UserError(
                f"{where}: {key} is {_short(value)}, but must be {described(hints[key])}"
            ) from None
    return kind(**values)


def field_value(value: Any, hint: Any) -> Any:
    """A parsed value as the type that a field has. Raises ValueError if it is another."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return field_value(value, inside[0])
    if origin in (Union, UnionType):
        if value is None and NoneType in inside:
            return None
        *kinds, last = (kind for kind in inside if kind is not NoneType)
        for kind in kinds:
            with suppress(ValueError):
                return field_value(value, kind)
        return field_value(value, last)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(field_value(item, inside[0]) for item in items)
    if origin is Literal:
        fits = isinstance(value, str | int) and value in inside
    elif hint is Path:
        return Path(field_value(value, str))
    elif hint is float and type(value) in (int, str):
        return float(value)  # YAML reads 1e-3 as text
    else:
        fits = type(value) is hint
    if not fits:
        raise ValueError(value)
    return value


def described(hint: Any) -> str:
    """A type in words."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return described(inside[0])
    if origin in (Union, UnionType):
        return " or ".join("null" if kind is NoneType else described(kind) for kind in inside)
    if origin is tuple:
        return "a value or a list"
    if origin is Literal:
        return f"one of {', '.join(map(str, inside))}"
    return _WORDS[hint]


def _short(value: Any) -> str:
    """A value in a message: what is nested or long is not repeated."""
    if isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
