"""Scores of edges on pairs of prompts, chunk by chunk, by any of the methods."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.patching.edges.attribution import EdgeRuns, attribute_edges
from interp.patching.edges.edge_pairs import Done, EdgePairs
from interp.patching.edges.exact import ExactEdges
from interp.patching.edges.graph import Edge
from interp.patching.metrics import Metric


def score_edges(
    pairs: EdgePairs,
    edges: Sequence[Edge],
    *,
    method: str,
    steps: int,
    by_edge: bool = False,
    runs_of: Callable[..., EdgeRuns] = EdgeRuns,
    exact_of: Callable[..., ExactEdges] = ExactEdges,
) -> tuple[Float[Tensor, "prompt ..."], dict[str, Tensor]]:
    """Scores of some edges, and by name the metric of the unpatched runs.

    Args:
        method, steps: as ``patch_edges`` takes them.
        by_edge: scores are [prompt edge], of these edges in their order; else
            [prompt writer reader], where attribution has scored all others as well.
        runs_of, exact_of: what takes the runs of some prompts, and runs single edges of them.
    """
    graph, exact = pairs.graph, method == "exact"
    writers, readers = map(list, zip(*map(graph.index, edges), strict=True))

    def score(runs: dict[str, Any], metric: Metric, done: Done) -> Tensor:
        between = runs_of(pairs.inputs.model, pairs.parts, graph, **runs)
        if exact:
            demand = pairs.demand(*between.size, with_graph=False)
            options: dict[str, Any] = {"demand": demand, "budget": pairs.inputs.budget}
            found = exact_of(between, metric, **options, done=done).effects(edges)
        else:
            found = attribute_edges(between, metric, method=method, steps=steps)
            done(len(found))
        return found[:, writers, readers] if by_edge else found

    return pairs.in_chunks(
        score,
        shape=(len(edges),) if by_edge else graph.shape,
        steps=len(edges) if exact else 1,
        with_graph=not exact,
        what="edges",
    )
