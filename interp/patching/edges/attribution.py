"""Edge attribution: every edge's effect to first order, EAP and EAP-IG.

The score of an edge is ``Σ (writer's change) · ∂metric/∂(what the reader takes)``, over positions,
for a change from the corrupted to the clean run: an estimate of metric(edge patched) −
metric(corrupted). Methods differ in where the gradient is taken:

* ``eap``: in the corrupted run (Syed et al., arXiv 2310.10348);
* ``clean-corrupted``: the mean of those in the clean and in the corrupted run;
* ``eap-ig``: the mean over ``steps`` runs between corrupted and clean *embeddings* (EAP-IG-inputs,
  Hanna et al., arXiv 2403.17806), at the middles of equal steps;
* ``eap-ig-activations``: the mean over ``steps`` runs in which the writers of one layer are between
  their corrupted and their clean outputs, each layer in turn.

Changes of all writers are kept for a chunk of prompts; gradients are made a layer at a time, and
scores summed as products. There is never an activation for each edge.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.forward.hook_points import as_units, from_units, hook_name
from interp.forward.partial import Hook, RecordedRun
from interp.models.hooked_model import HookedModel
from interp.patching.edges.graph import EdgeGraph
from interp.patching.edges.layer_parts import LayerParts
from interp.patching.edges.reader_gradients import ReaderGradient, reader_gradients
from interp.patching.metrics import Metric
from interp.precision import widened

KEPT = ("z", "mlp_out")
"""Components of the runs from which writers' changes are computed."""
Walk = Callable[[Metric, float], tuple[slice, Iterator[ReaderGradient]]]
"""The run a share of the way to the clean one: the writers it is for, and its gradients."""


@dataclass(frozen=True, eq=False)
class EdgeRuns:
    """Some prompts' clean and corrupted runs, and what changes between them.

    Attributes:
        parts: of every layer.
        graph: of the model.
        changes: by how much each writer adds more in the clean run, [prompt writer pos d_model].
    """

    model: HookedModel
    parts: Sequence[LayerParts]
    graph: EdgeGraph
    clean: RecordedRun
    corrupted: RecordedRun
    changes: Float[Tensor, "prompt writer pos d_model"]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: HookedModel,
        parts: Sequence[LayerParts],
        graph: EdgeGraph,
        *,
        clean: RecordedRun,
        corrupted: RecordedRun,
    ) -> "EdgeRuns":
        """From runs that keep ``KEPT``."""
        changes = [_change(clean.resid_pre[0], corrupted.resid_pre[0])[:, None]]
        for layer, of_layer in enumerate(parts):
            z, other = (widened(run.values["z"][layer]) for run in (corrupted, clean))
            changes.append(of_layer.head_writes(z, other - z))
            of_mlp = (run.values["mlp_out"][layer].squeeze(2) for run in (clean, corrupted))
            changes.append(_change(*of_mlp)[:, None])
        return cls(model, parts, graph, clean, corrupted, torch.cat(changes, dim=1))

    @property
    def size(self) -> tuple[int, int]:
        """How many positions run again, and how many there are."""
        return self.changes.shape[2], self.corrupted.batch.width

    def gradients(self, metric: Metric, method: str, steps: int) -> Iterator["Weighed"]:
        """Gradients, each with its weight in the mean, and the writers that it is for."""
        every = slice(None)
        if method in ("eap", "clean-corrupted"):
            runs = [self.corrupted] if method == "eap" else [self.corrupted, self.clean]
            for run in runs:
                found = self._readers(run, metric=metric)
                yield from (Weighed(*one_of, every, 1 / len(runs)) for one_of in found)
            return
        walks: Iterable[Walk] = [self._inputs] if method == "eap-ig" else self._layers()
        for walk in walks:
            for step in range(steps):
                writers, found = walk(metric, (step + 0.5) / steps)
                yield from (Weighed(*one_of, writers, 1 / steps) for one_of in found)

    def _inputs(self, metric: Metric, share: float) -> tuple[slice, Iterator[ReaderGradient]]:
        """The run whose embeddings are some way to the clean ones."""
        residual = _between(self.corrupted.resid_pre[0], self.clean.resid_pre[0], share)
        return slice(None), self._readers(self.corrupted, metric=metric, residual=residual)

    def _readers(self, run: RecordedRun, **options: Any) -> Iterator[ReaderGradient]:
        return reader_gradients(self.model, run, self.parts, graph=self.graph, **options)

    def _layers(self) -> Iterator["Walk"]:
        """The runs in which the embedding, the heads or the MLP of a layer are some way on."""

        def embedding(metric: Metric, share: float) -> Any:
            return slice(0, 1), self._inputs(metric, share)[1]

        yield embedding
        for layer in range(self.graph.n_layers):
            heads = self.graph.heads_of(layer)
            yield self._walk("z", layer, heads)
            yield self._walk("mlp_out", layer, slice(heads.stop, heads.stop + 1))

    def _walk(self, component: str, layer: int, writers: slice) -> "Walk":
        def walk(metric: Metric, share: float) -> tuple[slice, Iterator[ReaderGradient]]:
            values = [run.values[component][layer] for run in (self.corrupted, self.clean)]
            new = _between(values[0], values[1], share)

            def put(value: Tensor, hook: object) -> Tensor:
                return from_units(new.to(as_units(value, component)), component)

            hooks: list[Hook] = [(hook_name(component, layer), put)]
            found = self._readers(self.corrupted, metric=metric, layer=layer, hooks=hooks)
            return writers, found

        return walk


@dataclass(frozen=True)
class Weighed:
    """Gradients of some readers, for the scores of some writers.

    Attributes:
        readers: their places in the graph.
        gradients: of these readers.
        writers: places of the writers.
        weight: in the mean over runs.
    """

    readers: slice
    gradients: Float[Tensor, "prompt reader pos d_model"]
    writers: slice
    weight: float


def attribute_edges(
    runs: EdgeRuns, metric: Metric, *, method: str, steps: int
) -> Float[Tensor, "prompt writer reader"]:
    """First-order scores of all edges; NaN for pairs that are none."""
    graph, changes = runs.graph, runs.changes
    shape = (len(changes), *graph.shape)
    scores = changes.new_zeros(shape)
    for found in runs.gradients(metric, method, steps):
        moved, gradients = changes[:, found.writers].flatten(2), found.gradients.flatten(2)
        products = moved @ gradients.to(moved).mT
        scores[:, found.writers, found.readers] += found.weight * products
    return scores.masked_fill(~graph.exists.to(scores.device), torch.nan)


def _change(clean: Tensor, corrupted: Tensor) -> Tensor:
    return widened(clean) - widened(corrupted)


def _between(corrupted: Tensor, clean: Tensor, share: float) -> Tensor:
    """The value a share of the way from the corrupted to the clean run."""
    start = widened(corrupted)
    return start + share * (widened(clean) - start)
