"""The graph of an adapted model's residual stream, with experts as nodes of their own.

An expert is named by its layer, by its projection's short name in TransformerLens and by its
number: ``a3.q.e2`` is expert 2 of the query projection of layer 3, ``m3.in.e2`` and ``m3.gate.e2``
are of the MLP's. Experts of ``q``, ``k``, ``v`` and ``qkv`` (where the three are one projection)
read what the attention reads; those of ``in`` and ``gate``, what the MLP reads. Experts of ``o``
write beside the heads of their layer, those of ``out`` beside its MLP.

The nodes of ``interp.patching.patch_edges`` stand for the frozen projections alone: ``a3.h5<q>`` is
what head 5's frozen query projection reads, ``m3`` reads and writes through the MLP's frozen
projections, ``a3.h5`` writes through the frozen output projection. So the edges from a writer to
``m3`` and to the experts in it sum to that to the whole MLP.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.patching.circuit import head_node, mlp_node
from interp.patching.edges.graph import INPUT, LOGITS, Edge, EdgeGraph

Part = Literal["attention", "mlp"]
READS: dict[str, Part] = {
    **dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.qkv"), "attention"),
    **dict.fromkeys(("mlp.in", "mlp.gate"), "mlp"),
}
"""Projections that read the residual stream, with the part of the layer whose norm is before it."""
WRITES: dict[str, Part] = {"attn.o": "attention", "mlp.out": "mlp"}
"""Projections that write to it, with the part of the layer beside which their experts stand."""


@dataclass(frozen=True)
class Experts:
    """The experts of one projection.

    Attributes:
        layer: of the model.
        target: the projection's name in its layer, such as ``attn.q``.
        count: how many experts it has.
    """

    layer: int
    target: str
    count: int

    @property
    def names(self) -> list[str]:
        """The nodes' names."""
        part, _, short = self.target.partition(".")
        return [f"{part[0]}{self.layer}.{short}.e{expert}" for expert in range(self.count)]


@dataclass(frozen=True)
class Reader:
    """What reads at a node.

    Attributes:
        layer: of the model; the number of layers for the logits.
        part: the part of the layer whose norm is before it.
        unit: of the frozen projections, such as ("q", head); None for the MLP, and for experts.
        experts: the projection whose expert it is, else None.
        expert: its number.
    """

    layer: int
    part: Part | Literal["logits"]
    unit: tuple[str, int] | None = None
    experts: Experts | None = None
    expert: int = 0


@dataclass(frozen=True)
class ExpertGraph(EdgeGraph):
    """The writers and readers of an adapted model, in the order in which they run.

    In a layer the writers are heads, experts of ``o``, the MLP and experts of ``out``; the readers
    are queries, keys and values, their experts, the MLP and its experts.

    Attributes:
        experts: those that are nodes.
    """

    experts: tuple[Experts, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """How many writers and readers there are."""
        return len(self.writers), len(self.readers)

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Names of all writers."""
        names = [INPUT]
        for layer in range(self.n_layers):
            names += [head_node(layer, head) for head in range(self.n_heads)]
            names += self._names(layer, "attention", WRITES)
            names += [mlp_node(layer), *self._names(layer, "mlp", WRITES)]
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of all readers."""
        return tuple(self.reads)

    @cached_property
    def reads(self) -> dict[str, Reader]:
        """By name, what reads there."""
        found: dict[str, Reader] = {}
        for layer in range(self.n_layers):
            for into, unit in self.inputs:
                name = f"{head_node(layer, unit)}<{into}>"
                found[name] = Reader(layer, "attention", (into, unit))
            found |= self._expert_readers(layer, "attention")
            found[mlp_node(layer)] = Reader(layer, "mlp")
            found |= self._expert_readers(layer, "mlp")
        return found | {LOGITS: Reader(self.n_layers, "logits")}

    def experts_at(self, layer: int, part: Part, kinds: dict[str, Part]) -> list[Experts]:
        """The experts of a part of a layer: of those that read (``READS``), or that write."""
        return [
            some for some in self.experts if some.layer == layer and kinds.get(some.target) == part
        ]

    def writers_before(self, layer: int, *, mlp: bool = False) -> int:
        """How many writers run before a layer's attention, or before its MLP."""
        name = mlp_node(layer) if mlp and not self.parallel else head_node(layer, 0)
        return self._places[0][name]

    def readers_of(self, layer: int) -> slice:
        """The places of a layer's queries, keys and values; their experts are next."""
        first = self._places[1][f"{head_node(layer, 0)}<q>"]
        return slice(first, first + len(self.inputs))

    def readers_of_part(self, layer: int, part: Part) -> slice:
        """The places of a part's readers: the heads' or the MLP's, then the experts'."""
        places = [
            place
            for place, reader in enumerate(self.reads.values())
            if (reader.layer, reader.part) == (layer, part)
        ]
        return slice(places[0], places[-1] + 1)

    @cached_property
    def exists(self) -> Bool[Tensor, "writer reader"]:
        """Which pairs are edges."""
        found = torch.zeros(*self.shape, dtype=torch.bool)
        for place, reader in enumerate(self.reads.values()):
            end: int | None = None
            if reader.part != "logits":
                end = self.writers_before(reader.layer, mlp=reader.part == "mlp")
            found[:end, place] = True
        return found

    def edges_of_experts(self) -> list[Edge]:
        """All edges that begin or end at an expert, by writer."""
        nodes = {name for some in self.experts for name in some.names}
        return [
            (writer, reader)
            for writer, reader in self.every_edge()
            if writer in nodes or reader in nodes
        ]

    def _names(self, layer: int, part: Part, kinds: dict[str, Part]) -> list[str]:
        return [name for some in self.experts_at(layer, part, kinds) for name in some.names]

    def _expert_readers(self, layer: int, part: Part) -> dict[str, Reader]:
        return {
            name: Reader(layer, part, None, some, expert)
            for some in self.experts_at(layer, part, READS)
            for expert, name in enumerate(some.names)
        }
