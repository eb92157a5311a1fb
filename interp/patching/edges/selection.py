"""Which edges make a circuit: the first of a ranking, or the first that lead to the logits.

* ``top``: the edges with the largest scores. Those that no path connects with the input and the
  logits do nothing, and are left out of a circuit.
* ``greedy``: edges are added one by one, best first, from the logits down: an edge can be added
  once a node that reads through it has an edge in the circuit, or is the logits (``apply_greedy``
  of github.com/hannamw/EAP-IG). Every edge leads to the logits when it is added; whether one comes
  from the input is left to the later ones.

Both are orders of all edges: a larger circuit holds every smaller one.
"""

from heapq import heappop, heappush
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from interp.patching.edges.circuit_of_edges import nodes_of
from interp.patching.edges.graph import EdgeGraph
from interp.patching.effect_arrays import By, best_first

Select = Literal["top", "greedy"]


def top_order(scores: Float[np.ndarray, " pair"], by: By) -> Int[np.ndarray, " edge"]:
    """Places of the scored edges, largest first."""
    return best_first(scores, by=by)[: len(scores) - int(np.isnan(scores).sum())]


def greedy_order(
    graph: EdgeGraph, scores: Float[np.ndarray, "writer reader"], by: By
) -> Int[np.ndarray, " edge"]:
    """Places of the scored edges in the flattened scores, as ``greedy`` adds them.

    Edges whose readers nothing leads on from, as far as edges are scored, come last.
    """
    ranked = top_order(scores.ravel(), by)
    rank = {int(place): number for number, place in enumerate(ranked)}
    n_readers = len(graph.readers)
    into: dict[int, list[int]] = {}
    for place in rank:  # in the ranking's order
        into.setdefault(place % n_readers, []).append(place)
    waiting: list[tuple[int, int]] = []

    def reach(readers: list[int]) -> None:
        for reader in readers:
            for place in into.pop(reader, ()):
                heappush(waiting, (rank[place], place))

    readers_of: dict[str, list[int]] = {}
    for number, reader in enumerate(graph.readers):
        for node in nodes_of(graph, reader):
            readers_of.setdefault(node, []).append(number)
    found = []
    reach([n_readers - 1])
    while waiting:
        place = heappop(waiting)[1]
        found.append(place)
        reach(readers_of.get(graph.writers[place // n_readers], []))
    added = set(found)
    return np.array([*found, *(place for place in rank if place not in added)], dtype=int)
