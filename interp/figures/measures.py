"""Read numbers from an ``evaluation.json`` and format them.

A measure is ``[value, ci_low, ci_high]``: a mean over prompts with its 95 % interval over subjects.
A number that was not measured is ``null`` and is shown as a dash, never as zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.errors import UserError

MISSING = "–"
HELD_OUT = ("splits", "held_out")


@dataclass(frozen=True)
class Measure:
    """A value with its interval; `low` and `high` are both None without an interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Check that the interval has both ends, in order."""
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval needs both of its ends")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval [{self.low}, {self.high}] has its ends in reverse")

    def format(self, digits: int = 2) -> str:
        """Format as ``0.69 [0.52, 0.83]``, or as the value alone without an interval."""
        if self.low is None or self.high is None:
            return format_number(self.value, digits)
        low, high = format_number(self.low, digits), format_number(self.high, digits)
        return f"{format_number(self.value, digits)} [{low}, {high}]"


def format_number(value: float, digits: int = 2) -> str:
    """Format with `digits` decimals, and never as a negative zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def format_digits(value: float, digits: int = 3) -> str:
    """Format with `digits` significant digits, whole numbers in full: for effects in any unit."""
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{value:.{digits}g}" if value else "0"


def format_small(value: float) -> str:
    """Format with two significant digits: for p-values, q-values and divergences."""
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:.2g}"


def measure_at(
    evaluation: Mapping[str, Any], *keys: str, file: str = "evaluation.json"
) -> Measure | None:
    """The measure under a path of keys, or None if it is missing or null.

    Raises UserError if the value is neither a number nor ``[value, ci_low, ci_high]``.
    """
    found = value_at(evaluation, *keys, file=file)
    if found is None:
        return None
    if isinstance(found, list | tuple):
        if len(found) != 3:
            raise _malformed(file, keys, "must be [value, ci_low, ci_high]")
        value, low, high = (_number(part, file, keys) for part in found)
    else:
        value, low, high = _number(found, file, keys), None, None
    if value is None:
        return None
    try:
        return Measure(value, low, high)
    except ValueError as error:
        raise _malformed(file, keys, str(error)) from error


def count_at(
    evaluation: Mapping[str, Any], *keys: str, file: str = "evaluation.json"
) -> int | None:
    """The count under a path of keys (a number, or a measure whose value is the count)."""
    measure = measure_at(evaluation, *keys, file=file)
    return None if measure is None else round(measure.value)


def value_at(evaluation: Mapping[str, Any], *keys: str, file: str = "evaluation.json") -> Any:
    """The value under a path of keys, or None. Raises UserError if a parent is not an object."""
    found: Any = evaluation
    for depth, key in enumerate(keys):
        if found is None:
            return None
        if not isinstance(found, Mapping):
            raise _malformed(file, keys[:depth], "must be an object")
        found = found.get(key)
    return found


def _number(part: Any, file: str, keys: tuple[str, ...]) -> float | None:
    if part is None or (isinstance(part, float) and math.isnan(part)):
        return None
    if isinstance(part, bool) or not isinstance(part, int | float) or math.isinf(part):
        raise _malformed(file, keys, f"must hold numbers, not {part!r}")
    return float(part)


def _malformed(file: str, keys: tuple[str, ...], what: str) -> UserError:
    place = ".".join(keys) or "the whole file"
    return UserError(f"{file}: {place} {what}; run `interp evaluate` again")
