"""Checks that values are finite, made once for everything that was computed.

To ask a device whether a value is finite is to wait for it. Within ``checked_together`` values are
only noted; at the end the device is asked once about all of them. If some are not finite, the same
is computed again with every check made at once, so that the first bad one is named.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

from interp.errors import UserError

Result = TypeVar("Result")

_NOTED: ContextVar[list[Tensor] | None] = ContextVar("noted_values", default=None)


def put_off(value: Callable[[], Tensor]) -> bool:
    """Whether the check of a value is made later, with others; then it is noted here."""
    noted = _NOTED.get()
    if noted is None:
        return False
    noted.append(value().detach().flatten())
    return True


class _Attempt:
    """A context in which checks are put off; left well if all that was noted is finite."""

    def __init__(self) -> None:
        self.noted: list[Tensor] = []
        self.finite = True

    def __enter__(self) -> None:
        self._token = _NOTED.set(self.noted)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        _NOTED.reset(self._token)
        if kind is not None and not issubclass(kind, UserError):
            return False
        self.finite = all_finite(self.noted)
        return not self.finite  # the next attempt raises what comes first


def attempts() -> Iterator[AbstractContextManager[None]]:
    """For a loop whose body computes something inside the context that it is given.

    The first time checks are put off to the end of the context; if a value was not finite, the body
    runs again, with every check made at once. Inside another such loop it runs once, as a part.
    """
    if _NOTED.get() is None:
        attempt = _Attempt()
        yield attempt
        if attempt.finite:
            return
    yield nullcontext()


def checked_together(compute: Callable[[], Result]) -> Result:
    """``compute()``, in which the checks of metrics are put off to its end.

    Args:
        compute: may run twice, the second time to raise.

    Raises:
        UserError: as the first of its checks, made at once.
    """
    found: list[Result] = []
    for attempt in attempts():
        with attempt:
            found.append(compute())
    return found[-1]


def all_finite(values: list[Tensor]) -> bool:
    """Whether all values are finite; the device is asked once."""
    if not values:
        return True
    first = values[0].device
    return bool(torch.isfinite(torch.cat([value.to(first) for value in values])).all())
