"""Names found in text as whole words, in scripts with and without spaces between words.

"Niger" is not in "Nigeria", but 法国 (France) is in 法国的首都, where no space parts words, and
프랑스 in 프랑스의, where Korean joins a particle to the name. What is a word of a script without
spaces cannot be told without a dictionary, so a name counts there wherever it stands; but a name in
katakana only between other letters, since such a run is mostly one word, and not in the middle of a
syllable of Thai and of its neighbours.

Except where a name is looked for exactly, upper and lower case are the same, and so are letters
with and without their accents: people, and models, write Sao Paulo and Brasilia.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_SYLLABIC = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1A20, 0x1AAF)),
    (0xA980, 0xA9DF),
)
"""Thai and Lao, Tibetan, Myanmar, Khmer, Tai Tham, Javanese: marks behind a letter belong to it."""
_WITHOUT_SPACES = (
    "\u3005-\u3007\u3041-\u309f\u3105-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    f"\U00020000-\U000323af{_KATAKANA}"
    + "".join(f"{chr(first)}-{chr(last)}" for first, last in _SYLLABIC)
)
"""Letters of scripts that put no spaces between words, as a regular expression's class."""
_MARKS = "".join(
    chr(code)
    for first, last in _SYLLABIC
    for code in range(first, last + 1)
    if unicodedata.category(chr(code)).startswith("M")
)
_LETTER = rf"[^\W{_WITHOUT_SPACES}]"
"""A letter or digit of a script with spaces between words."""
_ON_LETTERS = "".join(
    chr(code) for code in range(0x300, 0xE00) if unicodedata.category(chr(code)).startswith("M")
)
"""Accents, points and vowel signs of scripts with spaces: they belong to the letter before them."""
_PARTICLES = (
    *("은", "는", "이", "가", "을", "를", "의", "에", "에서", "에게", "께서", "와", "과", "랑"),
    *("이랑", "도", "만", "로", "으로", "부터", "까지", "보다", "처럼", "같은", "나", "이나"),
    *("라는", "이라는", "라고", "이라고", "란", "이란", "다", "이다", "였다", "이었다", "인"),
    *("입니다", "였습니다", "이었습니다", "예요", "이에요", "이고", "이며", "이지만", "지만"),
)
"""What Korean joins to a name."""
_PARTICLE = rf"(?:{'|'.join(sorted(_PARTICLES, key=len, reverse=True))})"
_ACCENT = re.compile("[\u0300-\u036f]")
"""Combining marks of the Latin alphabet."""
_SHORT = 3
"""Shorter names keep their accents: the answer "A" is not the French word "à"."""
_STROKES = {
    **{"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t", "ı": "i"},
    **{"æ": "ae", "œ": "oe"},
}
"""Letters that Unicode does not take apart, and what they are often written as."""
_UNSEEN = frozenset("\u00ad\u200b\u200e\u200f\u2060\ufeff")
_CLUSTER = re.compile(
    rf"\s+|[\u1100-\u115f][\u1160-\u11ff]+|.[{_ON_LETTERS}\u3099\u309a]*", re.DOTALL
)
"""White space, or a letter with what belongs to it."""
_SPACELESS = re.compile(f"[{_WITHOUT_SPACES}]")
_KATAKANA_LETTER = re.compile(f"[{_KATAKANA}]")
_HANGUL_LETTER = re.compile("[\uac00-\ud7a3]")
Same = Literal["exact", "case", "accents"]
"""What makes no difference: composed and decomposed letters and either apostrophe only, the case
and white space too, or also accents."""


def is_spaceless(letter: str) -> bool:
    """Whether a letter is of a script that puts no spaces between words."""
    return _SPACELESS.fullmatch(letter) is not None


@lru_cache(maxsize=4096)
def whole_word(text: str) -> str:
    """A pattern for a text that stands by itself: no part of a longer word or number.

    Either kind of apostrophe matches the other; the case is left to the pattern's flags.
    """
    pattern = re.sub("[’']", "[’']", re.escape(text))
    return f"{_before(text[:1])}{pattern}{_behind(text[-1:])}"


def mentions(
    text: str, name: str, *, exact: bool = False, apart_from: Iterable[str] = ()
) -> list[tuple[int, int]]:
    """The characters [start, end) of every mention of a name as whole words, in order.

    Unless it is ``exact``, in whatever case and with or without accents. Composed and decomposed
    letters (Unicode's NFC and NFD) are the same, and so are both kinds of apostrophe. An empty name
    is nowhere. What is a part of a longer name in ``apart_from`` does not count: with it, Mexico is
    not in "Mexico City".
    """
    name = name if exact else name.strip()
    same: Same = "exact" if exact else "case" if len(name) < _SHORT else "accents"
    wanted, _ = _folded(name, same)
    folded, starts = _folded(text, same)
    if not wanted.strip() or wanted not in folded:
        return []
    spans = (match.span() for match in _pattern(wanted).finditer(folded))
    found = [(starts[start], starts[end]) for start, end in spans]
    longer = [span for other in apart_from for span in mentions(text, other, exact=exact)]
    return [span for span in found if not any(_is_part(span, other) for other in longer)]


def _is_part(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return other[0] <= span[0] and span[1] <= other[1] and span != other


@lru_cache(maxsize=4096)
def _pattern(folded: str) -> re.Pattern[str]:
    return re.compile(whole_word(folded))


@lru_cache(maxsize=256)
def _folded(text: str, same: Same) -> tuple[str, Sequence[int]]:
    """The text without what makes no difference, and where each of its characters came from.

    One place more than characters: that behind the last.
    """
    if text.isascii() and (same == "exact" or " ".join(text.split()) == text):
        return text if same == "exact" else text.lower(), range(len(text) + 1)
    parts, starts = [], []
    for match in _CLUSTER.finditer(text):
        part = _cluster(match[0], same)
        parts.append(part)
        starts += [match.start()] * len(part)
    return "".join(parts), (*starts, len(text))


def _cluster(letter: str, same: Same) -> str:
    """A letter with its marks, or white space, without what makes no difference."""
    letter = unicodedata.normalize("NFC", letter).replace("’", "'")
    if same == "exact":
        return letter
    if letter.isspace():
        return " "
    if letter in _UNSEEN:
        return ""
    letter = letter.casefold()
    base = unicodedata.normalize("NFD", letter)
    if same == "accents" and ("a" <= base[0] <= "z" or base[0] in _STROKES):
        return "".join(_STROKES.get(part, part) for part in _ACCENT.sub("", base))
    return unicodedata.normalize("NFC", letter)


def _before(first: str) -> str:
    if _KATAKANA_LETTER.match(first):
        return f"(?<![{_KATAKANA}])"
    if _SPACELESS.match(first):
        return ""
    number = r"(?<!\d[.,])" if first.isdigit() else ""
    return f"{number}(?<!{_LETTER})(?<![{_ON_LETTERS}])"


def _behind(last: str) -> str:
    if _KATAKANA_LETTER.match(last):
        return f"(?![{_KATAKANA}])"
    if _SPACELESS.match(last):
        return f"(?![{_MARKS}])"
    if _HANGUL_LETTER.match(last):
        return f"(?={_PARTICLE}{{0,2}}(?!{_LETTER}))"
    number = r"(?![.,]\d)" if last.isdigit() else ""
    return f"(?!{_LETTER}|[{_ON_LETTERS}]){number}"
