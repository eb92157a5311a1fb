"""The theme of every figure: colours that survive colour blindness and black-and-white print.

Each figure is given the template ``THEME``; nothing is registered with plotly, so importing the
package does not change a notebook's own figures.
"""

import html
from collections.abc import Iterable
from typing import Any

import numpy as np

from interp.lazy import go

INK = "#22262b"
MUTED = "#69707a"
FAINT = "#e4e6e9"
FAINT_INK = "rgba(34,38,43,0.45)"
PAPER = "#ffffff"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'

POSITIVE = "#b0560a"
NEGATIVE = "#55378f"
BASELINE = "#cfd4da"
CONSTRAINED = "#1f5f99"
CONSTRAINED_BAR = "#6b9cc7"

# Purple (negative) over white to orange (positive): distinct under the common kinds of colour
# blindness, and lightest in the middle, so that grey print still shows the size.
DIVERGING: tuple[tuple[float, str], ...] = (
    (0.0, "#3b1f70"),
    (0.2, "#7c66b0"),
    (0.4, "#cfc8e4"),
    (0.5, "#fbfaf8"),
    (0.6, "#f9d3a4"),
    (0.8, "#d98128"),
    (1.0, "#7d3a04"),
)

SEQUENTIAL: tuple[tuple[float, str], ...] = ((0.0, "#fbfaf8"), (0.5, "#d98128"), (1.0, "#7d3a04"))
"""For values without a sign; darker is more."""


def centred(limit: float, *, middle: float = 0.0) -> dict[str, Any]:
    """Settings of a heat map: diverging colours, white at ``middle``, ``limit`` to either side."""
    return {
        "colorscale": [list(stop) for stop in DIVERGING],
        "zmin": middle - limit,
        "zmid": middle,
        "zmax": middle + limit,
        "xgap": 1,
        "ygap": 1,
    }


# Eight hues of similar weight that remain distinct to colour-blind readers.
CATEGORIES: tuple[str, ...] = (
    "#1f5f99",
    "#c4620c",
    "#2a8c72",
    "#8a4f9e",
    "#b8920f",
    "#4f9fd1",
    "#9b3a2c",
    "#5d646d",
)
# White stripes on a bar: they tell two kinds of bar apart in print.
STRIPES = {
    "fillmode": "overlay",
    "fgcolor": "#ffffff",
    "fgopacity": 0.55,
    "size": 6,
    "solidity": 0.2,
}
SYMBOLS: tuple[str, ...] = ("circle", "square", "triangle-up", "diamond", "x", "cross")

_AXIS = {
    "showline": True,
    "linecolor": MUTED,
    "linewidth": 1,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": MUTED,
    "gridcolor": FAINT,
    "zeroline": False,
    "zerolinewidth": 2,
    "automargin": True,
    "title": {"standoff": 10, "font": {"size": 13}},
    "tickfont": {"size": 12, "color": INK},
}

THEME: dict[str, Any] = {
    "data": {
        "bar": [
            {
                "error_x": {"color": INK},
                "error_y": {"color": INK},
                "marker": {"line": {"color": FAINT, "width": 0.5}},
            }
        ],
        "heatmap": [{"colorbar": {"outlinewidth": 0, "ticks": ""}}],
        "histogram": [{"marker": {"line": {"color": FAINT, "width": 0.5}}}],
    },
    "layout": {
        "autotypenumbers": "strict",  # a name such as "1984" is no number
        "hovermode": "closest",
        "coloraxis": {"colorbar": {"outlinewidth": 0, "ticks": ""}},
        "annotationdefaults": {"arrowcolor": INK, "arrowhead": 0, "arrowwidth": 1},
        "shapedefaults": {"line": {"color": INK}},
        "font": {"family": FONT, "size": 13, "color": INK},
        "title": {
            "font": {"size": 15, "color": INK},
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 0.97,
            "yref": "container",
            "yanchor": "top",
        },
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "colorway": list(CATEGORIES),
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {
            "bgcolor": PAPER,
            "bordercolor": MUTED,
            "align": "left",
            "font": {"family": FONT, "size": 13, "color": INK},
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "font": {"size": 12},
            "bgcolor": "rgba(0,0,0,0)",
        },
        "margin": {"l": 56, "r": 16, "t": 56, "b": 56},
    },
}


def themed(figure: "go.Figure", **layout: Any) -> "go.Figure":
    """The figure in `THEME`, which stands in place of the session's template, and its layout.

    ``update_layout`` would merge the theme into that template, key by key: other colours in a
    notebook that has a template of its own, and most of the time that a report takes.
    """
    figure.layout.template = THEME
    return figure.update_layout(**layout)


LEGEND_ABOVE = {"y": 1.02, "yanchor": "bottom"}
ZERO_LINE = {"zeroline": True, "zerolinecolor": MUTED}


def cells(grid: np.ndarray) -> list[list[float | None]]:
    """The rows of a matrix as plotly takes them: None, an empty cell, for NaN."""
    return [[None if np.isnan(cell) else float(cell) for cell in row] for row in grid]


def colour_bar(title: str, *, size: int | None = None, **options: Any) -> dict[str, Any]:
    """A thin vertical colour bar, its title (in a font of ``size`` pixels) beside it."""
    font = {"font": {"size": size}} if size else {}
    return {"title": {"text": title, "side": "right", **font}, "thickness": 10, **options}


def signed_bars(values: Iterable[float]) -> dict[str, Any]:
    """The marker of bars that are coloured by sign; the negative ones are striped too."""
    positive = [value >= 0 for value in values]
    return {
        "color": [POSITIVE if up else NEGATIVE for up in positive],
        "opacity": 0.85,
        "pattern": {"shape": ["" if up else "/" for up in positive], **STRIPES},
    }


def interval_bars(
    rows: Any, value: str, *, ends: tuple[str, str] = ("ci_low", "ci_high"), **line: Any
) -> dict[str, Any]:
    """`whiskers` of the columns ``value`` and ``ends`` of a table."""
    return whiskers(rows[value], rows[ends[0]], rows[ends[1]], **line)


def whiskers(
    values: Iterable[Any], low: Iterable[Any], high: Iterable[Any], **line: Any
) -> dict[str, Any]:
    """Error bars (``error_x``, ``error_y``) from the ends of intervals; NaN for no interval."""
    middle, bottom, top = (np.array(list(part), dtype=float) for part in (values, low, high))
    return {
        "type": "data",
        "symmetric": False,
        "array": np.nan_to_num(top - middle).tolist(),
        "arrayminus": np.nan_to_num(middle - bottom).tolist(),
        **line,
    }


def shown_token(text: str, *, longest: int = 14, space: bool = False) -> str:
    """A token's text with line ends and empty text made visible, for a place that escapes it.

    Args:
        space: show a space before it, which tells apart two tokens of a vocabulary.
    """
    shown = text.replace("\r", "").replace("\n", "↵").strip(" ")
    if space and shown and text.startswith(" "):
        shown = f"␣{shown}"
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return shown or ("␣" if text else "·")


def token_label(text: str, *, longest: int = 14) -> str:
    """A token's text for a tick or a hover: `shown_token`, escaped."""
    return label(shown_token(text, longest=longest))


def label(text: Any) -> str:
    """Text escaped for a plotly label, which would interpret markup."""
    return html.escape(str(text), quote=False)
