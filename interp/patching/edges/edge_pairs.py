"""Pairs of prompts for methods of edges: checked, recorded, and cut into chunks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import check_choice
from interp.errors import UserError
from interp.forward.hook_points import check_component, hook_name
from interp.forward.partial import RecordedRun, record_run
from interp.forward.sizes import sizes_of
from interp.models.model_check import require
from interp.patching.alignment import Alignment, Positions, align
from interp.patching.checks import checked_together
from interp.patching.chunks import Demand, first_position, run_chunks
from interp.patching.edges.attribution import KEPT
from interp.patching.edges.graph import INTO, EdgeGraph
from interp.patching.edges.layer_parts import find_parts, is_parallel
from interp.patching.metrics import Metric, apply_metric, take_metrics
from interp.patching.patch_inputs import PatchInputs
from interp.precision import result_dtype
from interp.progress import progress_bar

Done = Callable[[int], object]
"""Is told how many prompts' steps are done."""
RunChunk = Callable[[dict[str, Any], Metric, Done], Tensor]
"""From the runs of some prompts (and their alignment, where spans align them), and their metric, to
their values."""


class EdgePairs:
    """Pairs of prompts, and the parts of the model that they run on.

    Args:
        positions: "all", of prompts of equal lengths, or named spans to align others by.

    Raises:
        UserError: unequal lengths without spans, or a model whose layers cannot be taken apart.
    """

    def __init__(self, inputs: PatchInputs, positions: Positions | str = "all") -> None:
        self.inputs = inputs
        for component in (*INTO, "z", "attn_out", "mlp_out"):
            check_component(component, inputs.model)
        require(inputs.model, "residual")
        clean, corrupted = inputs.clean, inputs.corrupted
        self.by_spans = isinstance(positions, Mapping)
        if not self.by_spans:
            check_choice("positions", positions, ["all"])
        if not self.by_spans and not (
            clean.tokens.shape == corrupted.tokens.shape and torch.equal(clean.mask, corrupted.mask)
        ):
            raise UserError(
                "edges need pairs of prompts of equal lengths, since what a reader takes is "
                "compared position by position; for others give patch_edges spans to align them "
                "by: positions={name: (spans of clean, spans of corrupted)}"
            )
        self.alignment = align(clean, corrupted, positions)
        self.parts = find_parts(inputs.model, corrupted)
        self.graph = EdgeGraph.of(inputs.model, parallel=is_parallel(self.parts))

    def in_chunks(
        self, run: RunChunk, *, shape: tuple[int, ...], steps: int, with_graph: bool, what: str
    ) -> tuple[Float[Tensor, "prompt ..."], dict[str, Tensor]]:
        """Values of all prompts, and by name the metric of their unpatched runs.

        Args:
            run: see ``RunChunk``; may be called again with the same prompts.
            shape: of a prompt's values.
            steps: what is counted for each prompt.
            with_graph: gradients are taken.
            what: names the progress bar.
        """
        inputs, values = self.inputs, self.inputs.empty(*shape)
        metrics = {"clean": inputs.empty(), "corrupted": inputs.empty()}

        def run_chunk(prompts: list[int]) -> None:
            rows, begun = torch.tensor(prompts), bar.n

            def found() -> Tensor:
                bar.n = begun
                runs, metric = self._recorded(prompts)
                for name, recorded in runs.items():
                    of_run = apply_metric(metric, recorded.logits)
                    metrics[name][rows] = of_run.to("cpu", values.dtype)
                given = runs | ({"alignment": self.aligned(prompts)} if self.by_spans else {})
                return run(given, metric, bar.update)

            values[rows] = checked_together(found).to("cpu", values.dtype)

        def demand(n_rerun: int, width: int) -> Demand:
            return self.demand(n_rerun, width, with_graph=with_graph)

        options: dict[str, Any] = {"metrics": [inputs.metric], "budget": inputs.budget}
        total = len(inputs.corrupted) * steps
        with progress_bar(total=total, description=what, shown=inputs.progress) as bar:
            for _ in run_chunks(run_chunk, self.alignment.at, demand, bar=bar, **options):
                pass
        return values, metrics

    @torch.no_grad()
    def _recorded(self, prompts: list[int]) -> tuple[dict[str, RecordedRun], Metric]:
        """The clean and the corrupted run of some prompts, and the metric for them."""
        inputs = self.inputs
        batches = {"clean": inputs.clean.take(prompts), "corrupted": inputs.corrupted.take(prompts)}
        (metric,) = take_metrics([inputs.metric], inputs.index(prompts))
        alignment = self.aligned(prompts)
        starts = dict.fromkeys(batches, first_position(alignment.at))
        if self.by_spans:
            starts["clean"] = int(alignment.clean_positions[alignment.at].min())
        options: dict[str, Any] = {"plain": False, "edits": [hook_name("q", 0)]}
        options["keep"] = ("attn_out", "resid_post", *KEPT)
        return {
            name: record_run(inputs.model, batch, start=starts[name], **options)
            for name, batch in batches.items()
        }, metric

    def aligned(self, prompts: Sequence[int]) -> Alignment:
        """The alignment of some prompts, in batches that are no wider than these prompts."""
        clean, corrupted = self.inputs.clean, self.inputs.corrupted
        drop, clean_drop = (b.width - b.take(prompts).width for b in (corrupted, clean))
        return self.alignment.take(self.inputs.index(prompts), drop=drop, clean_drop=clean_drop)

    def demand(self, n_rerun: int, width: int, *, with_graph: bool) -> Demand:
        """Memory of the runs, of the changes of all writers, and of a graph or of rows."""
        model = self.inputs.model
        sizes, n_writers, kept = sizes_of(model), len(self.graph.writers), 0
        longer = max(0, self.inputs.clean.width - self.inputs.corrupted.width)
        for extra in (0, longer):  # of the corrupted and of the clean run
            kept += sizes.kept(n_rerun + extra, width + extra, "attn_out", "resid_post", *KEPT)
        # The changes of all writers, twice while they are put together.
        kept += 2 * n_writers * n_rerun * model.cfg.d_model * result_dtype(model).itemsize
        if with_graph:
            kept += sizes.graph(n_rerun, width, watched="q")
            return Demand(kept, 0, model.cfg.n_layers)
        return Demand(kept, sizes.row(n_rerun, width, eager=True), model.cfg.n_heads)
