"""Named values as dots with their intervals, one in each row."""

from collections.abc import Iterable
from typing import Any

from interp.figures.theme import CONSTRAINED, MUTED, label, themed, whiskers
from interp.lazy import go


def dot_figure(
    names: Iterable[Any],
    values: Iterable[float],
    *,
    title: str,
    low: Iterable[float] | None = None,
    high: Iterable[float] | None = None,
    line: float | None = None,
    span: tuple[float, float] | None = None,
    emphasis: int | None = None,
) -> "go.Figure":
    """A dot for each value, the first on top, whiskers where there are intervals.

    Args:
        title: of the axis of values, with the unit.
        low, high: ends of the intervals; NaN for none.
        line: position of a thin reference line, such as chance.
        span: ends of the axis; by default it shows all values and 0.
        emphasis: the row that is compared with the others, which are then grey.
    """
    names, numbers = list(names), [float(value) for value in values]
    reach: dict[str, Any] | None = None
    if low is not None and high is not None:
        reach = whiskers(numbers, low, high, color=MUTED, thickness=1.5)
    rows = list(range(len(numbers)))
    colours = [CONSTRAINED if emphasis in (None, row) else MUTED for row in rows]
    figure = go.Figure(
        go.Scatter(
            x=numbers,
            y=rows,
            error_x=reach,
            mode="markers",
            marker={
                "size": 10,
                "color": colours,
                "symbol": ["diamond" if row == emphasis else "circle" for row in rows],
            },
            customdata=[label(name) for name in names],
            hovertemplate="%{customdata}: %{x:.4g}<extra></extra>",
        )
    )
    if line is not None:
        figure.add_vline(x=line, line={"color": MUTED, "width": 1})
    themed(figure, height=120 + 30 * len(rows), margin={"t": 24})
    figure.update_xaxes(title_text=label(title), range=span, rangemode="tozero")
    return figure.update_yaxes(
        tickvals=rows,
        ticktext=[label(name) for name in names],
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
    )
