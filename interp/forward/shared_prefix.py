"""Attention over a prefix that many rows share, as an attention implementation of transformers.

A sweep runs the same prompts many times with different edits. The positions before the first edit
are the same in all of these runs, so that their keys and values are kept once per prompt and shared
by every row. The model's own code calls the function here through transformers' attention
interface; rotary embeddings, norms of queries and keys, masks and sliding windows remain that
code's business.

Where a hook wants the scores or the pattern, attention is computed step by step; elsewhere by
torch's fused kernel, which differs from it by rounding only, unless so few positions run that the
kernel is slower.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from interp.forward.transfer import repeats_of
from interp.precision import widened

NAME = "shared_prefix"
"""Under this name transformers knows the implementation."""

_IGNORED = frozenset(
    [
        *("position_ids", "cache_position", "use_cache", "output_attentions"),
        *("output_hidden_states", "sliding_window", "is_causal", "return_dict"),
        *("position_embeddings", "logits_to_keep"),
    ]
)
"""Arguments without an effect here: the mask already contains theirs."""

FEW_QUERIES, FEW_KEYS = 32, 128
"""Up to so many, three plain operations beat the fused kernel on a CPU in float32: 2.9 against 5.5
milliseconds for 48 rows of 18 queries, 52 keys, 9 heads in 3 groups; with 64 queries they lose."""

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SharedPrefix:
    """The prefix of the running rows, and the edits of their attention.

    Attributes:
        keys_values: per layer keys and values [prompt kv_head pos d_head] of the prefix.
        rows: which prompt each row is.
        scores, patterns: per layer the functions that edit scores and pattern [row head q k].
        last_only: the layer of which only the last query's output is needed, or None.
        layers_run: the layers whose attention ran, and with it their functions.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    rows: Int[Tensor, " row"]
    scores: Mapping[int, list[Step]] = field(default_factory=dict)
    patterns: Mapping[int, list[Step]] = field(default_factory=dict)
    last_only: int | None = None
    layers_run: set[int] = field(default_factory=set)

    def prepend(self, layer: int, of_rows: Tensor, which: int) -> Tensor:
        """Keys (0) or values (1) of all positions: the prefix's, then the rows' own."""
        if not self.keys_values:
            return of_rows
        prefix = self.keys_values[layer][which]
        if self.repeats:  # as views: nothing of the prefix is copied twice
            of_rows = of_rows.unflatten(0, (self.repeats, len(prefix)))
            prefix = prefix.expand(self.repeats, *prefix.shape)
            return torch.cat([prefix, of_rows], dim=-2).flatten(0, 1)
        return torch.cat([prefix[self.rows.to(prefix.device)], of_rows], dim=-2)

    @property
    def width(self) -> int:
        """The number of positions in the prefix."""
        return self.keys_values[0][0].shape[2] if self.keys_values else 0

    def prepend_grouped(
        self, layer: int, of_rows: Float[Tensor, "kv_head row own d_head"], which: int
    ) -> Float[Tensor, "kv_head row pos d_head"]:
        """``prepend`` with the key heads in front of the rows."""
        if not self.keys_values:
            return of_rows
        prefix = self.keys_values[layer][which].transpose(0, 1)
        if not self.repeats:
            return torch.cat([prefix[:, self.rows], of_rows], dim=-2)
        shape = (self.repeats, prefix.shape[1])
        prefix = prefix[:, None].expand(-1, shape[0], *prefix.shape[1:])
        return torch.cat([prefix, of_rows.unflatten(1, shape)], dim=-2).flatten(1, 2)

    @cached_property
    def repeats(self) -> int:
        """How many times the rows repeat all prompts in their order; 0 if they do not."""
        return repeats_of(self.rows, len(self.keys_values[0][0]))


_PREFIX: ContextVar[SharedPrefix] = ContextVar("shared_prefix")


