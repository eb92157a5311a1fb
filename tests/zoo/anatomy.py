"""Where things are in a transformers model: by the names of its modules, nothing else.

The words are those of `interp.forward.hook_points`. ``z`` goes into the output projection of the
attention, ``attn_out`` comes out of it; ``mlp_out`` is what the MLP (or the experts) add to the
residual stream; ``resid_mid`` is what is there between the two, where one follows the other.
A layer that has no such thing raises LookupError.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

_ATTENTION = (
    "shared_transformer.self_attn",
    "self_attn",
    "self_attention",
    "attn.attention",
    "attn",
    "attention.self",
    "attention",
    "temporal_block",
    "mixer",
)
_INTO_OUT = ("o_a_proj", "o_proj", "out_proj", "dense", "c_proj", "Wo")
_OUT_OF = ("o_b_proj", *_INTO_OUT[1:])
_MLP = (
    "mlp",
    "feed_forward",
    "ffn",
    "mlp_block",
    "fc2",
    "output.dense",
    "block_sparse_moe",
    "shared_transformer.feed_forward",
)
# These add the residual stream to what they return; what is added comes from here.
_INNER = {"BloomMLP": "dense_4h_to_h", "MptMLP": "down_proj"}
_OTHER_WRITERS = (
    "mamba",
    "linear_attn",
    "conv",
    "temporal_block",
    "mixer",
    "mamba_decoder.mamba",
    "post_per_layer_input_norm",
)
_BEFORE_MLP = (
    "pre_feedforward_layernorm",
    "feedforward_layernorm",
    "pre_mlp_layernorm",
    "pre_ff_layernorm",
    "ffn_norm",
    "channel_pre_norm",
    "mlp_norm",
    "post_attention_layernorm",
    "final_layer_norm",
    "norm_2",
    "ln_2",
    "ln2",
)
_JOINT = ("query_key_value", "Wqkv", "qkv_proj", "c_attn", "kv_proj")
_APART = {
    "q": ("q_proj", "q_b_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
}


def child(module: nn.Module, names: Iterable[str]) -> Any:
    """The first of these that the module has; a name may be a path."""
    for name in names:
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.Module):
            return found
    raise LookupError(f"{type(module).__name__} has none of {', '.join(names)}")


class Anatomy:
    """The modules of one model, by layer.

    Args:
        attention: the layers that have attention heads; None for all.
    """

    def __init__(self, model: Any, attention: Sequence[int] | None = None) -> None:
        count = model.config.num_hidden_layers
        lists = [
            module
            for module in model.modules()
            if isinstance(module, nn.ModuleList) and len(module) == count
        ]
        if not lists:
            raise LookupError("the model has no list of its layers")
        self.config = model.config
        self.layers: list[Any] = list(lists[0])
        self.with_heads = tuple(range(count)) if attention is None else tuple(attention)
        self.n_heads = getattr(model.config, "num_attention_heads", 0) if self.with_heads else 0

    def attention(self, layer: int) -> Any:
        """The module in which the softmax is taken."""
        if layer not in self.with_heads:
            raise LookupError(f"layer {layer} has no attention heads")
        return child(self.layers[layer], _ATTENTION)

    def is_latent(self, layer: int) -> bool:
        """Whether keys and values are made for every head from one latent vector (MLA)."""
        return layer in self.with_heads and hasattr(self.attention(layer), "kv_b_proj")

    def into_out(self, layer: int) -> Any:
        """The module that is given z."""
        self.attention(layer)
        if type(self.layers[layer]).__name__ == "BertLayer":
            return child(self.layers[layer], ("attention.output.dense",))
        return child(self.attention(layer), _INTO_OUT)

    def attn_out(self, layer: int) -> Any:
        """The module that returns what the attention writes."""
        try:
            return (
                self.into_out(layer)
                if type(self.layers[layer]).__name__ == "BertLayer"
                else child(self.attention(layer), _OUT_OF)
            )
        except LookupError:
            return self.attention(layer)  # JetMoE: its experts are the projection

    def mlps(self, layer: int) -> list[Any]:
        """The modules whose outputs together are what the MLP writes."""
        block = self.layers[layer]
        if hasattr(block, "mixer"):
            if type(block.mixer).__name__.endswith(("MLP", "MoE", "Moe")):
                return [block.mixer]
            raise LookupError(f"layer {layer} has no MLP")
        mlp = child(block, _MLP)
        inner = _INNER.get(type(mlp).__name__)
        found = [getattr(mlp, inner) if inner else mlp]
        return [*found, block.shared_mlp] if hasattr(block, "shared_mlp") else found

    def writers(self, layer: int) -> list[Any]:
        """Everything whose output goes into the residual stream."""
        found: list[Any] = []
        if layer in self.with_heads:
            found.append(self.attn_out(layer))
        elif hasattr(self.layers[layer], "attention"):  # RWKV
            found.append(self.layers[layer].attention)
        for name in _OTHER_WRITERS:
            try:
                other = child(self.layers[layer], (name,))
            except LookupError:
                continue
            if layer not in self.with_heads or other is not self.attention(layer):
                found.append(other)
        with suppress(LookupError):
            found += [one for one in self.mlps(layer) if one not in found]
        return found

    def middle(self, layer: int) -> Any:
        """The module whose input is the residual stream between attention and MLP."""
        block = self.layers[layer]
        kind = type(block).__name__
        if kind == "BertLayer":
            return block.intermediate
        behind = hasattr(block, "post_feedforward_layernorm") and not hasattr(
            block, "pre_feedforward_layernorm"
        )
        if behind or kind == "Block":  # OpenAI GPT
            return child(block, ("mlp",))
        if getattr(self.config, "use_parallel_residual", False):
            raise LookupError("attention and MLP stand side by side")
        return child(block, _BEFORE_MLP)

    def projection(self, what: str, layer: int) -> tuple[Any, bool]:
        """The module that gives q, k or v, and whether it gives others as well."""
        attention = self.attention(layer)
        try:
            return child(attention, _APART[what]), False
        except LookupError:
            if hasattr(attention, "experts") and what == "q":
                raise
            return child(attention, _JOINT), True
