"""The table of a run's largest effects on the terminal."""

import pandas as pd
from rich.table import Table

from interp.figures.tables import rich_table

SHOWN = 10


def effects_table(effects: pd.DataFrame, *, title: str) -> Table:
    """The first rows with three digits; a dash for what was not computed."""
    text = effects.head(SHOWN).map(
        lambda cell: f"{cell:.3g}" if isinstance(cell, float) else str(cell)
    )
    return rich_table(text.replace("nan", "–"), title=title)
