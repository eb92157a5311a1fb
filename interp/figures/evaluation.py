"""Figures of effects by layer, of gain and cost, of random head sets and of templates.

A positive effect means that patching or constraining the head moves the answer towards the true
object; such heads carry the false premise. Names that come from data are escaped, since plotly
interprets HTML tags in its labels.
"""

from collections.abc import Mapping
from typing import Any

from interp.errors import UserError
from interp.figures.heatmap import head_heatmap
from interp.figures.measures import HELD_OUT, count_at, measure_at
from interp.figures.methods import method_agreement
from interp.figures.tables import rows_of_site, template_table, where
from interp.figures.theme import (
    BASELINE,
    CATEGORIES,
    CONSTRAINED,
    CONSTRAINED_BAR,
    FAINT_INK,
    INK,
    LEGEND_ABOVE,
    MUTED,
    NEGATIVE,
    POSITIVE,
    STRIPES,
    SYMBOLS,
    ZERO_LINE,
    interval_bars,
    label,
    themed,
)
from interp.lazy import go, pd, subplots

__all__ = [
    "answer_outcomes",
    "gain_against_cost",
    "gain_cost_curve",
    "head_heatmap",
    "layer_profile",
    "method_agreement",
    "preference_by_template",
    "random_null",
]


_KINDS = {"false_premise": "False premises", "true_premise": "True-premise twins"}
_OUTCOMES = {
    "mended": ("true object with the constraint only", CONSTRAINED, "/"),
    "right": ("true object in both answers", CONSTRAINED_BAR, ""),
    "broken": ("true object without the constraint only", POSITIVE, "/"),
    "wrong": ("true object in neither", BASELINE, ""),
}
"""The name, colour and pattern of each outcome of an answer."""


def layer_profile(
    heads: "pd.DataFrame", *, site: str | None = None, fdr: float = 0.05, unit: str = "logits"
) -> "go.Figure":
    """Sum of the effects of each layer's significant heads, positive and negative apart.

    `heads` as in `heads.csv`. Diamonds are the selected heads with their intervals. The interval of
    a sum needs the effects by prompt: see `HeadEffects.plot(by="layer")`.
    """
    rows = rows_of_site(heads, site)
    layers = list(range(int(rows["layer"].max()) + 1))
    significant = where(rows, rows["q_value"] <= fdr)
    figure = go.Figure()
    for name, colour, pattern, side in (
        ("positive, summed", POSITIVE, "", where(significant, significant["effect"] > 0)),
        ("negative, summed", NEGATIVE, "/", where(significant, significant["effect"] < 0)),
    ):
        sums = [float(side["effect"][side["layer"] == layer].sum()) for layer in layers]
        figure.add_bar(
            x=layers,
            y=sums,
            name=name,
            marker={"color": colour, "opacity": 0.8, "pattern": {"shape": pattern, **STRIPES}},
            hovertemplate=f"layer %{{x}}<br>{name}: %{{y:.4g}} {label(unit)}<extra></extra>",
        )
    chosen = where(rows, rows["selected"])
    figure.add_scatter(
        x=chosen["layer"].tolist(),
        y=chosen["effect"].tolist(),
        mode="markers",
        name="selected head",
        error_y=interval_bars(chosen, "effect", color=FAINT_INK, thickness=1.3, width=4),
        customdata=chosen[["head", "ci_low", "ci_high"]].to_numpy(dtype=float).tolist(),
        marker={
            "symbol": "diamond",
            "size": 10,
            "color": INK,
            "line": {"color": "#ffffff", "width": 1.5},
        },
        hovertemplate="layer %{x}, head %{customdata[0]:d}: %{y:.4g} "
        "[%{customdata[1]:.4g}, %{customdata[2]:.4g}]<extra>selected</extra>",
    )
    themed(figure, height=380, barmode="relative", bargap=0.25, legend=LEGEND_ABOVE)
    figure.update_xaxes(
        title_text="layer", showgrid=False, tick0=0, dtick=1 if len(layers) <= 12 else 5
    )
    figure.update_yaxes(title_text=f"effect, heads with q ≤ {fdr:g} ({label(unit)})", **ZERO_LINE)
    return figure


