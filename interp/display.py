"""What a notebook shows of a result: words, a small table, and the key figure.

A result class inherits from ``Displayed`` and says in ``_shown`` what there is to see.

A front end shows one representation of each output, the richest that it knows. One output with
both ``text/html`` and plotly's own type would show the figure in JupyterLab and lose the table. An
HTML figure would need plotly.js beside it, 4 MB for every result. So a result is two outputs:

1. words and table, as ``text/html``, and as plain text for terminals;
2. the figure, as plotly's chosen renderer writes it: in Jupyter its JSON, some 30 kB, which
   JupyterLab and VS Code draw without a network. In a terminal there is no second output.

A code host draws neither JSON nor scripts. To have pictures there, choose a renderer that writes
them too before the notebook is executed: ``PLOTLY_RENDERER=plotly_mimetype+png`` (needs the extra
``export`` and a Chromium). The output then holds both, and each front end takes what it knows.

Where only ``_repr_html_`` is asked for, the picture stands in it under the same renderer;
otherwise it names ``.plot()``.
"""

import base64
import html
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from interp.errors import UserError

logger = logging.getLogger(__name__)

MAX_ROWS = 8
_PICTURES = ("png", "svg")


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
        return result_html(self)

    def _ipython_display_(self) -> None:
        display_result(self)


def result_html(result: Displayed) -> str:
    """Words, tables and, under a renderer that makes pictures, the figure; needs no network."""
    shown = _shown_of(result)
    picture, note = "", ""
    if shown.figure is not None and not _wants_pictures():
        note = "The figure: .plot()"
    elif shown.figure is not None:
        figure, note = _figure_of(shown)
        picture = "" if figure is None else _picture(figure)
    return text_html(shown) + picture + _note(note)


def text_html(shown: Shown) -> str:
    """Words and tables only."""
    words = f"<p>{html.escape(shown.words)}</p>" if shown.words else ""
    return words + shown.fragment + "".join(table_html(one) for one in shown.tables)


def table_html(table: pd.DataFrame, *, rows: int = MAX_ROWS) -> str:
    """The first rows of a table, every cell escaped; says how many rows there are."""
    shown = table.head(rows).to_html(
        index=False, border=0, escape=True, na_rep="–", float_format=_number, justify="left"
    )
    if len(table) <= rows:
        return shown
    return shown + _note(f"{rows} of {len(table):,} rows: .to_dataframe()")


def display_result(result: Displayed) -> None:
    """Show words and table, then the figure by plotly's renderer, in IPython."""
    from IPython.display import display

    shown = _shown_of(result)
    figure, problem = _figure_of(shown)
    text = text_html(shown) + _note(problem)
    display({"text/plain": _plain(shown), "text/html": text}, raw=True)
    if figure is None or not pio.renderers.render_on_display:
        return
    bundle = _bundle(figure)
    if bundle:
        display({"text/plain": "[figure: .plot()]", **bundle}, raw=True)


def _shown_of(result: Displayed) -> Shown:
    """What there is to see; where a result is too small for its statistics, that."""
    try:
        return result._shown()
    except UserError as error:
        return Shown(f"{type(result).__name__}: {error}")


def _figure_of(shown: Shown) -> tuple[go.Figure | None, str]:
    """The figure, or why there is none."""
    if shown.figure is None:
        return None, ""
    try:
        return shown.figure(), ""
    except UserError as error:
        return None, f"No figure: {error}"


def _bundle(figure: go.Figure) -> dict[str, Any]:
    """What plotly's renderer writes; without pictures where these cannot be made."""
    try:
        return figure._repr_mimebundle_()
    except Exception as error:  # what a missing browser raises depends on the exporter
        logger.warning("no picture of the figure: %s", str(error).strip().split("\n")[0])
        return {"application/vnd.plotly.v1+json": json.loads(str(figure.to_json()))}


def _wants_pictures() -> bool:
    return bool(set(_PICTURES) & set(str(pio.renderers.default).split("+")))


def _picture(figure: go.Figure) -> str:
    """The figure as an image element; nothing where no picture could be made."""
    bundle = _bundle(figure)
    if "image/png" in bundle:
        source = f"data:image/png;base64,{bundle['image/png']}"
    elif "image/svg+xml" in bundle:
        data = base64.b64encode(bundle["image/svg+xml"].encode()).decode()
        source = f"data:image/svg+xml;base64,{data}"
    else:
        return ""
    return f'<img alt="figure" style="max-width:100%" src="{source}">'


def _note(text: str) -> str:
    return f'<p style="opacity:.75">{html.escape(text)}</p>' if text else ""


def _plain(shown: Shown) -> str:
    parts = [shown.words]
    for table in shown.tables:
        parts.append(table.head(MAX_ROWS).to_string(index=False, na_rep="–", float_format=_number))
    return "\n".join(part for part in parts if part)


def _number(value: Any) -> str:
    """A float of Python, numpy or pandas."""
    return f"{value:.3g}"
