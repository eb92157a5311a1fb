"""What changes between two runs at experts that write, and the gradients at experts that read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.experts.edges.expert_graph import ExpertGraph
from interp.experts.edges.expert_nodes import ExpertNodes, ReadingExperts
from interp.forward.partial import Hook, RecordedRun, resume
from interp.patching.edges.attribution import EdgeRuns
from interp.patching.edges.graph import INTO
from interp.patching.edges.layer_parts import normed
from interp.patching.edges.reader_gradients import (
    ReaderGradient,
    RunGradients,
    pull_back,
    run_gradients,
)
from interp.precision import widened


@dataclass(frozen=True, eq=False)
class ExpertRuns(EdgeRuns):
    """Some prompts' clean and corrupted runs of an adapted model.

    Attributes:
        nodes: its experts.
        graph: with experts.
    """

    graph: ExpertGraph
    nodes: ExpertNodes = field(kw_only=True)

    def changes_of(self, layer: int) -> list[Float[Tensor, "prompt writer pos d_model"]]:
        """The changes of a layer's writers: heads, their experts, MLP, its experts."""
        of_heads, of_mlp = super().changes_of(layer)
        beside_heads, beside_mlp = (
            [self._written[some.projection.name] for some in self.nodes.writing.get(place, ())]
            for place in ((layer, "attention"), (layer, "mlp"))
        )
        for of_experts in beside_mlp:
            of_mlp = of_mlp - of_experts.sum(dim=1, keepdim=True)
        return [of_heads, *beside_heads, of_mlp, *beside_mlp]

    @cached_property
    @torch.no_grad()
    def _written(self) -> dict[str, Float[Tensor, "prompt expert pos d_model"]]:
        """By projection, how much more each of its experts writes in the clean run."""
        found: dict[str, Tensor] = {}
        writing = list(self.nodes.all_writing())
        if not writing:
            return found
        gates: dict[str, Tensor] = {}

        def add(value: Tensor, hook: Any, *, name: str, size: float) -> None:
            written = size * widened(gates.pop(name))[..., None] * widened(value)
            before = found.get(name)
            by_expert = written.transpose(1, 2)
            found[name] = by_expert.contiguous() if before is None else before.add_(by_expert)

        for sign, run in ((1, self.clean), (-1, self.corrupted)):
            hooks: list[Hook] = []
            for some in writing:
                name = some.projection.name
                hooks.append((some.projection.gate, partial(_note, into=gates, name=name)))
                adding = partial(add, name=name, size=sign * some.scale)
                hooks.append((some.projection.expert_out, adding))
            last = max(some.nodes.layer for some in writing)
            rows = run.batch.every_row
            resume(self.model, run, layer=0, rows=rows, hooks=hooks, stop=last + 1)
        return found

    def _readers(
        self, run: RecordedRun, *, hooks: Sequence[Hook] = (), **options: Any
    ) -> Iterator[ReaderGradient]:
        gates: dict[str, Tensor] = {}
        notes: list[Hook] = []
        points = {}
        for experts in self.nodes.all_reading():
            name = experts.projection.name
            notes.append((experts.projection.gate, partial(_note, into=gates, name=name)))
            if not experts.into:
                points[name, experts.nodes.layer] = experts.projection.output
        hooks = [*hooks, *notes]
        found = run_gradients(self.model, run, self.parts, hooks=hooks, points=points, **options)
        yield slice(self.graph.shape[1] - 1, None), found.of_logits
        for layer in reversed(found.layers):
            parts = self.parts[layer]
            read, whole = found.of_mlp(parts, layer)
            of_experts = self._of_experts(
                found, layer, "mlp", x=normed(parts.mlp_norm, read), gates=gates
            )
            frozen = whole - sum(some.sum(dim=1, keepdim=True) for some in of_experts)
            behind = torch.cat([frozen, *of_experts], dim=1)
            place = self.graph.readers_of_part(layer, "mlp")
            yield place, pull_back(parts.mlp_norm, read, behind)
            read, of_heads = found.of_attention(parts, layer)
            x = normed(parts.norm, read)
            of_experts = self._of_experts(found, layer, "attention", x=x, gates=gates)
            behind = torch.cat([of_heads, *of_experts], dim=1)
            place = self.graph.readers_of_part(layer, "attention")
            yield place, pull_back(parts.norm, read, behind)

    def _of_experts(
        self,
        found: RunGradients,
        layer: int,
        part: str,
        *,
        x: Float[Tensor, "prompt pos d_model"],
        gates: dict[str, Tensor],
    ) -> list[Float[Tensor, "prompt expert pos d_model"]]:
        """Gradients of a part's experts behind its norm, for each projection."""
        with torch.no_grad():
            return [
                experts.gradients(
                    x,
                    widened(gates[experts.projection.name]).to(x),
                    _at_output(experts, found, layer).to(x),
                )
                for experts in self.nodes.reading.get((layer, part), ())
            ]


def _at_output(
    experts: ReadingExperts, found: RunGradients, layer: int
) -> Float[Tensor, "prompt pos d_out"]:
    """The gradient at a projection's whole output."""
    if not experts.into:
        return widened(found.at[experts.projection.name, layer])
    parts = {into: widened(found.at[into, layer]) for into in INTO if into in experts.into}
    first = next(iter(parts.values()))
    whole = first.new_zeros(*first.shape[:2], experts.weights.up.shape[0])
    for into, gradient in parts.items():
        whole[..., experts.into[into].flatten()] = gradient.flatten(2)
    return whole


def _note(value: Tensor, hook: Any, *, into: dict[str, Tensor], name: str) -> None:
    into[name] = value.detach()
