"""A setting that is one of a few known words."""

from typing import Any, get_args

from interp.errors import UserError


def check_choice(name: str, value: str, known: Any) -> None:
    """Raise for a value that is not of a ``Literal`` type, and list those that are."""
    if value not in get_args(known):
        raise UserError(f"unknown {name} {value!r}; known: {', '.join(get_args(known))}")
