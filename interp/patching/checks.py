"""Checks that values are finite, made once for everything that was computed.

To ask a device whether a value is finite is to wait for it. Within ``checked_together`` values are
only noted; at the end the device is asked once about all of them. If some are not finite, the same
is computed again with every check made at once, so that the first bad one is named.
"""

from collections.abc import Callable
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


def checked_together(compute: Callable[[], Result]) -> Result:
    """``compute()``, in which the checks of metrics are put off to its end.

    Args:
        compute: may run twice, the second time to raise.

    Raises:
        UserError: as the first of its checks, made at once.
    """
    if _NOTED.get() is not None:
        return compute()
    noted: list[Tensor] = []
    token = _NOTED.set(noted)
    try:
        result = compute()
    except UserError:
        if all_finite(noted):
            raise
    else:
        if all_finite(noted):
            return result
    finally:
        _NOTED.reset(token)
    return compute()


def all_finite(values: list[Tensor]) -> bool:
    """Whether all values are finite; the device is asked once."""
    if not values:
        return True
    first = values[0].device
    return bool(torch.isfinite(torch.cat([value.to(first) for value in values])).all())
