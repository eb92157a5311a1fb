"""Exact edges: one writer's change reaches one reader alone, and everything after it runs again.

The reader takes the residual stream of the corrupted run plus the writer's change; all else of the
run stays as it was up to the reader, so the change goes there straight, past everything between.
For heads this is path patching with MLPs frozen (``interp.patching.patch_paths``).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.forward.batch import in_batches
from interp.forward.hook_points import as_units, from_units, hook_name
from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, resume
from interp.forward.transfer import repeated_rows
from interp.patching.chunks import Demand
from interp.patching.edges.attribution import EdgeRuns
from interp.patching.edges.graph import LOGITS, Edge
from interp.patching.edges.layer_parts import normed, tensor_of
from interp.patching.edges.reader_gradients import hooked_mlp, replaced_input
from interp.patching.metrics import Metric, apply_metric
from interp.precision import widened


class ExactEdges:
    """Runs of some prompts in which single edges are patched.

    Args:
        runs: the prompts' runs.
        metric: of these prompts.
        demand: memory of a row.
        budget: memory that may be taken.
        done: is told how many edges were run.
    """

    def __init__(
        self, runs: EdgeRuns, metric: Metric, *, demand: Demand, budget: Any, done: Any
    ) -> None:
        self.runs, self.metric, self.demand, self.budget = runs, metric, demand, budget
        self.done = done
        self.graph = runs.graph
        self.unpatched = apply_metric(metric, runs.corrupted.logits)

    @torch.no_grad()
    def effects(self, edges: Sequence[Edge]) -> Float[Tensor, "prompt writer reader"]:
        """Effects of single edges; NaN for all others."""
        n_prompts = len(self.runs.changes)
        shape = (n_prompts, *self.graph.shape)
        values = self.runs.changes.new_full(shape, torch.nan)
        together: dict[tuple[int, Any], list[Edge]] = {}
        for edge in edges:
            together.setdefault(self._stage(edge[1]), []).append(edge)
        size = self.demand.rows_within(self.budget, n_prompts) // n_prompts
        for (layer, _), group in together.items():
            parts = halving(
                in_batches(group, size),
                lambda some, layer=layer: self._measured(layer, some),
                what="one edge",
                learn=lambda n: self.demand.learn(self.budget, n * n_prompts),
            )
            for some, found in parts:
                writers, readers = zip(*map(self.graph.index, some), strict=True)
                values[:, writers, readers] = found.to(values)
                self.done(n_prompts * len(some))
        return values

    def _stage(self, reader: str) -> tuple[int, Any]:
        """The first layer that runs, and what else readers share that are run together."""
        layer, input_of = self._place(reader)
        return layer, input_of is None

    def _measured(self, layer: int, edges: Sequence[Edge]) -> Float[Tensor, "prompt edge"]:
        """Effects of edges to the heads of a layer, or to its MLP, or to the logits."""
        runs, n_prompts = self.runs, len(self.runs.changes)
        rows = repeated_rows(n_prompts, len(edges), runs.changes.device)
        writers = [self.graph.index(edge)[0] for edge in edges]
        change = runs.changes[:, writers].transpose(0, 1).flatten(0, 1)
        logits = self._logits(layer, edges, rows=rows, change=change)
        return torch.stack(
            [
                apply_metric(self.metric, of_edge) - self.unpatched
                for of_edge in logits.split(n_prompts)
            ],
            dim=1,
        )

    def _logits(
        self,
        layer: int,
        edges: Sequence[Edge],
        *,
        rows: Tensor,
        change: Float[Tensor, "row pos d_model"],
    ) -> Float[Tensor, "row d_vocab"]:
        """The logits of runs in which the readers of edges take a change, edge by edge."""
        model, run, n_layers = self.runs.model, self.runs.corrupted, self.graph.n_layers
        if layer == n_layers:
            last = run.values["resid_post"][-1, rows].squeeze(2)
            return resume(model, run, layer=layer, rows=rows, residual=widened(last) + change)
        before = widened(run.resid_pre[layer, rows])
        patched: AbstractContextManager[Any] = nullcontext()
        hooks: list[Hook] = []
        inputs = [self._place(reader)[1] for _, reader in edges]
        if inputs[0] is None:
            patched = self._patched_mlp(layer, rows, before=before, change=change)
        else:
            n_prompts = len(rows) // len(edges)
            for place, input_of in enumerate(inputs):
                of_edge = slice(place * n_prompts, (place + 1) * n_prompts)
                residual = before[of_edge] + change[of_edge]
                assert input_of is not None
                hooks.append(self._patched_head(layer, input_of, residual, rows=of_edge))
        with patched:
            return resume(model, run, layer=layer, rows=rows, hooks=hooks)

    def _place(self, reader: str) -> tuple[int, tuple[str, int] | None]:
        """A reader's layer, and its query, key or value; None for the MLP and the logits."""
        size = len(self.graph.inputs) + 1
        layer, place = divmod(self.graph.readers.index(reader), size)
        return layer, self.graph.inputs[place] if reader != LOGITS and place < size - 1 else None

    def _patched_head(
        self, layer: int, input_of: tuple[str, int], residual: Tensor, *, rows: slice
    ) -> Hook:
        """The hook that gives one head what it makes of another residual stream, in some rows."""
        parts, (into, unit) = self.runs.parts[layer], input_of
        new = parts.project(into, normed(parts.norm, residual), unit)

        def put(value: Tensor, hook: object) -> Tensor:
            by_unit = as_units(value, into).clone()
            by_unit[rows, :, unit] = new.to(by_unit)
            return from_units(by_unit, into)

        return hook_name(into, layer), put

    def _patched_mlp(self, layer: int, rows: Tensor, *, before: Tensor, change: Tensor) -> Any:
        """While open, a layer's MLP reads the residual stream with a change."""
        parts, run = self.runs.parts[layer], self.runs.corrupted
        read = parts.read_by_mlp(before, run.values["attn_out"][layer, rows].squeeze(2))
        new = normed(parts.mlp_norm, read + change)

        def put_input(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = tensor_of(args, kwargs)
            return replaced_input(args, kwargs, new.to(given).reshape(given.shape))

        def put_output(module: Any, args: Any, output: Tensor) -> Tensor:
            return new.to(output).reshape(output.shape)

        return hooked_mlp(parts, put_input, put_output)
