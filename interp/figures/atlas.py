"""The heads of several models on one scale: where they are, and how much they do."""

from interp.figures.tables import where
from interp.figures.theme import DIVERGING, FAINT, INK, colour_bar, label, themed
from interp.lazy import go, pd

SHOWN_HEADS = 40
_SPREAD = 0.7
"""How much of a run's band its heads fill, from the first head of a layer to the last."""


def heads_by_depth(table: "pd.DataFrame", *, count: int = SHOWN_HEADS) -> "go.Figure":
    """Heads on the relative depth of their layer (x), a band for each run (y), the first on top.

    Within a band the first head of a layer is on top. Size and colour are the effect as a share of
    the run's largest; negative effects are crosses. Chosen heads have a dark rim.

    Args:
        table: a row a head; ``run``, ``layer``, ``head``, ``depth`` (0 to 1), ``place`` in its
            layer (0 to 1), ``effect`` in logits, ``share`` of the run's largest, ``selected``.
        count: how many heads of each run are drawn: those with the largest absolute share.
    """
    runs = list(dict.fromkeys(table["run"]))
    ordered = table.sort_values("share", key=lambda shares: -shares.abs(), kind="stable")
    parts = [where(ordered, ordered["run"] == run).head(count) for run in runs]
    # The larger ones are drawn over the smaller ones.
    rows = pd.concat(parts).sort_values("share", key=lambda shares: shares.abs(), kind="stable")
    band = rows["run"].map({run: at for at, run in enumerate(runs)})
    negative, chosen = rows["share"] < 0, rows["selected"]
    figure = go.Figure(
        go.Scatter(
            x=rows["depth"].tolist(),
            y=(band + (rows["place"] - 0.5) * _SPREAD).tolist(),
            mode="markers",
            marker={
                "size": (5 + 17 * rows["share"].abs().clip(upper=1)).tolist(),
                "symbol": ["x" if below else "circle" for below in negative],
                "color": rows["share"].tolist(),
                "colorscale": [list(stop) for stop in DIVERGING],
                **{"cmin": -1, "cmid": 0, "cmax": 1, "opacity": 0.9},
                "line": {
                    "color": [INK if is_chosen else "#a9aeb6" for is_chosen in chosen],
                    "width": [2 if is_chosen else 0.5 for is_chosen in chosen],
                },
                "colorbar": colour_bar("share of the run's largest effect", size=12),
            },
            customdata=[
                [label(run), f"{layer}.{head}", effect, share]
                for run, layer, head, effect, share in rows[
                    ["run", "layer", "head", "effect", "share"]
                ].itertuples(index=False)
            ],
            hovertemplate=(
                "<b>%{customdata[0]}, head %{customdata[1]}</b><br>effect %{customdata[2]:.3g} "
                "logits, share %{customdata[3]:.2f}<extra></extra>"
            ),
        )
    )
    for at in range(1, len(runs)):
        figure.add_hline(y=at - 0.5, line={"color": FAINT, "width": 1})
    themed(figure, width=860, height=130 + 80 * len(runs), margin={"l": 110, "t": 24})
    figure.update_xaxes(title_text="relative depth of the layer", range=[-0.03, 1.03])
    return figure.update_yaxes(
        tickvals=list(range(len(runs))),
        ticktext=[label(run) for run in runs],
        range=[len(runs) - 0.5, -0.5],
        showgrid=False,
    )
