"""Effects as the engine defines them, each by the reference alone, for one pair of prompts.

The metric is one token's logit less another's, in the last position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.zoo.reference import Place, Reference, keep
from tests.zoo.watching import Edit


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupted prompt, and the tokens whose logits are compared."""

    reference: Reference
    clean: Sequence[int]
    corrupted: Sequence[int]
    right: int
    wrong: int

    def metric(self, logits: Tensor) -> Tensor:
        """One number."""
        return logits[self.right] - logits[self.wrong]

    def bare(self) -> Tensor:
        """The metric of the corrupted run."""
        with torch.no_grad():
            return self.metric(self.reference.logits(self.corrupted))

    def _table(self, what: str) -> Tensor:
        """NaN [layer unit]. Raises LookupError if no layer has such a thing."""
        there = [
            self.reference.units(what, layer)
            for layer in range(self.reference.n_layers)
            if self.reference.has(what, layer)
        ]
        if not there:
            raise LookupError(f"no layer has {what}")
        return torch.full((self.reference.n_layers, max(there)), torch.nan)

    def places(self, what: str) -> list[Place]:
        """Where it is."""
        layers = range(self.reference.n_layers)
        return [(what, layer) for layer in layers if self.reference.has(what, layer)]

    @torch.no_grad()
    def exact(self, what: str, span: tuple[int, int] | None = None) -> Tensor:
        """Effect of each unit's clean value, everywhere or in a span of positions."""
        effects, bare = self._table(what), self.bare()
        for name, layer in self.places(what):
            # Experts that are always chosen may be a module of their own.
            parts = [(name, layer)]
            if what == "mlp_out":
                several = self.reference.anatomy.mlps(layer)[1:]
                parts += [(f"mlp_out.{index + 1}", layer) for index in range(len(several))]
            new = self.reference.read(self.clean, parts)
            for unit in range(self.reference.units(what, layer)):
                edits = {}
                for part in parts:

                    def put(value: Tensor, part=part, layer=layer, unit=unit, new=new) -> Tensor:
                        swapped = self.reference.swap(what, layer, value, unit, new[part])
                        return _within(value, swapped, span)

                    edits[part] = put
                logits = self.reference.logits(self.corrupted, edits)
                effects[layer, unit] = self.metric(logits) - bare
        return effects

    @torch.no_grad()
    def paths(self, receiver: tuple[int, int] | None = None) -> Tensor:
        """Effect of each head's z by the direct path to the logits, or to one head's query.

        Everything else that writes into the residual stream on the way writes what it did.
        """
        reference, effects, bare = self.reference, self._table("z"), self.bare()
        top = reference.n_layers if receiver is None else receiver[0]
        if receiver is not None:
            reference.columns(top)
        every: list[Place] = [
            (f"write.{index}", layer)
            for layer in range(reference.n_layers)
            for index in range(len(reference.anatomy.writers(layer)))
        ]
        kept = reference.read(self.corrupted, [*every, *self.places("z")])
        new = reference.read(self.clean, self.places("z"))
        for what, layer in self.places("z"):
            if layer >= top:
                continue
            for head in range(reference.n_heads):
                sent = reference.swap("z", layer, kept[what, layer], head, new[what, layer])
                edits: dict[Place, Edit] = {("z", layer): always(sent)}
                for place in every:
                    own = place == ("write.0", layer)
                    if layer <= place[1] < top and not own:
                        edits[place] = always(kept[place])
                if receiver is not None:
                    arrived: dict[str, Tensor] = {}
                    look = {("q", top): lambda value, arrived=arrived: arrived.update(q=value)}
                    reference.logits(self.corrupted, {**edits, **look})
                    query = arrived["q"]
                    edits = {
                        ("q", top): lambda value, query=query: reference.swap(
                            "q", top, value, receiver[1], query
                        )
                    }
                logits = reference.logits(self.corrupted, edits)
                effects[layer, head] = self.metric(logits) - bare
        return effects

    def _summed(self, what: str, layer: int, product: Tensor) -> Tensor:
        """A product over a place's whole value, by unit."""
        if what == "pattern" or self.reference.by_head(what, layer):
            return product.sum(dim=(0, 2, 3))
        if what == "z":
            return product.flatten(2).unflatten(-1, (self.reference.n_heads, -1)).sum((0, 1, 3))
        if what in ("q", "k", "v"):
            columns = self.reference.columns(layer).of(what)
            return torch.stack([product[..., at].sum() for at in columns])
        return product.sum()[None]

    def first_order(self, what: str) -> Tensor:
        """Change times gradient: AtP."""
        effects, at = self._table(what), self.places(what)
        new, old = self.reference.read(self.clean, at), self.reference.read(self.corrupted, at)
        seen: dict[Place, Tensor] = {}
        look = {place: keep(seen, place) for place in at}
        with torch.enable_grad():
            metric = self.metric(self.reference.logits(self.corrupted, look))
        slopes = torch.autograd.grad(metric, [seen[place] for place in at], materialize_grads=True)
        for (name, layer), slope in zip(at, slopes, strict=True):
            found = self._summed(what, layer, (new[name, layer] - old[name, layer]) * slope)
            effects[layer, : len(found)] = found
        return effects

    def integrated(self, what: str, steps: int) -> Tensor:
        """Integrated gradients by the midpoint rule, the units of a layer walking together."""
        effects, at = self._table(what), self.places(what)
        new, old = self.reference.read(self.clean, at), self.reference.read(self.corrupted, at)
        for place in at:
            change = new[place] - old[place]
            slope = torch.zeros_like(change)
            for step in range(steps):
                leaf = (old[place] + (step + 0.5) / steps * change).requires_grad_()
                with torch.enable_grad():
                    logits = self.reference.logits(
                        self.corrupted, {place: lambda v, leaf=leaf: leaf}
                    )
                    slope += torch.autograd.grad(self.metric(logits), leaf)[0] / steps
            found = self._summed(what, place[1], change * slope)
            effects[place[1], : len(found)] = found
        return effects

    def atp_star(self, what: str) -> Tensor:
        """AtP* (arXiv 2403.00745): z to first order, q and k by their exact patterns.

        The gradient does not pass what one layer after the other writes, and the sizes are averaged
        over the other layers.
        """
        reference, effects = self.reference, self._table(what)
        watched = "pattern" if what in ("q", "k") else what
        at = self.places(what)
        looks = [(watched, layer) for _, layer in at]
        dropped: set[int] = set()
        seen: dict[Place, Tensor] = {}
        edits: dict[Place, Edit] = {place: keep(seen, place) for place in looks}
        for layer in range(reference.n_layers):
            for index in range(len(reference.anatomy.writers(layer))):

                def guard(value: Tensor, layer: int = layer) -> Tensor:
                    value.register_hook(lambda g: torch.zeros_like(g) if layer in dropped else g)
                    return value.clone()

                edits[f"write.{index}", layer] = guard
        with torch.enable_grad():
            metric = self.metric(reference.logits(self.corrupted, edits))
        changes = self._changes(what, watched, at)
        total = torch.zeros_like(effects)
        for turn in range(reference.n_layers):
            dropped.clear()
            dropped.add(turn)
            slopes = torch.autograd.grad(
                metric, [seen[place] for place in looks], retain_graph=True, materialize_grads=True
            )
            for (_, layer), slope in zip(at, slopes, strict=True):
                for unit, change in enumerate(changes[layer]):
                    total[layer, unit] += (change * slope).sum().abs()
        for _, layer in at:
            effects[layer] = total[layer]
        return effects.detach() / max(1, reference.n_layers - 1)

    def _changes(self, what: str, watched: str, at: list[Place]) -> dict[int, list[Tensor]]:
        """By layer and unit, what changes in the watched place."""
        reference = self.reference
        new = reference.read(self.clean, at)
        old = reference.read(self.corrupted, [*at, *((watched, layer) for _, layer in at)])
        changes: dict[int, list[Tensor]] = {}
        for place in at:
            layer = place[1]
            changes[layer] = []
            for unit in range(reference.units(what, layer)):
                swapped = reference.swap(what, layer, old[place], unit, new[place])
                if watched == what:
                    changes[layer].append(swapped - old[place])
                    continue
                got: dict[str, Tensor] = {}
                edits = {
                    place: always(swapped),
                    ("pattern", layer): lambda value, got=got: got.update(p=value),
                }
                with torch.no_grad():
                    reference.logits(self.corrupted, edits)
                changes[layer].append(got["p"] - old["pattern", layer])
        return changes


def always(new: Tensor) -> Edit:
    """An edit that puts this in, whatever was there."""
    return lambda value: new


def _within(value: Tensor, new: Tensor, span: tuple[int, int] | None) -> Tensor:
    """``new`` in a span of positions, ``value`` elsewhere."""
    if span is None:
        return new
    mixed = value.clone()
    if value.dim() == 2:  # OPT: positions stand one below the other
        mixed[span[0] : span[1]] = new[span[0] : span[1]]
    else:
        mixed[:, span[0] : span[1]] = new[:, span[0] : span[1]]
    return mixed
