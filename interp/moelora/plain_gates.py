"""Edits of the gates in an adapted model that is not hooked.

Interventions that were made on the hooked model name projections as TransformerLens does, such as
``blocks.3.attn.q``. Here they are found by the modules' own names.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from interp.forward.adapted_projections import AdaptedProjection, find_projection
from interp.moelora.layer import ExpertHooks, MoELoRALinear, layers_in_use

_MODULES: dict[str, tuple[str, ...]] = {
    "attn.q": ("q_proj", "query"),
    "attn.k": ("k_proj", "key"),
    "attn.v": ("v_proj", "value"),
    "attn.o": ("o_proj", "out_proj", "c_proj", "dense"),
    "attn.qkv": ("c_attn", "query_key_value", "qkv_proj"),
    "mlp.gate": ("gate_proj",),
    "mlp.in": ("up_proj", "c_fc", "fc1", "fc_in", "dense_h_to_4h"),
    "mlp.out": ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h"),
}
"""What modules of these names are called in TransformerLens."""
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


class GateEdit:
    """A function that a projection's gates [prompt pos expert] go through, until ``remove``."""

    def __init__(self, layer: MoELoRALinear, function: Callable[[Tensor], Tensor]) -> None:
        self._layer = layer
        if layer.hooks is None:
            layer.hooks = ExpertHooks()

        def hook(module: nn.Module, args: Any, gates: Tensor) -> Tensor:
            return function(gates)

        self._handle = layer.hooks.hook_gate.register_forward_hook(hook)

    def remove(self) -> None:
        """The projection is computed as before, in one operator, when no edit is left."""
        self._handle.remove()
        hooks = self._layer.hooks
        if hooks is not None and not hooks.hook_gate._forward_hooks:
            self._layer.hooks = None


def plain_projections(model: nn.Module) -> dict[AdaptedProjection, MoELoRALinear]:
    """The projections in which the one active adapter has experts, by their modules' names.

    Raises UserError for a model without an adapter, or with none or several that are active.
    """
    return {AdaptedProjection.of_layer(layer): layer for layer in layers_in_use(model)}


def find_plain(projections: Sequence[AdaptedProjection], name: str) -> AdaptedProjection:
    """The one that is meant by a name. Raises UserError for none, or for several."""
    found = _BLOCK.fullmatch(name)
    if found is not None and found[2] in _MODULES:
        fits = [
            projection
            for projection in projections
            if projection.layer == int(found[1])
            and projection.module_target in _MODULES[found[2]]
            and ("att" in projection.module) == found[2].startswith("attn")
        ]
        if len(fits) == 1:
            return fits[0]
    return find_projection(projections, name)
