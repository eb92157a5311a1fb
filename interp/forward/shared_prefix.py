"""Attention over a beginning that many rows share, as an attention implementation of transformers.

A sweep runs the same prompts many times with different edits. What stands before the first edited
column is the same in all of them, so that its keys and values are kept once per prompt and lent to
every row. The model's own code calls the function here through transformers' attention interface;
rotary embeddings, key and query norms, masks and sliding windows stay that code's business.

Where a hook wants the scores or the pattern, attention is computed step by step; elsewhere by
torch's fused kernel, which differs from it by rounding only, unless there are too few columns for
that kernel to pay.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.precision import widened

NAME = "shared_prefix"
"""Under this name transformers knows the implementation."""

_IGNORED = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "sliding_window",
        "is_causal",
        "return_dict",
        "position_embeddings",
        "logits_to_keep",
    }
)
"""Arguments that change nothing here: the mask says what they say."""

FEW_QUERIES, FEW_KEYS = 32, 128
"""Up to so many, three plain operations beat the fused kernel on a CPU in float32: 2.9 against 5.5
milliseconds for 48 rows of 18 queries, 52 keys, 9 heads in 3 groups; with 64 queries they lose."""

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SharedPrefix:
    """What the running rows share, and what is to be done to their attention.

    Attributes:
        keys_values: per layer keys and values [prompt kv_head column d_head] of the beginning.
        rows: which prompt each row is.
        scores, patterns: per layer the functions that edit scores and pattern [row head q k].
        last_only: the layer of which only the last query's output is needed, or None.
        served: the layers whose attention ran, and with it their functions.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    rows: Int[Tensor, " row"]
    scores: Mapping[int, list[Step]] = field(default_factory=dict)
    patterns: Mapping[int, list[Step]] = field(default_factory=dict)
    last_only: int | None = None
    served: set[int] = field(default_factory=set)

    def whole(self, layer: int, own: Tensor, which: int) -> Tensor:
        """Keys (0) or values (1) of all columns: the lent ones, then the rows' own."""
        if not self.keys_values:
            return own
        lent = self.keys_values[layer][which]
        if self.repeats:  # as views: nothing of the beginning is copied twice
            own = own.unflatten(0, (self.repeats, len(lent)))
            return torch.cat([lent.expand(self.repeats, *lent.shape), own], dim=-2).flatten(0, 1)
        return torch.cat([lent[self.rows], own], dim=-2)

    @cached_property
    def repeats(self) -> int:
        """How many times all prompts stand in the rows, in their order; 0 if they do not."""
        n_prompts, n_rows = len(self.keys_values[0][0]), len(self.rows)
        if n_rows % n_prompts:
            return 0
        in_order = torch.arange(n_rows, device=self.rows.device) % n_prompts
        return n_rows // n_prompts if torch.equal(self.rows, in_order) else 0


_LENT: ContextVar[SharedPrefix] = ContextVar("lent_prefix")


@contextmanager
def use_prefix(prefix: SharedPrefix) -> Iterator[None]:
    """While the context is open, models with this implementation read from ``prefix``."""
    token = _LENT.set(prefix)
    try:
        yield
    finally:
        _LENT.reset(token)


class _Lent(DynamicLayer):
    """One layer of the beginning: its length makes masks and positions; it keeps nothing new."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return key_states, value_states


def prefix_cache(keys_values: tuple[tuple[Tensor, Tensor], ...]) -> Cache | None:
    """The beginning as the model's cache; None where there is none."""
    if not keys_values:
        return None
    return Cache(layers=[_Lent(keys, values) for keys, values in keys_values])


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
    lent, layer = _LENT.get(), int(module.layer_idx)
    lent.served.add(layer)
    scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
    keys, values = lent.whole(layer, key, 0), lent.whole(layer, value, 1)
    columns = query.shape[2]
    if layer == lent.last_only:
        query = query[:, :, -1:]
        attention_mask = None if attention_mask is None else attention_mask[:, :, -1:]
    score_steps, pattern_steps = lent.scores.get(layer, []), lent.patterns.get(layer, [])
    if score_steps or pattern_steps or softcap is not None or _few(query, keys):
        # From here to the softmax in float32 at least, whatever the model's type.
        scores = widened(grouped_scores(query, keys)).mul_(scale)
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
    if out.shape[1] != columns:
        whole = out.new_zeros(out.shape[0], columns, *out.shape[2:])
        whole[:, -1:] = out
        return whole, None
    return out.contiguous(), None


def grouped_scores(
    query: Float[Tensor, "row head q d_head"], keys: Float[Tensor, "row kv_head k d_head"]
) -> Float[Tensor, "row head q k"]:
    """Dot products of every query head with its group's keys, without repeating the keys."""
    return _by_group(query, keys.transpose(-1, -2))


def weighted_values(
    pattern: Float[Tensor, "row head q k"], values: Float[Tensor, "row kv_head k d_head"]
) -> Float[Tensor, "row head q d_head"]:
    """The values weighted by the pattern, group by group."""
    return _by_group(pattern, values)


def _by_group(of_heads: Tensor, of_groups: Tensor) -> Tensor:
    """Product of every head's matrix with its group's: one of all the group's rows together."""
    rows, heads, columns, _ = of_heads.shape
    stacked = of_heads.reshape(rows * of_groups.shape[1], -1, of_heads.shape[-1])
    return torch.bmm(stacked, of_groups.flatten(0, 1)).view(rows, heads, columns, -1)


def _few(query: Tensor, keys: Tensor) -> bool:
    """Whether the fused kernel would be the slower one; see FEW_QUERIES."""
    if query.device.type != "cpu" or query.dtype != torch.float32 or torch.is_grad_enabled():
        return False
    return 1 < query.shape[2] <= FEW_QUERIES and keys.shape[2] <= FEW_KEYS


ALL_ATTENTION_FUNCTIONS.register(NAME, shared_prefix_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
