"""Values as they are made outside the tests, where nobody checks types as the program runs."""

from typing import Any


def unchecked(kind: type, **values: Any) -> Any:
    """A settings dataclass with these values, looked at by its own ``__post_init__`` alone."""
    settings = kind()
    for name, value in values.items():
        object.__setattr__(settings, name, value)
    settings.__post_init__()
    return settings