def running_prefix() -> SharedPrefix:
    """The prefix of the rows that run now."""
    return _PREFIX.get()


@contextmanager
def use_prefix(prefix: SharedPrefix) -> Iterator[None]:
    """While the context is open, models with this implementation read from ``prefix``."""
    token = _PREFIX.set(prefix)
    try:
        yield
    finally:
        _PREFIX.reset(token)


class PrefixLayer(DynamicLayer):
    """One layer of the prefix: its length makes masks and positions; it keeps nothing new."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The rows' own keys and values."""
        return key_states, value_states


def prefix_cache(keys_values: tuple[tuple[Tensor, Tensor], ...]) -> Cache | None:
    """The prefix as the model's cache; None where there is none."""
    layers: list[Any] = [PrefixLayer(keys, values) for keys, values in keys_values]
    return Cache(layers=layers) if layers else None


def shared_prefix_attention(
    module: Any,
    query: Float[Tensor, "row head q d_head"],
    key: Float[Tensor, "row kv_head own d_head"],
    value: Float[Tensor, "row kv_head own d_head"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row q head d_head"], None]:
    """transformers' attention interface. Not for training."""
    unknown = {name for name, given in kwargs.items() if given is not None} - _IGNORED
    if unknown:
        raise NotImplementedError(f"attention with {sorted(unknown)[0]}")
    prefix, layer = _PREFIX.get(), int(module.layer_idx)
    prefix.layers_run.add(layer)
    scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
    keys, values = prefix.prepend(layer, key, 0), prefix.prepend(layer, value, 1)
    n_queries = query.shape[2]
    if layer == prefix.last_only:
        query = query[:, :, -1:]
        attention_mask = None if attention_mask is None else attention_mask[:, :, -1:]
    score_steps, pattern_steps = prefix.scores.get(layer, []), prefix.patterns.get(layer, [])
    if (
        score_steps
        or pattern_steps
        or softcap is not None
        or few_queries(query, query.shape[2], keys.shape[2])
    ):
        # From here to the softmax in float32 at least, whatever the model's type.
        scores = widened(weighted_values(query, keys.transpose(-1, -2))).mul_(scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if attention_mask is not None:
            scores = scores.add_(attention_mask)
        for step in score_steps:
            scores = step(scores)
        pattern = widened(scores).softmax(dim=-1).to(query.dtype)
        for step in pattern_steps:
            pattern = step(pattern)
        out = weighted_values(pattern, values)
    else:
        out = torch.nn.functional.scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=attention_mask,
            scale=scale,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
    out = out.transpose(1, 2)
    if out.shape[1] != n_queries:  # zeros where nothing is read
        out = torch.nn.functional.pad(out, (0, 0, 0, 0, n_queries - 1, 0))
    return out.contiguous(), None


def weighted_values(
    pattern: Float[Tensor, "row head q k"], values: Float[Tensor, "row kv_head k d_head"]
) -> Float[Tensor, "row head q d_head"]:
    """The values weighted by the pattern: one product for all rows of a group together.

    With queries for the pattern and transposed keys for the values it gives their scores.
    """
    rows, heads, n_queries, _ = pattern.shape
    stacked = pattern.reshape(rows * values.shape[1], -1, pattern.shape[-1])
    return torch.bmm(stacked, values.flatten(0, 1)).view(rows, heads, n_queries, -1)


def few_queries(values: Tensor, n_queries: int, n_keys: int) -> bool:
    """Whether the fused kernel would be the slower one; see FEW_QUERIES.

    Args:
        values: of the type, and on the device, of queries and keys.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32 or torch.is_grad_enabled():
        return False
    return 1 < n_queries <= FEW_QUERIES and n_keys <= FEW_KEYS


@cache
def implementation() -> str:
    """The name under which transformers knows the implementation, from now on."""
    # Imported here because transformers' models take seconds, and reports need none.
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, shared_prefix_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
    return NAME
