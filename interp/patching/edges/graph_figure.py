"""The edges of a result as rows of a drawn graph."""

from collections.abc import Iterable, Sequence
from typing import Any

from interp.arguments import listed, shown
from interp.errors import UserError
from interp.lazy import pd
from interp.patching.circuit import head_node
from interp.patching.edges.circuit_of_edges import connected, nodes_of
from interp.patching.edges.graph import LOGITS, Edge, EdgeGraph

COLUMNS = ["writer", "node", "into", "reader", "score"]


def drawn_edges(table: "pd.DataFrame", graph: EdgeGraph, n: int) -> "pd.DataFrame":
    """About ``n`` edges on paths from the input to the logits, one row for each that is drawn.

    These are the paths of the first edges of the table: as many first edges are taken as leave no
    more than ``n`` on a path, or the fewest that make one. The edge into the key or value of a
    group is drawn to each query head of the group that is on a path, with the group's score.

    Args:
        table: columns ``writer``, ``reader``, ``score``, the first edges first.

    Raises:
        UserError: no path leads from the input to the logits.
    """
    edges = list(zip(table["writer"], table["reader"], strict=True))
    inside = _first_paths(edges, graph, n)
    scores = dict(zip(edges, table["score"], strict=True))
    writers = {writer for writer, _ in inside}
    rows = [
        (writer, node, into_of(reader), reader, scores[writer, reader])
        for writer, reader in edges
        if (writer, reader) in inside
        for node in nodes_of(graph, reader)
        if node in writers or node == LOGITS
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _first_paths(edges: Sequence[Edge], graph: EdgeGraph, n: int) -> set[Edge]:
    """The edges on paths, of the most first edges that leave at most ``n``, or one path."""
    low, high = 0, min(len(edges), n)
    while high < len(edges) and len(connected(graph, edges[:high])) <= n:
        low, high = high, min(len(edges), 2 * high)
    if len(found := connected(graph, edges[:high])) > n:
        while high - low > 1:
            middle = (low + high) // 2
            if len(connected(graph, edges[:middle])) > n:
                high = middle
            else:
                low = middle
        found = connected(graph, edges[:low]) or connected(graph, edges[:high])
    if not found:
        raise UserError("no path of these edges leads from the input to the logits")
    return found


def into_of(reader: str) -> str:
    """q, k or v of a head's reader; empty for another one."""
    return reader.partition("<")[2].rstrip(">")


def marked_nodes(highlight: Iterable[Any]) -> list[str]:
    """Names of nodes from names and from (layer, head) tuples."""
    found = []
    for node in listed("highlight", highlight, "names of nodes, or (layer, head)"):
        if isinstance(node, str):
            found.append(node)
        elif isinstance(node, tuple) and len(node) == 2:
            found.append(head_node(*node))
        else:
            raise UserError(f"{shown(node)} is no node: name it a3.h1 or m3, or give (layer, head)")
    return found
