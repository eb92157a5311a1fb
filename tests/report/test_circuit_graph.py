"""The graph of a circuit: its nodes stand by layer, its edges are those on a path, by size."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import UserError
from interp.figures.circuit_graph import circuit_graph, node_places
from interp.figures.theme import NEGATIVE, POSITIVE
from interp.patching import EdgeEffects
from interp.patching.edges.graph import EdgeGraph
from interp.patching.edges.graph_figure import marked_nodes

GRAPH = EdgeGraph(n_layers=2, n_heads=4, n_kv_heads=2)
SCORES = {
    ("input", "a0.h1<q>"): 3.0,
    ("a0.h1", "a1.h0<k>"): -2.0,  # the key of group 0: heads 0 and 1
    ("a1.h0", "logits"): 4.0,
    ("a1.h3", "logits"): 9.0,  # nothing leads to this head
    ("input", "m0"): 1.0,
    ("m0", "logits"): 0.5,
}


def effects() -> EdgeEffects:
    values = torch.full((2, *GRAPH.shape), torch.nan)
    values[:, GRAPH.exists] = 0.0
    for edge, score in SCORES.items():
        values[(slice(None), *GRAPH.index(edge))] = score
    metric = torch.zeros(2)
    return EdgeEffects(values, GRAPH, 8, metric, metric, method="eap", metric="logits")


def lines(figure: Any) -> dict[str, tuple[float, str, float]]:
    return {
        trace.hovertext.split("</b>")[0][3:]: (trace.line.width, trace.line.color, trace.opacity)
        for trace in figure.data
        if trace.mode == "lines"
    }


def test_the_graph_of_the_first_paths() -> None:
    figure = effects().plot(kind="graph", n=3)
    drawn = lines(figure)
    names = {name.replace("&lt;", "<").replace("&gt;", ">") for name in drawn}
    assert names == {"input → a0.h1<q>", "a0.h1 → a1.h0<k>", "a1.h0 → logits"}
    widths = sorted(width for width, *_ in drawn.values())
    assert widths == [4.0, 6.0, 8.0]  # 2, 3 and 4 of 4
    colours = {name.split(" ")[0]: colour for name, (_, colour, _) in drawn.items()}
    assert colours == {"input": POSITIVE, "a0.h1": NEGATIVE, "a1.h0": POSITIVE}


def test_more_edges_have_more_paths() -> None:
    drawn = lines(effects().plot(kind="graph", n=5))
    assert len(drawn) == 5
    assert not any("a1.h3" in name for name in drawn)


def test_marked_nodes_keep_their_edges_strong() -> None:
    drawn = lines(effects().plot(kind="graph", n=5, highlight=[(1, 0)]))
    strong = {name for name, (*_, opacity) in drawn.items() if opacity > 0.5}
    assert len(strong) == 2
    assert all("a1.h0" in name for name in strong)


def test_nodes_stand_by_layer_and_apart() -> None:
    edges = pd.DataFrame(
        [
            ("input", "a0.h0"),
            ("input", "a0.h1"),
            ("a0.h0", "m3"),
            ("a0.h1", "m3"),
            ("m3", "logits"),
        ],
        columns=["writer", "node"],
    )
    places = node_places(edges)
    heights = [places[node][1] for node in ("input", "a0.h0", "a0.h1", "m3", "logits")]
    assert heights == [0, 1, 1, 2, 3]
    assert abs(places["a0.h0"][0] - places["a0.h1"][0]) >= 1
    assert all(np.isfinite(place).all() for place in places.values())


def test_a_circuit_that_was_read_is_drawn(tmp_path: Path) -> None:
    circuit = effects().circuit(6)
    path = circuit.save(tmp_path / "circuit.json")
    figure, less = type(circuit).load(path).plot(), circuit.plot(n=2)
    # The key of a group is written for each of its heads; the nodes without a path are left out.
    assert {"a0.h1 → a1.h0&lt;k&gt;", "a1.h0 → logits", "m0 → logits"} <= set(lines(figure))
    assert len(list(less.select_traces())) < len(list(figure.select_traces()))


def test_what_cannot_be_drawn_is_told() -> None:
    with pytest.raises(UserError, match="not in the graph"):
        effects().plot(kind="graph", n=3, highlight=["m1"])
    with pytest.raises(UserError, match="no node"):
        marked_nodes([3])
    empty = pd.DataFrame([], columns=["writer", "node", "into", "reader", "score"])
    with pytest.raises(UserError, match="no edges"):
        circuit_graph(empty, metric="logits", title="")
