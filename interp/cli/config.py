"""Config files: a command's options as the keys of a YAML file, and back.

A value is checked against its option's type here, so that a mistake is one line that names the
file. Whether it makes sense is left to the settings, as for the command line.
"""

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml

from interp.errors import UserError

Kind = TypeVar("Kind")
_WORDS = {
    **{int: "a whole number", float: "a number", bool: "true or false"},
    **{str: "text", Path: "a path"},
}
_SUPPRESSED = get_args(tyro.conf.Suppress[int])[1]


def take_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The words of a command line without ``--config FILE``, and the file."""
    rest, config = [], None
    words = iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if name != "--config":
            rest.append(word)
            continue
        value = value or next(words, None)
        if value is None:
            raise UserError("--config needs a YAML file")
        config = Path(value)
    return rest, config


def from_config(kind: type[Kind], path: Path) -> Kind:
    """Options from a YAML file, whose keys are their names; the others have their defaults.

    Raises:
        UserError: the file cannot be read, names an unknown option, or a value is of another type
            than its option.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--config {path}: cannot be read as YAML ({first})") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must hold options as keys, such as `seed: 1`")
    hints = get_type_hints(kind, include_extras=True)
    known = {name: hint for name, hint in hints.items() if _SUPPRESSED not in get_args(hint)}
    values = {}
    for key, value in content.items():
        if key not in known:
            raise UserError(f"--config {path}: unknown option {key!r}; known: {', '.join(known)}")
        try:
            values[key] = _converted(value, known[key])
        except ValueError:
            wanted = _described(known[key])
            raise UserError(f"--config {path}: {key} is {value!r}, but must be {wanted}") from None
    return kind(**values)


def to_config(options: Any) -> dict[str, Any]:
    """The options as a config file holds them."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(options).items()
    }


def settings_from(kind: type[Kind], options: Any) -> Kind:
    """A settings dataclass from the options of the same names; the rest has its defaults."""
    assert is_dataclass(kind)
    names = [one.name for one in fields(kind) if hasattr(options, one.name)]
    return kind(**{name: getattr(options, name) for name in names})


def _converted(value: Any, hint: Any) -> Any:
    """A value from YAML as the type that an option has. Raises ValueError if it is another."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _converted(value, inside[0])
    if origin in (Union, UnionType):
        if value is None and NoneType in inside:
            return None
        (one,) = (kind for kind in inside if kind is not NoneType)
        return _converted(value, one)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_converted(item, inside[0]) for item in items)
    if origin is Literal:
        fits = value in inside
    elif hint is Path:
        return Path(_converted(value, str))
    elif hint is float and type(value) in (int, str):
        return float(value)  # YAML reads 1e-3 as text
    else:
        fits = type(value) is hint
    if not fits:
        raise ValueError(value)
    return value


def _described(hint: Any) -> str:
    """A type in words."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _described(inside[0])
    if origin in (Union, UnionType):
        return " or ".join("null" if kind is NoneType else _described(kind) for kind in inside)
    if origin is tuple:
        return "a value or a list"
    if origin is Literal:
        return f"one of {', '.join(map(str, inside))}"
    return _WORDS[hint]
