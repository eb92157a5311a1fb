"""Which columns of a projection's output are a head's query, key or value.

Where queries, keys and values have projections of their own, heads stand one after the other. Where
they come out of one, architectures differ in order. It is found out, not looked up: what a head
attends to at the last position depends on an earlier position through that head's key alone, and on
its own position through query and key; what it writes, through the value as well.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_IDS = (7, 21, 33, 12, 25, 40)


@dataclass(frozen=True)
class Columns:
    """By name (q, k, v): the columns of every head, or of every key-value head."""

    by_name: dict[str, list[Tensor]]

    def of(self, what: str) -> list[Tensor]:
        """Raises LookupError where the layer has none."""
        if what not in self.by_name:
            raise LookupError(f"the layer has no {what}")
        return self.by_name[what]

    @classmethod
    def found_in(cls, reference: Any, layer: int) -> "Columns":
        """The columns in one layer."""
        parts, heads = reference.anatomy, reference.n_heads
        parts.attention(layer)
        where = {}
        for what in ("q", "k", "v"):
            try:
                where[what] = parts.projection(what, layer)
            except LookupError:
                continue
        width = {what: _width(module) for what, (module, _) in where.items()}
        found: dict[str, list[Tensor]] = {}
        if "q" not in where:
            raise LookupError(f"layer {layer} has no projection of queries")
        if "k" not in where:  # latent attention, or keys from a layer below: queries only
            return cls({"q": list(torch.arange(width["q"]).chunk(heads))})
        keys = getattr(parts.config, "num_key_value_heads", None) or heads
        apart = all(not joint for _, joint in where.values())
        if apart and width.get("q", 0) // heads == width.get("k", 0) // keys:
            for what, size in width.items():
                found[what] = list(torch.arange(size).chunk(heads if what == "q" else keys))
            return cls(found)
        return cls(_discover(reference, layer, where))


def _width(module: Any) -> int:
    return getattr(module, "out_features", None) or getattr(module, "nf", None) or 0


def _discover(reference: Any, layer: int, where: dict[str, Any]) -> dict[str, list[Tensor]]:
    seen: dict[Any, Tensor] = {}
    edits: dict[Any, Any] = {}
    for what in {*where, "pattern", "z"}:
        edits[what, layer] = lambda value, what=what: seen.update({what: value})
    with torch.enable_grad():
        reference.logits(_IDS, edits)
        generator = torch.Generator().manual_seed(0)
        per_head: dict[str, list[Tensor]] = {what: [] for what in where}
        for head in range(reference.n_heads):
            row = seen["pattern"][0, head, -1]
            looks = (row * torch.rand(row.shape, generator=generator)).sum()
            key = _moved(looks, seen["k"], slice(None, -1))
            per_head["k"].append(key.nonzero()[:, 0])
            query = _moved(looks, seen["q"], slice(-1, None))
            if where["q"][1]:
                query &= ~key  # at its own position the key counts too
            per_head["q"].append(query.nonzero()[:, 0])
            z = seen["z"].flatten(2)[0, -1].unflatten(0, (reference.n_heads, -1))[head]
            writes = (z * torch.rand(z.shape, generator=generator)).sum()
            value = _moved(writes, seen["v"], slice(None, -1))
            if where["v"][1]:
                value &= ~key
            per_head["v"].append(value.nonzero()[:, 0])
    return {
        what: (columns if what == "q" else _distinct(columns))
        for what, columns in per_head.items()
        if columns
    }


def _moved(number: Tensor, projected: Tensor, positions: slice) -> Tensor:
    """The columns that a number depends on, at some of the positions."""
    (slope,) = torch.autograd.grad(number, projected, retain_graph=True)
    return (slope[0, positions] != 0).any(dim=0)


def _distinct(columns: list[Tensor]) -> list[Tensor]:
    """Heads that share a key have the same columns."""
    found: list[Tensor] = []
    for one in columns:
        if not any(torch.equal(one, other) for other in found):
            found.append(one)
    return found
