"""A circuit as a graph by layers: the input at the bottom, the logits on top.

Heads are circles, MLPs squares. Width is the score's size; orange and solid is positive, purple and
dashed negative. A letter at an edge's end says whether a head reads it as query, key or value.
Only layers with a node have a row. Within a row, nodes stand near what they are connected with.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from interp.errors import UserError
from interp.figures.theme import INK, MUTED, NEGATIVE, PAPER, POSITIVE, label, themed
from interp.lazy import go, pd

INPUT, LOGITS = "input", "logits"
_NODE = re.compile(r"(?:a(\d+)\.h(\d+)|m(\d+))")
_POINTS = 33
_LETTER = 0.45
"""How far below a node the letters stand, in rows."""
_WIDEST, _THINNEST = 8.0, 1.0
_SWEEPS = 12
MARK = "#fdeab5"
"""The ground of highlighted nodes."""
Row = tuple[int, int]
"""(layer, 0 for heads or 1 for the MLP); the input comes before all layers, the logits after."""
_ENDS: Mapping[str, Row] = {INPUT: (-1, 0), LOGITS: (10**9, 0)}


def circuit_graph(
    edges: "pd.DataFrame", *, metric: str, title: str, highlight: Collection[str] = ()
) -> "go.Figure":
    """The graph of some edges.

    Args:
        edges: columns ``writer``, ``node`` (who reads), ``into`` (q, k, v, or empty), ``reader``
            (its name in full, for hovering) and ``score``; one row an edge that is drawn.
        metric: the unit of the scores.
        highlight: names of nodes to mark; the edges into and out of them stay strong, and all
            others fade.

    Raises:
        UserError: no edges, or a highlighted node that is in none of them.
    """
    if edges.empty:
        raise UserError("there are no edges to draw")
    places = node_places(edges)
    if unknown := sorted(set(highlight) - set(places)):
        raise UserError(f"{unknown[0]} is not in the graph: draw more edges, or leave it out")
    marked = set(highlight)
    figure, largest = go.Figure(), float(edges["score"].abs().max()) or 1.0
    rows = edges.take(edges["score"].abs().to_numpy().argsort(kind="stable"))  # large ones on top
    letters: dict[tuple[str, str, int], tuple[float, float, str]] = {}
    for row in rows.to_dict("records"):
        faded = bool(marked) and not marked & {row["writer"], row["node"]}
        curve = _curve(places[row["writer"]], places[row["node"]])
        _add_edge(figure, row, curve, largest=largest, faded=faded, metric=metric)
        if row["into"] and not faded:
            x, y = next(point for point in curve if point[1] >= curve[-1][1] - _LETTER)
            # Edges that arrive side by side share a letter.
            letters[row["node"], row["into"], round(5 * x)] = (x, y, row["into"])
    _add_letters(figure, list(letters.values()))
    _add_nodes(figure, edges, places, marked=marked)
    return _laid_out(figure, places, title)


def node_places(edges: "pd.DataFrame") -> dict[str, tuple[float, float]]:
    """(x, y) of every node: y by layer, x so that connected nodes stand near each other."""
    pairs = list(zip(edges["writer"], edges["node"], strict=True))
    nodes = sorted({node for pair in pairs for node in pair}, key=_order)
    rows: dict[Row, list[str]] = {}
    for node in nodes:
        rows.setdefault(_row(node), []).append(node)
    near: dict[str, list[str]] = {node: [] for node in nodes}
    for writer, node in pairs:
        near[writer].append(node)
        near[node].append(writer)
    x = {
        node: place - (len(of_row) - 1) / 2
        for of_row in rows.values()
        for place, node in enumerate(of_row)
    }
    for sweep in range(_SWEEPS):
        for of_row in list(rows.values())[:: 1 if sweep % 2 else -1]:
            wish = {node: float(np.mean([x[other] for other in near[node]])) for node in of_row}
            for node, value in _spread(wish).items():
                x[node] = value
    y = {row: place for place, row in enumerate(sorted(rows))}
    return {node: (x[node], float(y[_row(node)])) for node in nodes}


def _spread(wish: Mapping[str, float]) -> dict[str, float]:
    """Places at least one apart, in the order of the wished ones, around their mean."""
    names = sorted(wish, key=lambda name: wish[name])
    found: list[float] = []
    for name in names:
        found.append(max(wish[name], found[-1] + 1) if found else wish[name])
    shift = float(np.mean([wish[name] for name in names]) - np.mean(found))
    return {name: place + shift for name, place in zip(names, found, strict=True)}


def _row(node: str) -> Row:
    if node in _ENDS:
        return _ENDS[node]
    match = _NODE.fullmatch(node)
    if match is None:
        raise UserError(f"{node!r} is no node: heads are named as a3.h1, MLPs as m3")
    layer, _, mlp = match.groups()
    return (int(mlp), 1) if layer is None else (int(layer), 0)


def _order(node: str) -> tuple[Row, int]:
    match = _NODE.fullmatch(node)
    return _row(node), int(match[2] or 0) if match else 0


def _curve(begin: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """Points of an edge: it leaves upwards, arrives from below, and bends around nodes between."""
    (x0, y0), (x1, y1) = begin, end
    rise = y1 - y0
    # A long edge between nodes in one column would run through the nodes between them.
    aside = 0.0 if rise <= 1.5 else 0.4 * np.sign((x1 + x0) / 2 or 1.0) * min(1.5, rise / 6)
    controls = [
        (x0, y0),
        (x0 + 2 * aside, y0 + rise / 3),
        (x1 + 2 * aside, y1 - rise / 3),
        (x1, y1),
    ]
    t = np.linspace(0, 1, _POINTS)
    weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    points = sum(w[:, None] * np.array(c) for w, c in zip(weights, controls, strict=True))
    return [(float(x), float(y)) for x, y in np.asarray(points)]


def _add_edge(
    figure: "go.Figure",
    row: Mapping[Any, Any],
    curve: Sequence[tuple[float, float]],
    *,
    largest: float,
    faded: bool,
    metric: str,
) -> None:
    score = float(row["score"])
    width = max(_THINNEST, _WIDEST * abs(score) / largest)
    name = f"<b>{label(row['writer'])} → {label(row['reader'])}</b>"
    figure.add_scatter(
        x=[x for x, _ in curve],
        y=[y for _, y in curve],
        mode="lines",
        line={
            "color": POSITIVE if score >= 0 else NEGATIVE,
            "width": width,
            "dash": "solid" if score >= 0 else "6px,3px",
        },
        opacity=0.12 if faded else 0.75,
        hoverinfo="text",
        hovertext=f"{name}<br>score {score:.4g} ({label(metric)})",
        showlegend=False,
    )


def _add_letters(figure: "go.Figure", letters: Sequence[tuple[float, float, str]]) -> None:
    figure.add_scatter(
        x=[x for x, _, _ in letters],
        y=[y for _, y, _ in letters],
        text=[letter for *_, letter in letters],
        mode="text",
        textfont={"size": 11, "color": INK, "weight": "bold"},
        hoverinfo="skip",
        showlegend=False,
    )


def _add_nodes(
    figure: "go.Figure",
    edges: "pd.DataFrame",
    places: Mapping[str, tuple[float, float]],
    *,
    marked: Collection[str],
) -> None:
    heads = [node for node in places if _NODE.fullmatch(node) and node.startswith("a")]
    others = {"circle": heads, "square": [node for node in places if node not in heads]}
    for symbol, nodes in others.items():
        into = [edges.loc[edges["node"] == node, "score"].sum() for node in nodes]
        out = [edges.loc[edges["writer"] == node, "score"].sum() for node in nodes]
        figure.add_scatter(
            x=[places[node][0] for node in nodes],
            y=[places[node][1] for node in nodes],
            text=[_short(node) for node in nodes],
            customdata=list(zip(map(label, nodes), into, out, strict=True)),
            mode="markers+text",
            textfont={"size": 11, "color": INK},
            marker={
                "symbol": symbol,
                "size": 34,
                "color": [MARK if node in marked else PAPER for node in nodes],
                "line": {
                    "color": INK,
                    "width": [2.5 if node in marked else 1 for node in nodes],
                },
            },
            hovertemplate="<b>%{customdata[0]}</b><br>edges in: %{customdata[1]:.4g}<br>"
            "edges out: %{customdata[2]:.4g}<extra></extra>",
            showlegend=False,
        )


def _short(node: str) -> str:
    """A node's name in its marker: 23.3 for a head, m20, in, out."""
    match = _NODE.fullmatch(node)
    if match is None:
        return {INPUT: "in", LOGITS: "out"}[node]
    return node if match[3] else f"{match[1]}.{match[2]}"


def _laid_out(
    figure: "go.Figure", places: Mapping[str, tuple[float, float]], title: str
) -> "go.Figure":
    xs, rows = [x for x, _ in places.values()], {y: _row(node) for node, (_, y) in places.items()}
    names = {(-1, 0): "input", _ENDS[LOGITS]: "logits"}
    ticks = [
        names.get(rows[y], f"layer {rows[y][0]}" if not rows[y][1] else f"MLP {rows[y][0]}")
        for y in sorted(rows)
    ]
    figure.update_xaxes(visible=False, range=[min(xs) - 1, max(xs) + 1])
    figure.update_yaxes(
        tickvals=sorted(rows),
        ticktext=ticks,
        range=[-0.6, len(rows) - 0.4],
        showgrid=False,
        showline=False,
        ticks="",
        tickfont={"size": 11, "color": MUTED},
    )
    return themed(
        figure,
        title={"text": label(title)},
        width=int(min(1400, max(560, 190 + 84 * (max(xs) - min(xs) + 2)))),
        height=130 + 58 * len(rows),
        hovermode="closest",
    )
