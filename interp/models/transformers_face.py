"""A `HookedTransformer` that is called, and generates, as a transformers model.

The bridge of TransformerLens 4 keeps the transformers model that it wraps as ``original_model``,
and this package calls that: with token ids, an attention mask and a key/value cache, or through
transformers' ``generate``. On TransformerLens 3 there is no such model. `TransformersFace` takes
its place: it has no weights of its own, and its forward pass is the hooked model's, with all hook
points.

Positions come from the attention mask, as TransformerLens counts them: the first real token is 0.
The cache is one of transformers', but holds TransformerLens' keys, before their rotary embedding,
so that it works with this model only.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from interp.errors import UserError


class TransformersFace(PreTrainedModel, GenerationMixin):
    """A hooked model as a transformers model.

    ``config`` and ``generation_config`` are those of the model that the weights are of.

    Attributes:
        hooked: the hooked model, whose parameters and submodules are this model's too.
    """

    def __init__(self, hooked: nn.Module, config: Any, generation_config: Any) -> None:
        super().__init__(config)
        self.hooked: Any = hooked
        self.generation_config = generation_config

    @property
    def max_positions(self) -> int:
        """How many positions TransformerLens has tables for, rotary ones too."""
        return self.hooked.cfg.n_ctx

    def get_input_embeddings(self) -> nn.Module:
        """The hooked model's embedding, whose weight is ``W_E``."""
        return self.hooked.embed

    def get_output_embeddings(self) -> nn.Module:
        """The hooked model's unembedding."""
        return self.hooked.unembed

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, with a cache that keeps all keys.

        TransformerLens masks sliding windows itself, and wants the keys outside them too.
        """
        if kwargs.get("use_cache", True):
            kwargs.setdefault("past_key_values", DynamicCache())
        parent: Any = super()
        return parent.generate(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **unknown: Any,
    ) -> CausalLMOutputWithPast:
        """A transformers model's forward pass.

        Args:
            input_ids: the new tokens [batch pos]; those before them are in the cache.
            attention_mask: of all positions, including those in the cache: 1 for real tokens.
            logits_to_keep: how many of the last positions' logits are computed; 0 for all.

        Raises:
            UserError: embeddings instead of token ids, or another argument that is not known.
        """
        given = sorted(name for name, value in unknown.items() if value is not None)
        if input_ids is None or given:
            what = f"{given[0]} is not known" if given else "it needs input_ids"
            raise UserError(f"a model of TransformerLens 3 is called with token ids: {what}")
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), seen + input_ids.shape[1])
        cache = None
        if past_key_values is not None:
            cache = _Entries(past_key_values, attention_mask, self.hooked.cfg)
        residual = self.hooked(
            input_ids,
            attention_mask=attention_mask[:, seen:],
            past_kv_cache=cache,
            stop_at_layer=len(self.hooked.blocks),
        )
        residual = residual[:, -logits_to_keep:] if logits_to_keep else residual
        logits = self.hooked.unembed(self.hooked.ln_final(residual))
        cap = self.hooked.cfg.output_logits_soft_cap
        if cap > 0:
            logits = cap * torch.tanh(logits / cap)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]


class _Entries:
    """A cache of transformers, as TransformerLens wants it: an entry a layer, and a mask."""

    def __init__(self, cache: Cache, mask: Tensor, cfg: Any) -> None:
        self._mask = mask
        shape = (len(mask), 0, cfg.n_key_value_heads or cfg.n_heads, cfg.d_head)
        nothing = torch.empty(shape, device=mask.device, dtype=cfg.dtype)
        self._entries = [_Entry(cache, layer, nothing) for layer in range(cfg.n_layers)]

    def __getitem__(self, layer: int) -> "_Entry":
        return self._entries[layer]

    def append_attention_mask(self, new: Tensor) -> Tensor:
        return self._mask


class _Entry:
    """One layer of a cache: transformers has [batch head pos d_head], TransformerLens pos first."""

    def __init__(self, cache: Cache, layer: int, nothing: Tensor) -> None:
        self._cache, self._layer = cache, layer
        layers: Any = cache.layers
        known = layer < len(layers) and layers[layer].get_seq_length() > 0
        self.past_keys = _turned(layers[layer].keys) if known else nothing

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.update(_turned(new_keys), _turned(new_values), self._layer)
        return _turned(keys), _turned(values)


def _turned(keys: Tensor) -> Tensor:
    return keys.transpose(1, 2)
