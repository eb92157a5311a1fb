"""The matrix of expert effects: the experts that matter most × tasks."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from interp.figures.theme import THEME, centred, label


def effects_figure(
    matrix: Float[np.ndarray, "projection expert task"],
    *,
    projections: Sequence[str],
    tasks: Sequence[str],
    source: str,
    top: int = 30,
) -> go.Figure:
    """A heat map: the ``top`` experts by largest absolute effect in any task × the tasks.

    Args:
        matrix: change of the loss, nats per answer token; NaN where there is no such expert.
        projections, tasks: the names along these axes.
        source: what was done to each expert, such as ``off``; the title names it.
    """
    size = np.nan_to_num(np.abs(matrix)).max(axis=-1)
    order = np.argsort(-size.ravel(), kind="stable")
    order = order[~np.isnan(matrix).all(axis=-1).ravel()[order]][:top]
    width = matrix.shape[1]
    rows = [f"{projections[one // width]}, expert {one % width}" for one in order]
    values = matrix.reshape(-1, matrix.shape[-1])[order]
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    figure = go.Figure()
    figure.add_heatmap(
        x=[label(task) for task in tasks],
        y=[label(row) for row in rows],
        z=[[None if np.isnan(cell) else float(cell) for cell in row] for row in values],
        **centred(limit),
        hoverongaps=False,
        colorbar={"title": {"text": "change of loss,<br>nats per token"}},
        hovertemplate="<b>%{y}</b><br>%{x}: %{z:.4g} nats per answer token<extra></extra>",
    )
    title = f"Experts, {label(source)}: change of loss by task (positive: it hurts)"
    return figure.update_layout(
        template=THEME,
        title={"text": title},
        height=max(260, 22 * len(rows) + 150),
        xaxis={"title": "task", "showgrid": False},
        yaxis={"title": "projection, expert", "autorange": "reversed", "showgrid": False},
    )
