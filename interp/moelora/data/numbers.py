"""Numbers in text, read exactly and compared by value.

``57,500``, ``$57500``, ``57500.00`` and ``5.75e4`` are one number. They are decimals of any size,
never floats. Two whole numbers are the same or they are not; what is not whole may be worked out
further in one than in the other: 33.3333 and 33.33333.
"""

import re
from decimal import Decimal
from fractions import Fraction

from interp.whole_words import whole_word

_GROUP = r"(?:[,_'’\u00a0\u2009\u202f]|\{,\}|\\,)"
"""What parts thousands."""
_WHOLE = (
    rf"(?:\d{{1,3}}(?:{_GROUP}\d{{3}})+(?!\d)|\d{{1,3}}(?: \d{{3}})+(?!\d|[/.-]\d)"
    r"|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d+)"
)
_MONEY = r"[$€£¥₹]"
NUMBER = re.compile(
    rf"(?:[-−+]?(?:{_MONEY}\s?)?|{_MONEY}\s?[-−])"
    rf"(?:{_WHOLE}(?:\.\d+)?|(?<![\w.])\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\w))?%?"
)
_TAIL = re.compile(
    r"\s+(?P<part>\d{1,9})\s?/\s?(?P<of>\d{1,9})(?![\d/])"  # 2 1/2
    r"|\s?/\s?(?P<by>\d{1,9})(?![\d/])"
    r"|\s?(?:×|\*|·|x|\\times|\\cdot)\s?10\s?\^\s?\{?(?P<ten>[-−+]?\d{1,3})\}?"
    r"|\s?\^\s?\{?(?P<power>\d{1,3})\}?"
    r"|\s?(?P<scale>thousand|million|billion|trillion|dozen)\b|(?P<k>k)\b",
    re.IGNORECASE,
)
"""What may stand behind a number and belongs to it."""
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_FRACTION = re.compile(r"\\[dt]?frac\s?\{(\d{1,9})\}\s?\{(\d{1,9})\}")
_OTHER = re.compile(r"(?<![\w.])(?:\d{1,4}-\d{1,2}-\d{1,4}|\d{1,2}:\d{2}(?::\d{2})?)(?!\w)")
"""Dates and times, whose parts are no numbers."""
_DASH = re.compile(r"(?<![\w)])(?<![\d)] )[–‑﹣－](?=\d)")
"""Other dashes that people write as a minus; between two numbers or words they are none."""
_MINUS = re.compile(r"(?:\b(?:minus|negative)\s+|(?<==)\s*[-−]\s+)(?=[$€£¥₹]?\.?\d)", re.IGNORECASE)
"""A sign in words, or parted from its number."""
_APART = re.compile(rf"{_GROUP}|{_MONEY}|[%\s+]")
_EXPONENT = re.compile(r"[eE]\+")
CLOSE = Fraction(1, 10_000)
"""How far two numbers that are not whole may be apart, of the right one."""


def parse_number(text: str) -> Decimal | None:
    """The number that a text consists of: ``1,200``, ``$5``, ``504.0``, ``12%``; else None."""
    text = text.strip().rstrip(".")
    if not NUMBER.fullmatch(text):
        return None
    return Decimal(_APART.sub("", _EXPONENT.sub("e", text)).replace("−", "-"))


def numbers_in(text: str) -> list[Decimal]:
    """Every number in a text, in order. A minus behind a number, bracket or word is no sign.

    Fractions, mixed numbers, powers, and words for thousands and more belong to their number; dates
    and times are left out.
    """
    text = _MINUS.sub(_as_sign, _DASH.sub("-", text))
    text = _OTHER.sub(" . ", _FRACTION.sub(r" \1/\2", text))
    found, at = [], 0
    while match := NUMBER.search(text, at):
        piece, before = match.group(), text[: match.start()]
        at = match.end()
        if piece[0] in "-−+" and before:
            term = before.rstrip()
            if before[-1].isalnum() or (term and (term[-1].isdigit() or term[-1] in ")%")):
                piece = piece[1:]
        number = parse_number(piece)
        if number is None:
            continue
        if tail := _TAIL.match(text, at):
            at = tail.end()
            number = _with_tail(number, tail)
        found.append(number)
    return found


def _as_sign(match: re.Match[str]) -> str:
    """A minus, or the match as it is where a number or bracket before it is subtracted from."""
    before = match.string[: match.start()].rstrip()
    return match[0] if before and (before[-1].isdigit() or before[-1] in ")%") else " -"


def _with_tail(number: Decimal, tail: re.Match[str]) -> Decimal:
    """The number with the power, fraction or word after it; exact where the result is whole."""
    parts = {name: value for name, value in tail.groupdict().items() if value is not None}
    exact = Fraction(number)
    if "part" in parts and int(parts["of"]):
        part = Fraction(int(parts["part"]), int(parts["of"]))
        exact += -part if number < 0 else part
    elif "by" in parts and int(parts["by"]):
        exact /= int(parts["by"])
    elif "ten" in parts:
        exact *= Fraction(10) ** int(parts["ten"].replace("−", "-"))
    elif "power" in parts and abs(exact) < 10**6:
        exact **= int(parts["power"])
    elif "scale" in parts or "k" in parts:
        word = parts.get("scale", "thousand").lower()
        exact *= 12 if word == "dozen" else 10 ** _SCALES[word]
    if exact.denominator == 1:
        return Decimal(exact.numerator)
    return Decimal(exact.numerator) / Decimal(exact.denominator)


def as_a_word(text: str) -> str:
    """A pattern for a text that stands by itself: no part of a word, or of a number."""
    before = r"(?<!\d[.,])(?<![-−.])" if re.match(r"\.?\d", text) else ""
    return before + whole_word(text)


def same_number(right: Decimal, given: Decimal) -> bool:
    """Whether `given` is the number `right`, worked out further or less far where neither is whole.

    Then the longer one, rounded or cut to the places of the shorter, has to be that one, and the
    two may be apart by `CLOSE` of the right one.
    """
    if right == given:
        return True
    if _is_whole(right) or _is_whole(given):
        return False
    exact, other = Fraction(right), Fraction(given)
    apart = abs(exact - other)
    if apart > CLOSE * abs(exact):
        return False
    places = min(_places(right), _places(given))
    shorter, longer = sorted((right, given), key=_places)
    unit = Fraction(1, 10**places)
    rounded = apart * 2 <= unit
    cut = abs(Fraction(longer)) >= abs(Fraction(shorter)) and apart < unit
    return _places(shorter) != _places(longer) and (rounded or cut)


def plain_number(text: str, *, places: int = 10) -> str:
    """A number as people write it: ``56`` for ``56.0`` and ``1,200`` without its comma.

    More than so many decimal places are rounded. Other text, money and shares stay as they are.
    """
    text = text.strip()
    number = None if re.search(rf"{_MONEY}|%", text) else parse_number(text)
    return text if number is None else as_text(number, places=places)


def as_text(number: Decimal | float, *, places: int | None = None) -> str:
    """A finite number without an exponent, and without a point where it is whole."""
    exact = number if isinstance(number, Decimal) else Decimal(repr(number))
    text = f"{exact:f}"
    if places is not None and _places(exact) > places:
        text = f"{exact:.{places}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _is_whole(number: Decimal) -> bool:
    return number == number.to_integral_value()


def _places(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
