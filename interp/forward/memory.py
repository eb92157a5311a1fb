"""How much memory a call may take: decided once, by the caller or from the device.

By default the budget is a choice and no limit: on a CPU one for speed, on a GPU a share of the free
memory. One prompt then always runs, however long it is. A given budget is a limit, and a prompt
that does not fit is refused before anything runs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from interp.arguments import whole_number
from interp.errors import UserError

CPU_BUDGET = 192 * 2**20
"""Bytes, for all batches that run in parallel. More rows gain nothing on a CPU: batches of 24 MiB
and of 100 MiB take the same time, 400 MiB a sixth more (two cores, 135M parameters)."""
CPU_WHOLE = 4 * CPU_BUDGET
"""Gradients of few prompts at a time are slow, and their graph holds every layer."""
GPU_SHARE = 0.25
"""Of the free memory of a GPU, for the batches; what is kept beside them may take as much again."""


@dataclass
class Room:
    """Bytes that turned out not to fit; later batches take less."""

    batches: int | None = None
    whole: int | None = None


@dataclass(frozen=True)
class Budget:
    """Bytes that a call may take.

    Attributes:
        batches: for the forward passes that run in parallel.
        whole: for those and all that is kept meanwhile: recorded runs, edits, a graph.
        given: whether the caller gave it, so that it is a limit.
        room: what calls with this budget have learned about the memory that there really is.
    """

    batches: int
    whole: int
    given: bool = False
    room: Room = field(default_factory=Room, compare=False, repr=False)

    @property
    def now(self) -> tuple[int, int]:
        """``batches`` and ``whole``, less what turned out not to fit."""
        room = self.room
        return (
            self.batches if room.batches is None else min(self.batches, room.batches),
            self.whole if room.whole is None else min(self.whole, room.whole),
        )

    def refuse(self, bytes_of_one: int, width: int) -> None:
        """Raise UserError if one prompt does not fit into a budget that was given."""
        if self.given and bytes_of_one > self.whole:
            raise UserError(
                f"a budget of {self.whole / 2**20:.3g} MiB is too small for one prompt of {width} "
                f"tokens, which takes about {bytes_of_one / 2**20:.3g} MiB"
            )

    def rows(self, each: int, *, kept: int = 0) -> int:
        """How many rows of ``each`` bytes fit besides ``kept`` bytes; at least one."""
        batches, whole = self.now
        return max(1, min(batches, whole - kept) // each)


_DECIDED: ContextVar[Budget | None] = ContextVar("decided_budget", default=None)


def decide_budget(budget: "int | Budget | None", device: torch.device) -> Budget:
    """The budget of one call: the given bytes, or the run's (``using_budget``), or the device's.

    Raises:
        UserError: less than one byte.
    """
    if isinstance(budget, Budget):
        return budget
    if budget is not None:
        given = whole_number("budget, in bytes,", budget, least=1)
        return Budget(given, given, given=True)
    return _DECIDED.get() or default_budget(device)


def default_budget(device: torch.device) -> Budget:
    """What a call may take on this device by default."""
    if device.type != "cuda":
        return Budget(CPU_BUDGET, CPU_WHOLE)
    # What torch holds and does not use is free to it, whatever the driver says.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    batches = int(GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + unused))
    return Budget(batches, 2 * batches)


@contextmanager
def using_budget(budget: Budget) -> Iterator[None]:
    """While open, calls in this thread without a budget of their own have this one."""
    token = _DECIDED.set(budget)
    try:
        yield
    finally:
        _DECIDED.reset(token)


def current_budget() -> Budget | None:
    """What ``using_budget`` has set."""
    return _DECIDED.get()


def read_budget(found: Any) -> Budget | None:
    """A budget from its fields in JSON; None if they are damaged."""
    if not isinstance(found, Mapping):
        return None
    batches, whole = found.get("batches"), found.get("whole")
    if isinstance(batches, int) and isinstance(whole, int) and 0 < batches <= whole:
        return Budget(batches, whole, bool(found.get("given")))
    return None
