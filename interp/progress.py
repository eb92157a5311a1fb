"""Progress bars: a bar on a terminal or in a notebook, a line now and then anywhere else.

Redrawing a bar in a log file gives hundreds of lines. There, a line is written every
``SECONDS_BETWEEN_LINES`` and one at the end.
"""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm as automatic_bar
from tqdm.std import tqdm as plain_bar

SECONDS_BETWEEN_LINES = 30.0


class LineBar(plain_bar):
    """A progress bar that writes lines, for log files."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last_line = time.monotonic()
        super().__init__(*args, **{"mininterval": 0.0, "miniters": 1, "ncols": 80, **kwargs})

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Write a line, if the last one is ``SECONDS_BETWEEN_LINES`` ago."""
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._write_line()
        return True

    def close(self) -> None:
        """Write the last line."""
        if self.disable:
            return
        self.disable = True
        type(self)._decr_instances(self)  # type: ignore[attr-defined]
        self._write_line()

    def _write_line(self) -> None:
        self._last_line = time.monotonic()
        try:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        except (OSError, ValueError):  # a closed log does not stop the work
            pass


def progress_bar(
    items: Iterable[Any] | None = None, *, shown: bool = True, description: str, **options: Any
) -> Any:
    """A tqdm progress bar over ``items``, or one that is advanced with ``update``.

    Args:
        shown: whether anything is written.
        options: of tqdm, such as ``total``.
    """
    watched = sys.stderr is not None and sys.stderr.isatty()
    kind = automatic_bar if watched or "ipykernel" in sys.modules else LineBar
    return kind(items, desc=description, disable=not shown, **options)
