"""The number of threads that a run began with: it decides batches, and so the last bits of values.

It is written into the run's identity but is not compared: a run that is taken up elsewhere goes
on with the number that it began with.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from interp.files.documents import read_json

KEY = "threads"


def with_threads(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as it is written, with the threads that torch uses now."""
    return {**identity, KEY: torch.get_num_threads()}


def threads_of(run: Path, file: str) -> int:
    """How many threads the run began with; those of now where it is not written."""
    found = read_json(run / file).get(KEY) if (run / file).is_file() else None
    return found if isinstance(found, int) and found > 0 else torch.get_num_threads()


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
