"""How a notebook displays a result: text, a small table, and the key figure.

A result class inherits from ``Displayed`` and returns the content from ``_shown``.

A front end shows only the richest representation of an output. An output with both ``text/html``
and plotly's MIME type would show the figure in JupyterLab without the table, and an HTML figure
would need plotly.js, 4 MB for every result. So a result is two outputs:

1. text and table, as ``text/html``, and as plain text for terminals;
2. the figure in the format of plotly's renderer: in Jupyter JSON of about 30 kB, which JupyterLab
   and VS Code draw offline. In a terminal there is no second output.

A code host draws neither JSON nor scripts. For images there, execute the notebook with a renderer
that adds them: ``PLOTLY_RENDERER=plotly_mimetype+png`` (needs the extra ``export`` and Chromium).

``_repr_html_`` has the image under such a renderer; otherwise it refers to ``.plot()``.
"""

import base64
import html
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interp.errors import UserError
from interp.lazy import go, pd, pio

logger = logging.getLogger(__name__)

MAX_ROWS = 8
_PICTURES = ("png", "svg")


@dataclass(frozen=True)
class Shown:
    """The content to display.

    Attributes:
        words: one or two sentences; escaped when shown.
        tables: the first rows of each are shown; cells are escaped when shown.
        figure: a function that makes the key figure, called only when needed.
        fragment: HTML whose text is already escaped.
        text: what a terminal shows behind the words and tables, such as the fragment's content.
    """

    words: str
    tables: "tuple[pd.DataFrame, ...]" = ()
    figure: Callable[[], Any] | None = None
    fragment: str = ""
    text: str = ""


class Displayed:
    """A result that a notebook displays as text, tables and a figure."""

    def _shown(self) -> Shown:
        raise NotImplementedError(f"{type(self).__name__} does not define _shown()")

    def __str__(self) -> str:
        """As in a terminal of IPython; ``repr`` has every field."""
        return _plain(_shown_of(self))

    def _repr_html_(self) -> str:
        return result_html(self)

    def _ipython_display_(self) -> None:
        display_result(self)


def result_html(result: Displayed) -> str:
    """Text, tables and, with a renderer that makes images, the figure; works offline."""
    shown = _shown_of(result)
    picture, note = "", ""
    wants_pictures = bool(set(_PICTURES) & set(str(pio.renderers.default).split("+")))
    if shown.figure is not None and not wants_pictures:
        note = "The figure: .plot()"
    elif shown.figure is not None:
        figure, note = _figure_of(shown)
        picture = "" if figure is None else _picture(figure)
    return text_html(shown) + picture + _note(note)


def text_html(shown: Shown) -> str:
    """Text and tables only."""
    words = f"<p>{html.escape(shown.words)}</p>" if shown.words else ""
    return words + shown.fragment + "".join(map(table_html, shown.tables))


def table_html(table: "pd.DataFrame", *, rows: int = MAX_ROWS) -> str:
    """The first rows of a table, escaped, with a note if there are more."""
    shown = table.head(rows).to_html(
        index=False, border=0, escape=True, na_rep="–", float_format=_number, justify="left"
    )
    if len(table) <= rows:
        return shown
    return shown + _note(f"{rows} of {len(table):,} rows: .to_dataframe()")


def display_result(result: Displayed) -> None:
    """Display text and tables, then the figure with plotly's renderer, in IPython."""
    # IPython is an optional package, and there is one wherever this is called.
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
    """The content; a message if the result is too small for its statistics."""
    try:
        return result._shown()
    except UserError as error:
        return Shown(f"{type(result).__name__}: {error}")


def _figure_of(shown: Shown) -> "tuple[go.Figure | None, str]":
    """The figure, or None and the reason."""
    if shown.figure is None:
        return None, ""
    try:
        return shown.figure(), ""
    except UserError as error:
        return None, f"No figure: {error}"


def _bundle(figure: "go.Figure") -> dict[str, Any]:
    """The output of plotly's renderer, without images if they cannot be made."""
    try:
        return figure._repr_mimebundle_()
    except Exception as error:  # what a missing browser raises depends on the exporter
        logger.warning("no picture of the figure: %s", str(error).strip().split("\n")[0])
        return {"application/vnd.plotly.v1+json": json.loads(str(figure.to_json()))}


def _picture(figure: "go.Figure") -> str:
    """The figure as an image element; empty if no image could be made."""
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
    return "\n".join(part for part in (*parts, shown.text) if part)


def _number(value: Any) -> str:
    """A float of Python, numpy or pandas."""
    return f"{value:.3g}"
