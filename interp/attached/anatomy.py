"""Where the attention heads are in a transformers model.

A layer's attention module is the innermost one that is called with an attention mask and holds the
output projection. The projection's input is the outputs of the heads, one behind the other.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from interp.errors import UserError
from interp.interventions.intervention import Intervention
from interp.modules import modules

_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "Wo")


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The layers of a model, and their attention.

    Attributes:
        body: the module that calls the layers one after the other.
        layers: the blocks, in order.
        attention: of each layer, the module that takes the softmax; None where there is none.
        n_heads: query heads of a layer.
    """

    body: nn.Module
    layers: tuple[nn.Module, ...]
    attention: tuple[nn.Module | None, ...]
    n_heads: int

    @classmethod
    def of(cls, hf_model: Any) -> "Anatomy":
        """Find the layers. Raises UserError for a model in which there are none."""
        config = hf_model.config.get_text_config()
        count, n_heads = config.num_hidden_layers, getattr(config, "num_attention_heads", 0)
        # Beside the text there may be images, whose layers look alike.
        text = hf_model.get_decoder() if hasattr(hf_model, "get_decoder") else hf_model
        for body in modules(text):
            for module in body.children():
                if isinstance(module, nn.ModuleList) and len(module) == count:
                    attention = tuple(map(_attention_of, module))
                    if any(attention):
                        return cls(body, tuple(module), attention, int(n_heads))
        raise UserError(
            f"{type(hf_model).__name__} has no layers with attention heads that can be found: "
            "constrain the hooked model instead (interp.load_model, interp.constrain)"
        )

    def check(self, intervention: Intervention) -> None:
        """Raise UserError for a head that the model does not have."""
        for part in intervention.heads:
            for layer, head in part.heads:
                if layer >= len(self.layers) or head >= self.n_heads:
                    raise UserError(
                        f"head ({layer}, {head}) does not exist: the model has layers 0 to "
                        f"{len(self.layers) - 1} and heads 0 to {self.n_heads - 1}"
                    )
                if self.attention[layer] is None:
                    raise UserError(f"layer {layer} of the model has no attention heads")

    def attention_of(self, layer: int) -> nn.Module:
        """The attention of a layer that has one."""
        attention = self.attention[layer]
        assert attention is not None
        return attention

    def projection(self, layer: int) -> nn.Module:
        """The output projection of a layer's attention; its input is [prompt pos head*d_head]."""
        projection = _projection_of(self.attention_of(layer))
        assert projection is not None
        return projection


def takes_mask(module: nn.Module) -> bool:
    """Whether a module's forward has an argument ``attention_mask``."""
    return "attention_mask" in inspect.signature(type(module).forward).parameters


def _attention_of(layer: nn.Module) -> nn.Module | None:
    found = None
    for module in modules(layer):
        if module is not layer and takes_mask(module) and _projection_of(module) is not None:
            found = module
    return found


def _projection_of(attention: nn.Module) -> nn.Module | None:
    found = (getattr(attention, name, None) for name in _OUTPUT_PROJECTIONS)
    return next((module for module in found if isinstance(module, nn.Module)), None)
