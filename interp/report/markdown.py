"""Text and tables in Markdown, of what strangers may have written."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from interp.figures.measures import MISSING

_MARKUP = re.compile(r"([\\`*_\[\]|#~])")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a column that is empty in every row is left out."""
    texts = [[plain_text(cell) for cell in row] for row in rows]
    kept = [0] + [
        at for at in range(1, len(header)) if any(row[at] not in ("", MISSING) for row in texts)
    ]
    lines = [[plain_text(header[at]) for at in kept], ["---"] * len(kept)]
    lines += [[row[at] for at in kept] for row in texts]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain_text(text: Any) -> str:
    """Text in one line, that Markdown and HTML take for text."""
    return _MARKUP.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
