"""What stands between a text and the answer that continues it, where nobody says."""

import unicodedata

_WITHOUT_SPACES = (
    "CJK ",
    "HIRAGANA ",
    "KATAKANA",
    "BOPOMOFO ",
    "THAI ",
    "LAO ",
    "KHMER ",
    "MYANMAR ",
    "TIBETAN ",
    "TAI THAM ",
    "JAVANESE ",
)
"""How Unicode's names of letters begin in scripts that put no spaces between words."""
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
    if before.isspace() or after.isspace():
        return ""
    if unicodedata.category(before) in _OPENING or before in _OPENING_MARKS:
        return ""
    if unicodedata.name(before, "").startswith(_WIDE):
        return ""
    return "" if _unspaced(before) and _unspaced(after) else " "


def _unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_WITHOUT_SPACES)
