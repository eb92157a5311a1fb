"""A circuit made of edges, in the form of EAP-IG's files.

Those files name queries, keys and values by query head. The edge to the key or value of a group is
written for each of the group's query heads, with an equal part of its score: the parts sum to it,
as the gradient of a group's key is the sum of its heads' gradients. In the circuit are those of
heads that lead on to the logits.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from interp.errors import UserError
from interp.patching.circuit import Circuit, head_node, mlp_node, parse_node
from interp.patching.edges.graph import INPUT, LOGITS, Edge, EdgeGraph


def circuit_of_edges(
    graph: EdgeGraph,
    scores: Float[np.ndarray, "writer reader"],
    kept: Int[np.ndarray, " edge"],
    *,
    d_model: int,
) -> Circuit:
    """The circuit of some edges, by their places in the flattened scores.

    Raises:
        UserError: no path leads from the input to the logits.
    """
    inside = connected(graph, graph.named(kept))
    if not inside:
        raise UserError(
            "no path of these edges leads from the input to the logits: keep more of them"
        )
    nodes = {writer for writer, _ in inside} | {LOGITS}
    edges: dict[str, Any] = {}
    for w, writer in enumerate(graph.writers):
        for r, reader in enumerate(graph.readers):
            if not bool(graph.exists[w, r]):
                continue
            score = float(np.nan_to_num(scores[w, r]))
            names = file_readers(graph, reader)
            kept_here = (writer, reader) in inside
            for name, node in zip(names, nodes_of(graph, reader), strict=True):
                entry = {"score": score / len(names), "in_graph": kept_here and node in nodes}
                edges[f"{writer}->{name}"] = entry
    heads = torch.full((graph.n_layers, graph.n_heads), torch.nan, dtype=torch.float64)
    mlps = torch.full((graph.n_layers,), torch.nan, dtype=torch.float64)
    every = [head_node(layer, h) for layer in range(graph.n_layers) for h in range(graph.n_heads)]
    every += [mlp_node(layer) for layer in range(graph.n_layers)]
    return Circuit(
        heads,
        mlps,
        d_model,
        graph.parallel,
        kept=frozenset(nodes & set(every)),
        left_out=frozenset({*every, INPUT, LOGITS} - nodes),
        edges=edges,
    )


def edges_of_circuit(graph: EdgeGraph, circuit: Circuit) -> list[Edge]:
    """The edges of a circuit, by the names of a graph.

    Raises:
        UserError: a circuit of another model's size or without edges, an edge that the graph does
            not have, or a key or value that some heads of its group alone read.
    """
    of_graph = graph.n_layers, graph.n_heads, graph.parallel
    n_layers, n_heads = circuit.heads.shape
    size = n_layers, n_heads, circuit.parallel
    if size != of_graph:
        raise UserError(
            f"the circuit is of a model with {_sized(*size)}, and this one has {_sized(*of_graph)}"
        )
    inside = {name for name, entry in (circuit.edges or {}).items() if _in_graph(entry)}
    leading = {name.partition("->")[0] for name in inside} | {LOGITS}
    found: list[Edge] = []
    for writer, reader in graph.every_edge():
        heads = zip(file_readers(graph, reader), nodes_of(graph, reader), strict=True)
        names = {f"{writer}->{name}": node for name, node in heads}
        if not (some := names.keys() & inside):
            continue
        # What a head reads that leads nowhere makes no difference.
        missing = {name for name, node in names.items() if node in leading} - some
        if missing:
            raise UserError(
                f"the circuit has {min(some)} and not {min(missing)}, but in this model both heads "
                "read the same key or value"
            )
        found.append((writer, reader))
        inside -= names.keys()
    if inside:
        raise UserError(f"the circuit has the edge {min(inside)}, which is none of this model")
    if not found:
        raise UserError("the circuit has no edges: there is nothing to run")
    return found


def _in_graph(entry: Any) -> bool:
    return entry if isinstance(entry, bool) else entry["in_graph"]


def _sized(n_layers: int, n_heads: int, parallel: bool) -> str:
    return f"{n_layers} layers of {n_heads} heads" + (" and parallel blocks" if parallel else "")


def file_readers(graph: EdgeGraph, reader: str) -> list[str]:
    """The names of a reader in a file: of its group's query heads for a key or a value."""
    if "<" not in reader or "<q>" in reader:
        return [reader]
    suffix = reader[reader.index("<") :]
    return [f"{node}{suffix}" for node in nodes_of(graph, reader)]


def nodes_of(graph: EdgeGraph, reader: str) -> list[str]:
    """The nodes that read through a reader: one, or the query heads of a key-value head."""
    node = reader.partition("<")[0]
    if "<" not in reader or "<q>" in reader:
        return [node]
    layer, group = parse_node(node)
    assert group is not None
    size = graph.n_heads // graph.n_kv_heads
    return [head_node(layer, group * size + member) for member in range(size)]


def connected(graph: EdgeGraph, edges: Iterable[Edge]) -> set[Edge]:
    """The edges on a path from the input to the logits, through edges of the set alone."""
    edges = list(edges)
    from_input = _reached(graph, edges, {INPUT}, forwards=True)
    to_logits = _reached(graph, edges, {LOGITS}, forwards=False)
    return {
        (writer, reader)
        for writer, reader in edges
        if writer in from_input and any(node in to_logits for node in nodes_of(graph, reader))
    }


def _reached(graph: EdgeGraph, edges: list[Edge], begun: set[str], *, forwards: bool) -> set[str]:
    """The nodes that a path of the edges leads to, or from which one leads on."""
    steps: dict[str, set[str]] = {}
    for writer, reader in edges:
        for node in nodes_of(graph, reader):
            first, then = (writer, node) if forwards else (node, writer)
            steps.setdefault(first, set()).add(then)
    found, waiting = set(begun), list(begun)
    while waiting:
        new = steps.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found
