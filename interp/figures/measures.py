"""Reading numbers out of an ``evaluation.json`` and writing them for people.

A measure is ``[value, ci_low, ci_high]``: a mean over prompts with its 95 % interval over subjects.
A number that was not taken is ``null`` and is shown as a dash, never as a zero.
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
    """A value with its interval. `low` and `high` are both None where no interval was taken."""

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Check that the interval is whole and the right way round."""
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval needs both of its ends")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval [{self.low}, {self.high}] is the wrong way round")

    def format(self, digits: int = 2) -> str:
        """Write as ``0.69 [0.52, 0.83]``, or the value alone where there is no interval."""
        if self.low is None or self.high is None:
            return format_number(self.value, digits)
        low, high = format_number(self.low, digits), format_number(self.high, digits)
        return f"{format_number(self.value, digits)} [{low}, {high}]"


def format_number(value: float, digits: int = 2) -> str:
    """Write with `digits` decimals, and never as a negative zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def format_small(value: float) -> str:
    """Write with two significant digits: for p-values, q-values and divergences."""
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:.2g}"


def measure_at(
    evaluation: Mapping[str, Any], *keys: str, file: str = "evaluation.json"
) -> Measure | None:
    """The measure under a path of keys, or None where it is missing or null.

    Raises UserError if what stands there is not a number or ``[value, ci_low, ci_high]``.
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
    """Whatever stands under a path of keys, or None; UserError if a step is not an object."""
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
