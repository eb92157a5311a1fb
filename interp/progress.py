"""Progress bars: a bar on a terminal or in a notebook, a line now and then anywhere else.

Redrawing a bar in a log file gives hundreds of lines. There, a line is written every
``SECONDS_BETWEEN_LINES`` and one at the end.
"""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm as bar_of_the_place
from tqdm.std import tqdm as plain_bar

SECONDS_BETWEEN_LINES = 30.0


class LineBar(plain_bar):
    """A bar that writes lines, for output that nobody watches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._said = time.monotonic()
        super().__init__(*args, **{"mininterval": 0.0, "miniters": 1, "ncols": 80, **kwargs})

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Write where the work is, if the last line is long ago."""
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._say()
        return True

    def close(self) -> None:
        """Write the last line."""
        if self.disable:
            return
        self.disable = True
        type(self)._decr_instances(self)  # type: ignore[attr-defined]
        self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        try:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        except (OSError, ValueError):  # nobody reads any more, which does not stop the work
            pass


def progress_bar(
    items: Iterable[Any] | None = None, *, shown: bool = True, description: str, **options: Any
) -> Any:
    """A progress bar over ``items``, or one that is moved on with ``update``; as tqdm's.

    Args:
        shown: without it nothing is written.
        options: tqdm's own, such as ``total``.
    """
    watched = sys.stderr is not None and sys.stderr.isatty()
    kind = bar_of_the_place if watched or "ipykernel" in sys.modules else LineBar
    return kind(items, desc=description, disable=not shown, **options)
