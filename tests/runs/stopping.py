"""An engine for tests that counts shards, and is stopped, or does something, at one of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from interp.jobs import Shard
from interp.runs.shards import Engine, InProcess


class Stopping:
    """Counts what an engine makes.

    Args:
        inner: an engine, or a model for one in this process.
        at: when so many shards are there, it is interrupted before the next is kept; 0 never.
        act: done then, with the inner engine, instead of the interruption.
    """

    def __init__(self, inner: Any, at: int = 0, act: Callable[[Any], None] | None = None) -> None:
        self.inner: Engine = inner if isinstance(inner, Engine) else InProcess(inner)
        self.at, self.act, self.made = at, act, 0

    def run(
        self, work: Callable[[Any, Any], Shard], jobs: Iterable[tuple[int, Any]]
    ) -> Iterator[tuple[int, Shard]]:
        """See ``Engine``."""
        for number, shard in self.inner.run(work, jobs):
            if self.at and self.made == self.at:
                if self.act is None:
                    raise KeyboardInterrupt
                self.act(self.inner)
            self.made += 1
            yield number, shard
