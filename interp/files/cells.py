"""What the text in a cell of a table stands for: a name, or a whole number.

Two cells that look alike may differ in what is not seen: a no-break space from a web page, a mark
of writing direction, é as one character or as two. `clean_name` takes out what is never a part of a
name; `name_key` is equal for two ways to write one name, and is only ever compared.
"""

import re
import unicodedata

_NOWHERE = dict.fromkeys(map(ord, "\u200b\ufeff"))
"""Zero-width spaces and byte-order marks. Joiners (U+200C, U+200D) belong to words of Persian and
of Indic scripts, and stay."""
_FORMAT = (0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F))
_AT_NO_EDGE = "".join(map(chr, (*_FORMAT, *range(0x2060, 0x2070))))
"""Format characters that show nothing. Others show: the number signs of Arabic, tags of flags."""
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0")


def clean_name(text: str) -> str:
    """A name with single spaces, without invisible characters at its ends.

    Line breaks count as white space; who refuses them looks before.
    """
    words = " ".join(text.translate(_NOWHERE).split())
    return words.strip(f" {_AT_NO_EDGE}")


def name_key(name: str) -> str:
    """The same text for all ways to write one name: case, white space, composed accents or not."""
    composed = unicodedata.normalize("NFC", clean_name(name))
    return unicodedata.normalize("NFC", composed.casefold())


def whole_number(text: str) -> str:
    """``1912`` for ``1912.0``, as tables with an empty cell write it; other texts as they are."""
    match = _WHOLE.fullmatch(text)
    return match[1] if match else text
