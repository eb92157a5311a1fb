"""Values as they are made outside the tests, where nobody checks types as the program runs."""

from collections.abc import Callable
from typing import Any


def unchecked(kind: Callable[[], Any], **values: Any) -> Any:
    """What ``kind`` gives, with these values, looked at by its own ``__post_init__`` alone."""
    settings = kind()
    for name, value in values.items():
        object.__setattr__(settings, name, value)
    settings.__post_init__()
    return settings
