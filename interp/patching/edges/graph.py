"""The graph of a model's residual stream: who writes to it, who reads from it, and the edges.

Writers are the embedding (``input``), every head and every MLP. Readers are the query, key and
value of every head, every MLP, and the logits. Each reader has an edge from every writer that runs
before it. Names are those of EAP-IG's files: ``input``, ``a3.h5``, ``m3``, ``a7.h1<k>``,
``logits``. With grouped queries a key or value is that of a group, and ``a7.h1<k>`` is the key of
key-value head 1.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.arguments import listed, shown
from interp.errors import UserError
from interp.forward.hook_points import count_units
from interp.models.hooked_model import HookedModel
from interp.patching.circuit import head_node, mlp_node

INPUT, LOGITS = "input", "logits"
INTO = ("q", "k", "v")
"""The inputs of a head, in the order in which a layer's readers come."""
Edge = tuple[str, str]
"""A writer and a reader."""
_EDGE = re.compile(r"(.+?)->(.+)", re.DOTALL)


@dataclass(frozen=True)
class EdgeGraph:
    """The writers and readers of a model, in the order in which they run.

    Attributes:
        n_layers, n_heads: of the model.
        n_kv_heads: key-value heads of a layer.
        parallel: attention and MLP of a layer read the same input (as in GPT-NeoX), so that there
            is no edge between them.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False

    @classmethod
    def of(cls, model: HookedModel, *, parallel: bool) -> "EdgeGraph":
        """The graph of a hooked model."""
        return cls(model.cfg.n_layers, model.cfg.n_heads, count_units(model, "k"), parallel)

    def __post_init__(self) -> None:
        if min(self.n_layers, self.n_heads, self.n_kv_heads) < 1 or self.n_heads % self.n_kv_heads:
            raise UserError(
                f"no model has {self.n_layers} layers of {self.n_heads} heads with "
                f"{self.n_kv_heads} key-value heads"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """How many writers and readers there are."""
        n_readers = self.n_layers * (self.n_heads + 2 * self.n_kv_heads + 1) + 1
        return 1 + self.n_layers * (self.n_heads + 1), n_readers

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Names of all writers."""
        names = [INPUT]
        for layer in range(self.n_layers):
            names += [head_node(layer, head) for head in range(self.n_heads)]
            names.append(mlp_node(layer))
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of all readers."""
        names = []
        for layer in range(self.n_layers):
            names += [f"{head_node(layer, unit)}<{into}>" for into, unit in self.inputs]
            names.append(mlp_node(layer))
        return (*names, LOGITS)

    @property
    def inputs(self) -> list[tuple[str, int]]:
        """The readers of a layer's attention, as (q, k or v; head or key-value head)."""
        sizes = dict(zip(INTO, (self.n_heads, self.n_kv_heads, self.n_kv_heads), strict=True))
        return [(into, unit) for into, size in sizes.items() for unit in range(size)]

    def writers_before(self, layer: int, *, mlp: bool = False) -> int:
        """How many writers run before a layer's attention, or before its MLP."""
        below = 1 + layer * (self.n_heads + 1)
        return below + (self.n_heads if mlp and not self.parallel else 0)

    def heads_of(self, layer: int) -> slice:
        """The places of a layer's heads among the writers; its MLP is next."""
        first = self.writers_before(layer)
        return slice(first, first + self.n_heads)

    def readers_of(self, layer: int) -> slice:
        """The places of a layer's queries, keys and values among the readers; its MLP is next."""
        size = len(self.inputs)
        return slice(layer * (size + 1), layer * (size + 1) + size)

    @cached_property
    def exists(self) -> Bool[Tensor, "writer reader"]:
        """Which pairs are edges."""
        found = torch.zeros(*self.shape, dtype=torch.bool)
        for layer in range(self.n_layers):
            place = self.readers_of(layer)
            found[: self.writers_before(layer), place] = True
            found[: self.writers_before(layer, mlp=True), place.stop] = True
        found[:, -1] = True
        return found

    def every_edge(self) -> list[Edge]:
        """All edges, by writer."""
        return [(self.writers[w], self.readers[r]) for w, r in self.exists.nonzero().tolist()]

    def named(self, places: Int[np.ndarray, " edge"]) -> list[Edge]:
        """Edges by their places in flattened scores [writer reader]."""
        writers, readers = np.unravel_index(places, self.shape)
        return [
            (self.writers[w], self.readers[r])
            for w, r in zip(writers.tolist(), readers.tolist(), strict=True)
        ]

    def check(self, edges: Iterable[Any]) -> list[Edge]:
        """Edges given by name, ``a3.h5->m7`` or (writer, reader), each once.

        Raises:
            UserError: none, an unknown name, or a pair that is no edge.
        """
        found = [_ends(edge) for edge in listed("edges", edges, "edges")]
        if not found:
            raise UserError("there are no edges: name some, or leave `edges` out for all")
        for writer, reader in found:
            for what, name, known in (
                ("writes", writer, self.writers),
                ("reads", reader, self.readers),
            ):
                if name not in known:
                    raise UserError(
                        f"nothing in this model that {what} is named {shown(name)}: names are as "
                        f"{known[0]} and {known[-1]}{self._grouped}"
                    )
            if not bool(self.exists[self.index((writer, reader))]):
                raise UserError(f"{writer} does not run before {reader}: there is no such edge")
        return list(dict.fromkeys(found))

    @property
    def _grouped(self) -> str:
        """What is said of names where queries share keys and values."""
        if self.n_kv_heads == self.n_heads:
            return ""
        return f"; a layer has {self.n_kv_heads} keys and values, each of a group of heads"

    def index(self, edge: Edge) -> tuple[int, int]:
        """The places of an edge's writer and reader."""
        return self._places[0][edge[0]], self._places[1][edge[1]]

    def mask(self, edges: Iterable[Edge]) -> Bool[Tensor, "writer reader"]:
        """Some edges among all pairs."""
        found = torch.zeros(*self.shape, dtype=torch.bool)
        for edge in edges:
            found[self.index(edge)] = True
        return found

    @cached_property
    def _places(self) -> tuple[dict[str, int], dict[str, int]]:
        return (
            {name: place for place, name in enumerate(self.writers)},
            {name: place for place, name in enumerate(self.readers)},
        )


def _ends(edge: Any) -> Edge:
    """Writer and reader of an edge that a caller names."""
    ends: Sequence[Any] = ()
    if isinstance(edge, str):
        match = _EDGE.fullmatch(edge)
        ends = match.groups() if match else ()
    elif isinstance(edge, tuple | list):
        ends = edge
    if len(ends) != 2 or not all(isinstance(end, str) for end in ends):
        raise UserError(
            f"an edge is named as 'a3.h5->m7', or a pair (writer, reader), not {shown(edge)}"
        )
    return ends[0], ends[1]
