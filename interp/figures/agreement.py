"""The figure of whether experts affect the task that is routed to them."""

import pandas as pd
import plotly.graph_objects as go

from interp.figures.tables import where
from interp.figures.theme import CATEGORIES, FAINT_INK, MUTED, THEME, label


def agreement_figure(table: pd.DataFrame) -> go.Figure:
    """A point an expert: effect against load, both above the other tasks' mean.

    ``table`` as ``RoutingAgreement.to_dataframe`` gives it. Filled: the task that is routed to the
    expert most is the one that it affects most. Small: its effect is not significant.
    """
    figure = go.Figure()
    for agree, name, colour, symbol in (
        (True, "same task", CATEGORIES[0], "circle"),
        (False, "another task", CATEGORIES[1], "diamond-open"),
    ):
        rows = where(table, table["agree"] == agree)
        figure.add_scatter(
            x=(rows["load"] - rows["load_elsewhere"]).tolist(),
            y=(rows["effect"] - rows["effect_elsewhere"]).tolist(),
            mode="markers",
            name=f"routed most and affected most: {name}",
            marker={
                "symbol": symbol,
                "color": [colour if one else FAINT_INK for one in rows["significant"]],
                "size": [9 if one else 5 for one in rows["significant"]],
            },
            customdata=[
                [layer, label(target), expert, label(routed), label(affected), q_value]
                for layer, target, expert, routed, affected, q_value in rows[
                    ["layer", "target", "expert", "routed_task", "affected_task", "q_value"]
                ].itertuples(index=False)
            ],
            hovertemplate=(
                "<b>layer %{customdata[0]}, %{customdata[1]}, expert %{customdata[2]}</b><br>"
                "routed most: %{customdata[3]}, %{x:.3g} above the other tasks<br>"
                "affected most: %{customdata[4]}, %{y:.3g} nats above<br>"
                "q-value %{customdata[5]:.3g}<extra></extra>"
            ),
        )
    figure.update_layout(template=THEME, height=460, legend={"y": 1.02, "yanchor": "bottom"})
    zero = {"zeroline": True, "zerolinecolor": MUTED}
    figure.update_xaxes(title_text="load above the other tasks' (share)", **zero)
    return figure.update_yaxes(
        title_text="effect above the other tasks' (nats per answer token)", **zero
    )
