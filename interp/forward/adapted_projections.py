"""The adapted projections of a hooked MoELoRA model, by name.

A projection is named as its hook points are: ``blocks.3.attn.q`` for what has the hook point
``blocks.3.attn.q.moelora.hook_gate`` (see ``interp.moelora.hooked``). Other names for it are
understood too: the module's own (``model.layers.3.self_attn.q_proj``), or the layer with the last
parts of either name: (3, "attn.q"), (3, "q"), (3, "q_proj").

Interventions ask any model for them, so they are found here without `interp.moelora`, which imports
PEFT: that takes seconds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from interp.errors import UserError

GATE = ".moelora.hook_gate"
_LAYER = re.compile(r"blocks\.(\d+)\.(.+)")
_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class AdaptedProjection:
    """One adapted projection.

    Attributes:
        name: in a hooked model the name in TransformerLens, such as ``blocks.3.attn.q``; else the
            module's.
        layer: counted from zero; None outside the layers.
        target: the name without the layer in a hooked model, such as ``attn.q``; else the last part
            of the module's name, such as ``q_proj``.
        n_experts: how many experts it has.
        module: in the model itself, such as ``model.layers.3.self_attn.q_proj``.
    """

    name: str
    layer: int | None
    target: str
    n_experts: int
    module: str = ""

    @classmethod
    def of_layer(cls, layer: Any, name: str = "") -> "AdaptedProjection":
        """The projection of a `MoELoRALinear`; `name` is its TransformerLens name, if hooked."""
        (adapter,) = layer.adapters_in_use
        n_experts, module_target = layer.experts[adapter].count, layer.name.rpartition(".")[2]
        if not name:
            return cls(layer.name, layer_of(layer.name), module_target, n_experts, layer.name)
        inside = _LAYER.fullmatch(name)
        number, target = (None, name) if inside is None else (int(inside[1]), inside[2])
        return cls(name, number, target, n_experts, layer.name)

    @property
    def module_target(self) -> str:
        """The last part of the module's name, such as ``q_proj``."""
        return self.module.rpartition(".")[2]

    @property
    def experts(self) -> int:
        """`n_experts`, under its name of version 0.1."""
        return self.n_experts

    @property
    def gate(self) -> str:
        """The hook point of its gates, [batch pos expert]."""
        return self.name + GATE

    @property
    def expert_out(self) -> str:
        """The hook point of its experts' outputs, [batch pos expert d_out]."""
        return f"{self.name}.moelora.hook_expert_out"

    @property
    def output(self) -> str:
        """The hook point of its whole output, [batch pos d_out]; a joint one's does not run."""
        return f"{self.name}.hook_out"

    def has_target(self, target: str) -> bool:
        """Whether ``target`` is the end of one of its names."""
        return any(
            name == target or name.endswith(f".{target}") for name in (self.name, self.module)
        )


def projections_of(model: Any) -> tuple[AdaptedProjection, ...]:
    """All adapted projections, in the order of the model. Raises UserError if there are none."""
    points = getattr(model, "hook_dict", ())
    names = [point.removesuffix(GATE) for point in points if point.endswith(GATE)]
    if not names:
        raise UserError(
            "the model has no MoELoRA experts: hook the adapted model with interp.moelora.hooked"
        )
    layers = [original_of(model.get_submodule(name)) for name in names]
    found = map(AdaptedProjection.of_layer, layers, names)
    return tuple(sorted(found, key=lambda part: (part.layer is None, part.layer or 0, part.target)))


def original_of(component: nn.Module) -> Any:
    """The module that a component of TransformerLens wraps; None if it wraps none."""
    return component._modules.get("_original_component")


def layer_of(key: str) -> int | None:
    """The number of the layer that the module of that name is in: the first number in it."""
    found = _NUMBER.search(key)
    return int(found[1]) if found else None


def find_projection(projections: Sequence[AdaptedProjection], name: str) -> AdaptedProjection:
    """The one that is meant by a name. Raises UserError for none, or for several."""
    for projection in projections:
        if name in (projection.name, projection.module):
            return projection
    found = _LAYER.fullmatch(name)
    fits: list[AdaptedProjection] = []
    if found is not None:
        layer, target = int(found[1]), found[2]
        in_layer = [projection for projection in projections if projection.layer == layer]
        fits = [projection for projection in in_layer if projection.has_target(target)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        names = ", ".join(projection.name for projection in fits)
        raise UserError(f"projection {name!r} may be any of {names}: say which")
    known = ", ".join(dict.fromkeys(projection.target for projection in projections))
    layers = sorted({part.layer for part in projections if part.layer is not None})
    between = f" in layers {layers[0]} to {layers[-1]}" if layers else ""
    raise UserError(f"the model has no adapted projection {name!r}; adapted are {known}{between}")
