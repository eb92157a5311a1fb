"""Whether an answer names something."""

import re
import unicodedata
from collections.abc import Iterable

from interp.checked import checked


@checked
def names(text: str, name: str) -> bool:
    """Whether ``text`` holds ``name`` as whole words, in whatever case."""
    text, name = _folded(text), _folded(name)
    return name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


@checked
def names_any(text: str, all_names: Iterable[str]) -> bool:
    """Whether ``text`` holds any of the names as whole words."""
    return any(names(text, name) for name in all_names)
