"""``patch_edges``: the effect of every edge between two nodes, by attribution or exactly."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from interp.arguments import check_choice, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Prompts, TokenBatch
from interp.forward.hook_points import check_component, hook_name
from interp.forward.memory import Budget
from interp.forward.partial import record_run
from interp.forward.sizes import sizes_of
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require
from interp.patching.alignment import align
from interp.patching.checks import checked_together
from interp.patching.chunks import Demand, DemandAt, first_position, run_chunks
from interp.patching.edges.attribution import KEPT, EdgeRuns, attribute_edges
from interp.patching.edges.exact import ExactEdges
from interp.patching.edges.graph import INTO, EdgeGraph
from interp.patching.edges.layer_parts import find_parts, is_parallel
from interp.patching.edges.result import EdgeEffects
from interp.patching.metrics import Metric, apply_metric, metric_name, take_metrics
from interp.patching.patch_inputs import PatchInputs
from interp.precision import result_dtype
from interp.progress import progress_bar

EdgeMethod = Literal["eap", "clean-corrupted", "eap-ig", "eap-ig-activations", "exact"]


@checked
@keeping_unhooked()
def patch_edges(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    method: str = "eap",
    steps: int = 5,
    edges: Iterable[Any] | None = None,
    groups: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> EdgeEffects:
    """Effect of taking each edge alone from the clean run, in the corrupted run.

    An edge leads from a writer (``input``, ``a3.h5``, ``m3``) to a reader (``a7.h1<q>``, ``m7``,
    ``logits``). Patched, the reader takes the corrupted run's residual stream plus the writer's
    change, clean less corrupted, and everything after the reader runs again. Norms are part of
    their reader, and of their writer where they come after it (Gemma): they are differentiated, not
    frozen. With grouped queries ``a7.h1<k>`` is the key of key-value head 1.

    Args:
        clean, corrupted: pairs of prompts of equal lengths.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        method: ``eap``, ``clean-corrupted``, ``eap-ig``, ``eap-ig-activations`` (see
            ``interp.patching.edges.attribution``) or ``exact``, which runs every edge.
        steps: of ``eap-ig`` and ``eap-ig-activations``.
        edges: only these, each ``"a3.h5->m7"`` or (writer, reader); by default all. Attribution
            takes as long for one as for all.
        groups: of each prompt, for intervals; by default each prompt its own.
        seed: of the intervals.
        budget: bytes that the call may take; by default as ``interp.forward.memory``.

    Returns:
        scores with ``to_dataframe``, ``circuit``, ``plot``, ``save`` and ``load``.

    Raises:
        UserError: unknown names, pairs of unequal lengths, a metric without a gradient where one is
            needed, a model whose layers cannot be taken apart, a budget too small for one prompt.
    """
    check_choice("method", method, get_args(EdgeMethod))
    steps = whole_number("steps", steps, least=1)
    shared: dict[str, Any] = {"groups": groups, "seed": seed, "budget": budget}
    inputs = PatchInputs(model, clean, corrupted, metric, **shared, progress=progress)
    for component in (*INTO, "z", "attn_out", "mlp_out"):
        check_component(component, model)
    require(model, "residual")
    _check_equal(inputs.clean, inputs.corrupted)
    call = _Call(inputs, method, steps)
    graph = call.graph
    chosen = None if edges is None else graph.check(edges)
    values, metrics = call.scores(chosen)
    if chosen is not None:
        wanted = torch.zeros_like(graph.exists)
        wanted[tuple(zip(*map(graph.index, chosen), strict=True))] = True
        values = values.masked_fill(~wanted, torch.nan)
    return EdgeEffects(
        values=values,
        graph=graph,
        d_model=model.cfg.d_model,
        corrupted=metrics["corrupted"],
        clean=metrics["clean"],
        method=f"{method}, {steps} steps" if method.startswith("eap-ig") else method,
        metric=metric_name(metric),
        groups=inputs.groups,
        seed=inputs.seed,
    )


class _Call:
    """One call of ``patch_edges``: its inputs, and how edges are scored."""

    def __init__(self, inputs: PatchInputs, method: str, steps: int) -> None:
        self.inputs, self.method, self.steps = inputs, method, steps
        self.parts = find_parts(inputs.model, inputs.corrupted)
        self.graph = EdgeGraph.of(inputs.model, parallel=is_parallel(self.parts))

    def scores(self, edges: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores Float[prompt writer reader], and by name the metric of the unpatched runs."""
        inputs = self.inputs
        values = inputs.empty(len(self.graph.writers), len(self.graph.readers))
        metrics = {"corrupted": inputs.empty(), "clean": inputs.empty()}
        changed = align(inputs.clean, inputs.corrupted, "all").at
        exact = self.method == "exact"
        if exact and edges is None:
            edges = [
                (self.graph.writers[w], self.graph.readers[r])
                for w, r in self.graph.exists.nonzero().tolist()
            ]
        total = len(inputs.corrupted) * (len(edges) if exact else 1)

        def run_chunk(prompts: list[int]) -> None:
            rows, begun = torch.tensor(prompts), bar.n

            def found() -> Tensor:
                bar.n = begun
                runs, metric = self._runs(prompts, metrics)
                if not exact:
                    return attribute_edges(runs, metric, method=self.method, steps=self.steps)
                start, width = runs.corrupted.start, runs.corrupted.batch.width
                demand = self._demand(width - start, width)
                options: dict[str, Any] = {"demand": demand, "budget": inputs.budget}
                return ExactEdges(runs, metric, done=bar.update, **options).effects(edges)

            values[rows] = checked_together(found).to("cpu", values.dtype)
            if not exact:
                bar.update(len(prompts))

        options: dict[str, Any] = {"metrics": [inputs.metric], "budget": inputs.budget}
        with progress_bar(total=total, description="edges", shown=inputs.progress) as bar:
            for _ in run_chunks(run_chunk, changed, self._demand, bar=bar, **options):
                pass
        return values, metrics

    @torch.no_grad()
    def _runs(self, prompts: list[int], metrics: dict[str, Tensor]) -> tuple[EdgeRuns, Metric]:
        """The recorded runs of some prompts, and the metric for them."""
        inputs, model, rows = self.inputs, self.inputs.model, torch.tensor(prompts)
        batches = {"clean": inputs.clean.take(prompts), "corrupted": inputs.corrupted.take(prompts)}
        (metric,) = take_metrics([inputs.metric], inputs.index(prompts))
        start = first_position(align(batches["clean"], batches["corrupted"], "all").at)
        runs = {}
        for name, batch in batches.items():
            keep = ("attn_out", "resid_post", *KEPT) if name == "corrupted" else KEPT
            run = record_run(
                model, batch, start=start, keep=keep, plain=False, edits=[hook_name("q", 0)]
            )
            metrics[name][rows] = apply_metric(metric, run.logits).to("cpu", result_dtype(model))
            runs[name] = run
        return EdgeRuns.of(model, self.parts, self.graph, **runs), metric

    @property
    def _demand(self) -> DemandAt:
        """Memory of the runs, the graph, and the changes of all writers."""
        model = self.inputs.model
        sizes, n_writers = sizes_of(model), len(self.graph.writers)
        itemsize = result_dtype(model).itemsize

        def demand(n_rerun: int, width: int) -> Demand:
            kept = 2 * sizes.kept(n_rerun, width, *KEPT)
            # The changes of all writers, twice while they are put together.
            kept += 2 * n_writers * n_rerun * model.cfg.d_model * itemsize
            if self.method != "exact":
                kept += sizes.graph(n_rerun, width, watched="q")
                return Demand(kept, 0, model.cfg.n_layers)
            return Demand(kept, sizes.row(n_rerun, width, eager=True), model.cfg.n_heads)

        return demand


def _check_equal(clean: TokenBatch, corrupted: TokenBatch) -> None:
    if clean.tokens.shape != corrupted.tokens.shape or not torch.equal(clean.mask, corrupted.mask):
        raise UserError(
            "edges need pairs of prompts of equal lengths: what a reader takes is compared "
            "position by position"
        )
