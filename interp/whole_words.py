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
from functools import lru_cache

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
_PARTICLES = (
    *("은", "는", "이", "가", "을", "를", "의", "에", "에서", "에게", "께서", "와", "과", "랑"),
    *("이랑", "도", "만", "로", "으로", "부터", "까지", "보다", "처럼", "같은", "나", "이나"),
    *("라는", "이라는", "라고", "이라고", "란", "이란", "다", "이다", "였다", "이었다", "인"),
    *("입니다", "였습니다", "이었습니다", "예요", "이에요", "이고", "이며", "이지만", "지만"),
)
"""What Korean joins to a name."""
_PARTICLE = rf"(?:{'|'.join(sorted(_PARTICLES, key=len, reverse=True))})"
_ACCENTS = "[\u0300-\u036f]"
"""Combining marks of the Latin alphabet."""
_SHORT = 3
"""Shorter names keep their accents: the answer "A" is not the French word "à"."""
_LIGATURES = {"ß": "ss", "æ": "ae", "œ": "oe"}
_STROKES = {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t", "ı": "i"}
"""Letters that Unicode does not take apart, and what they are written as without their stroke."""
_SPACELESS = re.compile(f"[{_WITHOUT_SPACES}]")
_KATAKANA_LETTER = re.compile(f"[{_KATAKANA}]")
_HANGUL_LETTER = re.compile("[\uac00-\ud7a3]")


def is_spaceless(letter: str) -> bool:
    """Whether a letter is of a script that puts no spaces between words."""
    return _SPACELESS.fullmatch(letter) is not None


@lru_cache(maxsize=4096)
def whole_word(text: str, *, exact: bool = True) -> str:
    """A pattern for a text that stands by itself: no part of a longer word.

    Either kind of apostrophe matches the other; the case is left to the pattern's flags. Unless it
    is ``exact``, Latin letters are found with and without accents, and æ, œ and ß also as two.
    """
    pattern = _as_written(text) if exact or len(text) < _SHORT else _with_any_accents(text)
    return f"{_before(text[:1])}{pattern}{_behind(text[-1:])}"


def mentions(text: str, name: str, *, exact: bool = False) -> list[tuple[int, int]]:
    """The characters [start, end) of every mention of a name as whole words, in order.

    Unless it is ``exact``, in whatever case and with or without accents. Composed and decomposed
    letters (Unicode's NFC and NFD) are the same, and so are both kinds of apostrophe. An empty name
    is nowhere.
    """
    if not name.strip():
        return []
    found = {match.span() for form in _forms(name, exact) for match in form.finditer(text)}
    return sorted(found)


@lru_cache(maxsize=4096)
def _forms(name: str, exact: bool) -> tuple[re.Pattern[str], ...]:
    forms = {name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))}
    flags = 0 if exact else re.IGNORECASE
    return tuple({re.compile(whole_word(form, exact=exact), flags) for form in forms})


def _as_written(text: str) -> str:
    return re.sub("[’']", "[’']", re.escape(text))


def _with_any_accents(text: str) -> str:
    """A pattern for the text with any accents on its Latin letters."""
    letters = re.sub(f"(?<=[a-z]){_ACCENTS}+", "", "".join(map(_plain, text)))
    for ligature, two in _LIGATURES.items():
        letters = letters.replace(ligature, two)
    pieces = re.findall("|".join([*_LIGATURES.values(), "."]), letters, re.DOTALL)
    return "".join(_PIECES.get(piece) or re.escape(piece) for piece in pieces)


def _plain(letter: str) -> str:
    """A Latin letter in lower case, without its accent or stroke; any other as it is."""
    base = unicodedata.normalize("NFD", letter)[0].lower()
    base = _STROKES.get(base, base)
    return base if base in _PIECES or base in _LIGATURES else letter


def _pieces() -> dict[str, str]:
    """The pattern of each Latin letter, of two that may be one, and of the apostrophes."""
    accented = {letter: letter for letter in "abcdefghijklmnopqrstuvwxyz"}
    for code in (*range(0xC0, 0x250), *range(0x1E00, 0x1F00)):
        base = unicodedata.normalize("NFD", chr(code))[0].lower()
        base = _STROKES.get(base, base)
        if base in accented:
            accented[base] += chr(code)
    single = {base: f"[{letters}]{_ACCENTS}*" for base, letters in accented.items()}
    double = {
        two: f"(?:{single[two[0]]}{single[two[1]]}|{ligature}{_ACCENTS}*)"
        for ligature, two in _LIGATURES.items()
    }
    return {**single, **double, "'": "[’']", "’": "[’']"}


def _before(first: str) -> str:
    if _KATAKANA_LETTER.match(first):
        return f"(?<![{_KATAKANA}])"
    return "" if _SPACELESS.match(first) else f"(?<!{_LETTER})"


def _behind(last: str) -> str:
    if _KATAKANA_LETTER.match(last):
        return f"(?![{_KATAKANA}])"
    if _SPACELESS.match(last):
        return f"(?![{_MARKS}])"
    if _HANGUL_LETTER.match(last):
        return f"(?={_PARTICLE}{{0,2}}(?!{_LETTER}))"
    return f"(?!{_LETTER})"


_PIECES = _pieces()
