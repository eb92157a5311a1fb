"""Tables of results as text: numbers as pages and cards show them."""

from typing import Any

from interp.figures.measures import MISSING, format_digits, format_number, format_small
from interp.lazy import pd

_SMALL = ("p_value", "q_value")
_COUNTS = ("rank", "of")


def text_table(table: "pd.DataFrame", *, decimals: int | None = None) -> "pd.DataFrame":
    """The table as text, with dashes for missing values.

    Args:
        decimals: of every number that is not whole; by default numbers have three significant
            digits, since the effects of a probability are small beside those of logits, and p- and
            q-values two.
    """

    def text(name: str, value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        if value != value:
            return MISSING
        if name in _COUNTS:
            return str(round(value))
        if decimals is not None:
            return format_number(value, decimals)
        return format_small(value) if name in _SMALL else format_digits(value)

    return pd.DataFrame({name: [text(name, value) for value in table[name]] for name in table})