def gain_cost_curve(settings: "pd.DataFrame") -> "go.Figure":
    """Gain against cost over head counts, a line for each site and mode; a ring for the chosen one.

    `settings` as in `settings.csv`: gain is the rise of preference accuracy on false premises,
    cost the fall of P(true object) on the true-premise twins, both on the search split. Colour
    and marker show the mode, dash and filling the site. Only the chosen setting has intervals.
    """
    sites, modes = list(settings["site"].unique()), list(settings["mode"].unique())
    figure = go.Figure()
    lines = dict.fromkeys(zip(settings["site"], settings["mode"], strict=True))
    for site, mode in lines:
        rows = where(settings, (settings["site"] == site) & (settings["mode"] == mode))
        line = rows.sort_values("n_heads")
        colour = CATEGORIES[modes.index(mode) % len(CATEGORIES)]
        symbol = SYMBOLS[modes.index(mode) % len(SYMBOLS)]
        dashed = "solid" if sites.index(site) == 0 else "dot"
        hover = ["n_heads", "head_fraction", "gain_low", "gain_high", "cost_low", "cost_high"]
        figure.add_scatter(
            x=line["cost"].tolist(),
            y=line["gain"].tolist(),
            mode="lines+markers",
            name=f"{label(site)}, {label(mode)}",
            line={"color": colour, "width": 2, "dash": dashed},
            marker={"symbol": symbol if sites[0] == site else f"{symbol}-open", "size": 8},
            customdata=line[hover].to_numpy(dtype=float).tolist(),
            hovertemplate=(
                f"<b>{label(site)}, {label(mode)}</b><br>"
                "%{customdata[0]:d} heads (%{customdata[1]:.1%})<br>"
                "gain %{y:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]<br>"
                "cost %{x:.3f} [%{customdata[4]:.3f}, %{customdata[5]:.3f}]<extra></extra>"
            ),
        )
    _mark_chosen(figure, where(settings, settings["chosen"]))
    themed(figure, height=480, legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text="cost: fall of P(true object) on twins (share)", **ZERO_LINE)
    figure.update_yaxes(title_text="gain: rise of preference accuracy (share)", **ZERO_LINE)
    return figure


def gain_against_cost(table: "pd.DataFrame") -> "go.Figure":
    """Each method as a point: gain on false premises against cost on the twins, with intervals.

    ``table`` as ``interp.evaluation.baselines.table`` returns it. Up and left are better; the cost
    is the fall of P(true object), which changes long before the preference does.
    """
    figure = go.Figure()
    for index, row in enumerate(table.to_dict(orient="records")):
        point = table.iloc[[index]]
        figure.add_scatter(
            x=[row["cost_p_true"]],
            y=[row["gain"]],
            mode="markers",
            name=label(row["treatment"]),
            marker={
                "symbol": SYMBOLS[index % len(SYMBOLS)],
                "size": 11,
                "color": CATEGORIES[index % len(CATEGORIES)],
            },
            error_x=_reach(point, "cost_p_true", thickness=1, width=3),
            error_y=_reach(point, "gain", thickness=1, width=3),
            customdata=[[row["cost"], row["unchanged"], row["seconds"]]],
            hovertemplate=(
                f"<b>{label(row['treatment'])}</b><br>gain %{{y:.3f}}<br>"
                "fall of P(true object) on twins %{x:.3f}<br>"
                "fall of preference on twins %{customdata[0]:.3f}<br>"
                "twins' answers unchanged %{customdata[1]:.2f}<br>"
                "%{customdata[2]:.3g} s a question<extra></extra>"
            ),
        )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    figure.add_vline(x=0, line={"color": MUTED, "width": 1})
    themed(figure, height=460, hovermode="closest", legend=LEGEND_ABOVE)
    figure.update_xaxes(title_text="cost: fall of P(true object) on true-premise twins")
    return figure.update_yaxes(title_text="gain: rise of preference accuracy on false premises")


def random_null(null: "pd.DataFrame", evaluation: Mapping[str, Any]) -> "go.Figure":
    """Histogram of the preference accuracy of matched random head sets, the chosen set marked.

    `null` as in `null.csv`; the rows of the evaluation's own site, mode and head count are shown.
    Raises UserError if there are none.
    """
    values = null_values(null, evaluation)
    if not values:
        raise UserError(
            "null.csv has no random head sets for the evaluated site, mode and head count; "
            "run `interp evaluate` on this run again"
        )
    figure = go.Figure(
        go.Histogram(
            x=values,
            xbins={"start": -0.0125, "end": 1.0125, "size": 0.025},
            name=f"{len(values)} random sets",
            marker={"color": BASELINE, "line": {"color": MUTED, "width": 1}},
            hovertemplate="preference accuracy %{x}<br>%{y} random sets<extra></extra>",
        )
    )
    place = (*HELD_OUT, "false_premise")
    marks = (
        ("no constraint", (*place, "baseline", "preference_accuracy"), MUTED, "dash"),
        ("95 % of random sets", ("random_null", "preference_accuracy", "p95"), INK, "dot"),
        ("chosen heads", (*place, "constrained", "preference_accuracy"), CONSTRAINED, "solid"),
    )
    for name, keys, colour, dash in marks:
        measure = measure_at(evaluation, *keys)
        if measure is None:
            continue
        line = {"color": colour, "dash": dash, "width": 3 if dash == "solid" else 2}
        figure.add_vline(x=measure.value, line=line)
        name = f"{name}: {measure.value:.2f}"
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=name)
    themed(figure, height=340, legend=LEGEND_ABOVE)
    figure.update_xaxes(
        title_text="preference accuracy, held-out false premises", range=[-0.03, 1.03]
    )
    highest = int(pd.Series(values).floordiv(0.025).value_counts().max())
    figure.update_yaxes(title_text="random head sets", rangemode="tozero", dtick=1 + highest // 7)
    return figure


def preference_by_template(evaluation: Mapping[str, Any]) -> "go.Figure":
    """Preference accuracy of each held-out template, without and with the constraint.

    The upper panel shows false premises, the lower one their true-premise twins, with 95 %
    intervals.
    """
    table = template_table(evaluation)
    titles = ("False premises", "True-premise twins")
    figure = subplots.make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.13, subplot_titles=titles
    )
    styles = (("no constraint", BASELINE, ""), ("constrained", CONSTRAINED_BAR, "/"))
    for row, kind in enumerate(("false premise", "twin"), start=1):
        for run, colour, pattern in styles:
            bars = where(table, (table["kind"] == kind) & (table["run"] == run))
            figure.add_bar(
                row=row,
                col=1,
                x=[label(name) for name in bars["template"]],
                y=bars["value"].tolist(),
                error_y=interval_bars(
                    bars, "value", ends=("low", "high"), color=INK, thickness=1.3, width=4
                ),
                name=run,
                legendgroup=run,
                showlegend=row == 1,
                marker={"color": colour, "pattern": {"shape": pattern, **STRIPES}},
                customdata=bars[["low", "high"]].to_numpy(dtype=float).tolist(),
                hovertemplate=(
                    f"%{{x}}, {run}<br>"
                    "%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>"
                ),
            )
    themed(
        figure,
        height=540,
        barmode="group",
        bargap=0.35,
        bargroupgap=0.08,
        margin={"t": 84},
        legend={**LEGEND_ABOVE, "y": 1.09},
    )
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    figure.update_yaxes(range=[0, 1.04], title_text="preference accuracy", dtick=0.25)
    return figure


