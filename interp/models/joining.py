"""The gap between a text and the answer that continues it, where none is given."""

import unicodedata

from interp.whole_words import is_spaceless

_WIDE = ("FULLWIDTH ", "IDEOGRAPHIC ")
_OPENING = ("Ps", "Pi")
"""Categories of opening brackets and of opening quotation marks."""
_OPENING_MARKS = "¿¡"


def gap_between(text: str, answer: str) -> str:
    """A space, or nothing where a space would be wrong.

    Nothing stands beside white space, behind an opening bracket, between two words of a script
    that is written without spaces (Chinese, Japanese, Thai and so on), or behind its punctuation.
    """
    if not text or not answer:
        return ""
    before, after = text[-1], answer[0]
    opening = unicodedata.category(before) in _OPENING or before in _OPENING_MARKS
    wide = unicodedata.name(before, "").startswith(_WIDE)
    if before.isspace() or after.isspace() or opening or wide:
        return ""
    return "" if is_spaceless(before) and is_spaceless(after) else " "
