"""Config files: a command's options as the keys of a YAML file, and back.

A value is checked against its option's type here, so that the error message names the file. The
settings check the values, as they do for the command line.
"""

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from interp.errors import UserError
from interp.files.fields import from_mapping
from interp.files.text import LARGEST_YAML, parse_yaml, read_text

Kind = TypeVar("Kind")
NOT_KEPT = frozenset({"plan"})
"""Options of the command line alone: they say nothing about the run."""
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
        if config is not None:
            raise UserError(f"--config is given twice, as {config} and {value}: join the files")
        config = Path(value)
    return rest, config


def from_config(kind: type[Kind], path: Path) -> Kind:
    """Options from a YAML file, whose keys are their names; missing ones have their defaults.

    Raises:
        UserError: the file cannot be read, has an unknown option, or a value of the wrong type.
    """
    where = f"--config {path}"
    try:
        content = parse_yaml(read_text(path, largest=LARGEST_YAML))
    except UserError as error:
        raise UserError(f"{where}: cannot be read as YAML ({error})") from error
    hints = get_type_hints(kind, include_extras=True)
    known = {
        name: hint
        for name, hint in hints.items()
        if name not in NOT_KEPT and _SUPPRESSED not in get_args(hint)
    }
    return from_mapping(kind, {} if content is None else content, where, known=known)


def to_config(options: Any) -> dict[str, Any]:
    """The options as a config file holds them."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(options).items()
        if key not in NOT_KEPT
    }


def settings_of(kind: type[Kind], options: Kind) -> Kind:
    """The settings among a command's options, which must have every field of ``kind``."""
    assert is_dataclass(kind)
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})
