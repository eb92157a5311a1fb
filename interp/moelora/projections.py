"""The adapted projections of a hooked MoELoRA model, by name.

A projection is named as its hook points are: ``blocks.3.attn.q`` for what has the hook point
``blocks.3.attn.q.moelora.hook_gate`` (see ``interp.moelora.hooked``). Other names for it are
understood too: the module's own (``model.layers.3.self_attn.q_proj``), or the layer with the last
parts of either name: (3, "attn.q"), (3, "q"), (3, "q_proj").
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import UserError

GATE = ".moelora.hook_gate"
_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Projection:
    """One adapted projection.

    Attributes:
        name: in TransformerLens, such as ``blocks.3.attn.q``.
        module: in the model itself, such as ``model.layers.3.self_attn.q_proj``.
        n_experts: how many experts it has.
    """

    name: str
    module: str
    n_experts: int

    @property
    def layer(self) -> int | None:
        """The layer, counted from zero; None outside the layers."""
        found = _LAYER.fullmatch(self.name)
        return None if found is None else int(found[1])

    @property
    def target(self) -> str:
        """The name without the layer, such as ``attn.q``."""
        found = _LAYER.fullmatch(self.name)
        return self.name if found is None else found[2]

    @property
    def gate(self) -> str:
        """The hook point of its gates, [batch pos expert]."""
        return self.name + GATE

    def has_target(self, target: str) -> bool:
        """Whether ``target`` is the end of one of its names."""
        return any(
            name == target or name.endswith(f".{target}") for name in (self.name, self.module)
        )


def projections_of(model: Any) -> tuple[Projection, ...]:
    """All adapted projections, in the order of the model. Raises UserError if there are none."""
    found = []
    for point in getattr(model, "hook_dict", ()):
        if not point.endswith(GATE):
            continue
        name = point.removesuffix(GATE)
        layer = model.get_submodule(name)._modules["_original_component"]
        (adapter,) = (one for one in layer.active_adapters if one in layer.experts)
        found.append(Projection(name, layer.name, layer.experts[adapter].count))
    if not found:
        raise UserError(
            "the model has no MoELoRA experts: hook the adapted model with interp.moelora.hooked"
        )
    return tuple(sorted(found, key=_order))


def _order(projection: Projection) -> tuple[float, str]:
    layer = projection.layer
    return (float("inf") if layer is None else float(layer), projection.target)


def find_projection(projections: Sequence[Projection], name: str) -> Projection:
    """The one that is meant by a name. Raises UserError for none, or for several."""
    exact = [one for one in projections if name in (one.name, one.module)]
    if exact:
        return exact[0]
    found = _LAYER.fullmatch(name)
    fits: list[Projection] = []
    if found is not None:
        layer, target = int(found[1]), found[2]
        fits = [one for one in projections if one.layer == layer and one.has_target(target)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        names = ", ".join(one.name for one in fits)
        raise UserError(f"projection {name!r} may be any of {names}: say which")
    known = ", ".join(dict.fromkeys(one.target for one in projections))
    layers = sorted({one.layer for one in projections if one.layer is not None})
    between = f" in layers {layers[0]} to {layers[-1]}" if layers else ""
    raise UserError(f"the model has no adapted projection {name!r}; adapted are {known}{between}")