def answer_outcomes(answers: "pd.DataFrame") -> "go.Figure":
    """What the constraint does to greedy answers: the share of each outcome, with its count.

    ``answers`` has the columns ``kind`` and ``outcome`` of `interp.evaluation.AnswerPair`.

    Raises:
        UserError: there are no answers.
    """
    if answers.empty:
        raise UserError("there are no answers: call interp.evaluate with answers=True")
    counts = pd.crosstab(answers["kind"], answers["outcome"])
    kinds = [kind for kind in _KINDS if kind in counts.index]
    figure = go.Figure()
    for outcome, (name, colour, pattern) in _OUTCOMES.items():
        found = [int(counts.at[kind, outcome]) if outcome in counts else 0 for kind in kinds]
        totals = [int(counts.loc[kind].sum()) for kind in kinds]
        figure.add_bar(
            x=[count / total for count, total in zip(found, totals, strict=True)],
            y=[_KINDS[kind] for kind in kinds],
            orientation="h",
            name=name,
            customdata=[list(pair) for pair in zip(found, totals, strict=True)],
            marker={"color": colour, "pattern": {"shape": pattern, **STRIPES}},
            hovertemplate=f"{name}: %{{customdata[0]}} of %{{customdata[1]}}<extra></extra>",
        )
    legend = {**LEGEND_ABOVE, "traceorder": "normal"}  # by itself plotly lists the last bar first
    themed(figure, height=120 + 60 * len(kinds), barmode="stack", legend=legend)
    figure.update_xaxes(title_text="share of greedy answers", range=[0, 1])
    return figure.update_yaxes(autorange="reversed", showgrid=False)


def null_values(null: "pd.DataFrame", evaluation: Mapping[str, Any]) -> list[float]:
    """Preference accuracies of the random sets that match the evaluation's setting."""
    rows = where(
        null,
        (null["site"] == evaluation.get("site"))
        & (null["mode"] == evaluation.get("mode"))
        & (null["n_heads"] == count_at(evaluation, "n_heads")),
    )
    return [float(value) for value in rows["preference_accuracy"].dropna()]


def _reach(rows: "pd.DataFrame", value: str, **line: Any) -> dict[str, Any]:
    """The interval of a column whose ends are the columns ``…_low`` and ``…_high``."""
    ends = f"{value}_low", f"{value}_high"
    return interval_bars(rows, value, ends=ends, **line)


def _mark_chosen(figure: "go.Figure", chosen: "pd.DataFrame") -> None:
    """Draw a ring around the chosen settings, with their intervals and head counts."""
    if chosen.empty:
        return
    figure.add_scatter(
        x=chosen["cost"].tolist(),
        y=chosen["gain"].tolist(),
        mode="markers",
        name="chosen",
        marker={"symbol": "circle-open", "size": 17, "color": INK, "line": {"width": 2}},
        error_x=_reach(chosen, "cost", color=FAINT_INK, thickness=1.3, width=4),
        error_y=_reach(chosen, "gain", color=FAINT_INK, thickness=1.3, width=4),
        hoverinfo="skip",
    )
    for count, cost, gain in chosen[["n_heads", "cost", "gain"]].itertuples(index=False):
        figure.add_annotation(
            x=cost,
            y=gain,
            text=f"{count} heads",
            ax=-44,
            ay=-36,
            standoff=9,
            arrowcolor=MUTED,
            arrowhead=0,
            bgcolor="rgba(255,255,255,0.85)",
        )
