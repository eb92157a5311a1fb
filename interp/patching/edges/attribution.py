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
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.forward.hook_points import as_units, from_units, hook_name
from interp.forward.partial import Hook, RecordedRun
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import Alignment
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
        clean, corrupted: the runs, which kept ``KEPT``.
        alignment: of prompts that differ in length: nothing changes outside of its positions.
    """

    model: HookedModel
    parts: Sequence[LayerParts]
    graph: EdgeGraph
    clean: RecordedRun
    corrupted: RecordedRun
    alignment: Alignment | None = None

    @cached_property
    def changes(self) -> Float[Tensor, "prompt writer pos d_model"]:
        """By how much each writer adds more in the clean run."""
        with torch.no_grad():
            found = [self.change(lambda run: run.resid_pre[0])[:, None]]
            for layer in range(len(self.parts)):
                found += self.changes_of(layer)
            return torch.cat(found, dim=1)

    def changes_of(self, layer: int) -> list[Float[Tensor, "prompt writer pos d_model"]]:
        """The changes of a layer's writers, in the order of the graph."""
        z = widened(self.corrupted.values["z"][layer])
        of_heads = self.parts[layer].head_writes(z, self.change(partial(_value, "z", layer)))
        of_mlp = self.change(partial(_value, "mlp_out", layer))
        return [of_heads, of_mlp.squeeze(2)[:, None]]

    def change(self, of: Callable[[RecordedRun], Tensor]) -> Float[Tensor, "prompt pos *width"]:
        """By how much a value is larger in the clean run, at the corrupted run's positions."""
        corrupted, clean = widened(of(self.corrupted)), widened(of(self.clean))
        if self.alignment is None:
            return clean - corrupted
        start, shape = self.corrupted.start, (..., *(None,) * (corrupted.dim() - 2))
        at = self.alignment.at[:, start:][shape]
        taken = (self.alignment.clean_positions[:, start:] - self.clean.start).clamp(min=0)[shape]
        moved = clean.gather(1, taken.expand_as(corrupted))
        return torch.where(at, moved - corrupted, 0)

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
        residual = widened(self.corrupted.resid_pre[0]) + share * self.changes[:, 0]
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
            value = partial(_value, component, layer)
            new = widened(value(self.corrupted)) + share * self.change(value)

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
        # No product is needed with writers that run after these readers.
        n_before = int(graph.exists[:, found.readers].any(dim=1).sum())
        writers = slice(found.writers.start or 0, min(found.writers.stop or n_before, n_before))
        moved, gradients = changes[:, writers].flatten(2), found.gradients.flatten(2)
        products = moved @ gradients.to(moved).mT
        scores[:, writers, found.readers] += found.weight * products
    return scores.masked_fill(~graph.exists.to(scores.device), torch.nan)


def _value(component: str, layer: int, run: RecordedRun) -> Tensor:
    """A component's values in a layer of a run."""
    return run.values[component][layer]
