"""The table of an intervention: one row for each head or expert under a constraint."""

from collections.abc import Iterable
from typing import Any

from interp.lazy import pd

COLUMNS = ("kind", "where", "number", "action", "place")


def action_name(mode: str, factor: float) -> str:
    """A mode, with the factor of ``scale``: such as ``scale 0.5``."""
    return f"scale {factor:g}" if mode == "scale" else mode


def unit_rows(
    kind: str, units: Iterable[tuple[int | str, int]], *, action: str, place: str
) -> list[dict[str, Any]]:
    """One row for each unit, which is (layer, head) or (projection, expert)."""
    return [
        {"kind": kind, "where": str(where), "number": number, "action": action, "place": place}
        for where, number in units
    ]


def unit_table(rows: Iterable[dict[str, Any]]) -> "pd.DataFrame":
    """The rows as a table, which has all columns even without rows."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS))
