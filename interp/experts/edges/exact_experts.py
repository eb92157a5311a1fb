"""Exact edges of an adapted model: into single experts, and past them into frozen projections.

What a reader computes when it takes the writer's change, less what it computes in the corrupted
run, is added to the output of its projection; all else of the run stays as it was up to there. An
expert's gate is the one that its router gives for the changed input, chosen among the others anew;
the other experts keep their gates.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.experts.edges.expert_graph import Reader
from interp.experts.edges.expert_nodes import ReadingExperts
from interp.experts.edges.expert_runs import ExpertRuns
from interp.forward.hook_points import hook_name
from interp.forward.partial import resume
from interp.patching.edges.exact import ExactEdges
from interp.patching.edges.graph import Edge
from interp.patching.edges.layer_parts import normed
from interp.precision import widened

Move = tuple[str, Any, Tensor]
"""A hook point; a unit of it, several, or None where it has none; by how much it changes."""


class ExactExpertEdges(ExactEdges):
    """Runs of some prompts of an adapted model in which single edges are patched."""

    runs: ExpertRuns

    def _stage(self, reader: str) -> tuple[int, Any]:
        """Experts of an MLP run together, and not with the MLP, whose input is another then."""
        found = self.runs.graph.reads[reader]
        return found.layer, (found.part, found.part == "mlp" and found.experts is None)

    def _logits(
        self,
        layer: int,
        edges: Sequence[Edge],
        *,
        rows: Tensor,
        change: Float[Tensor, "row pos d_model"],
    ) -> Float[Tensor, "row d_vocab"]:
        readers = [self.runs.graph.reads[reader] for _, reader in edges]
        if readers[0].part == "logits":
            return super()._logits(layer, edges, rows=rows, change=change)
        run, parts = self.runs.corrupted, self.runs.parts[layer]
        before = widened(run.resid_pre[layer, rows])
        norm, read = parts.norm, before
        if readers[0].part == "mlp":
            mixed = run.values["attn_out"][layer, rows].squeeze(2)
            norm, read = parts.mlp_norm, parts.read_by_mlp(before, mixed)
        x, moved = normed(norm, read), normed(norm, read + change)
        n_prompts = len(rows) // len(edges)
        moves: dict[str, list[tuple[slice, Any, Tensor]]] = {}
        for place, reader in enumerate(readers):
            some = slice(place * n_prompts, (place + 1) * n_prompts)
            for point, unit, by in self._moves(reader, x[some], moved[some]):
                moves.setdefault(point, []).append((some, unit, by))
        hooks = [(point, partial(_moved, moves=of_point)) for point, of_point in moves.items()]
        patched = nullcontext()
        if readers[0].part == "mlp" and readers[0].experts is None:
            # The hook stays on the norm from here on: nothing else may call it.
            patched = self._patched_mlp(layer, rows, before=before, change=change)
        with patched:
            return resume(self.runs.model, run, layer=layer, rows=rows, hooks=hooks)

    def _moves(self, reader: Reader, x: Tensor, moved: Tensor) -> Iterator[Move]:
        """What changes at which outputs when a reader takes ``moved`` in place of x."""
        layer = reader.layer
        if reader.unit is not None:
            into, unit = reader.unit
            project = partial(self.runs.parts[layer].project, into, unit=unit)
            yield hook_name(into, layer), unit, project(moved) - project(x)
            return
        for experts in self.runs.nodes.reading.get((layer, reader.part), ()):
            if reader.experts is None:  # the MLP reads anew, and the experts in it do not
                yield experts.projection.output, None, experts.added(x) - experts.added(moved)
            elif reader.experts == experts.nodes:
                by = experts.added(moved, reader.expert) - experts.added(x, reader.expert)
                yield from _at_points(experts, layer, by)


def _at_points(experts: ReadingExperts, layer: int, by: Tensor) -> Iterator[Move]:
    """A change of a projection's output, at the hook points that show it."""
    if not experts.into:
        yield experts.projection.output, None, by
    for into, columns in experts.into.items():
        yield hook_name(into, layer), slice(None), by[..., columns]


def _moved(value: Tensor, hook: Any, *, moves: Sequence[tuple[slice, Any, Tensor]]) -> Tensor:
    """A hook point's value, changed in some rows."""
    new = value.clone()
    for rows, unit, by in moves:
        if unit is None:
            new[rows] += by.to(new)
        else:
            new[rows, :, unit] += by.to(new)
    return new
