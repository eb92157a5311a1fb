"""What a notebook shows of a result: a line of words, a small table, and the key figure.

A result class inherits from ``Displayed`` and says in ``_shown`` what there is to see. The HTML is
made in ``interp.report.rich``, which is loaded only when something is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Shown:
    """What there is to see of a result.

    Attributes:
        words: one or two plain sentences; escaped when shown.
        tables: shown from the top, a few rows of each; cells are escaped when shown.
        figure: gives the key figure; called only when something is shown.
        fragment: HTML of its own, whose text is already escaped.
    """

    words: str
    tables: tuple[pd.DataFrame, ...] = ()
    figure: Callable[[], Any] | None = None
    fragment: str = ""


class Displayed:
    """A result that a notebook shows as words, tables and a figure."""

    def _shown(self) -> Shown:
        raise NotImplementedError(f"{type(self).__name__} does not say what there is to see")

    def _repr_html_(self) -> str:
        from interp.report.rich import result_html

        return result_html(self)

    def _ipython_display_(self) -> None:
        from interp.report.rich import display_result

        display_result(self)
