"""An attention mask with an entry for every head, which cuts some heads' view of some keys.

transformers gives an attention module a mask [prompt 1 query key]: True or False (``sdpa``),
numbers that are added to the scores (``eager``), or None where the kernel leaves later keys out by
itself. Both kernels take one [prompt head query key] as well. log(factor) is added to the scores of
the heads that are constrained, at the keys that they are to read less; factor 0 leaves them out.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.cache_utils import Cache

MakeMask = Callable[[Any, Tensor, Cache | None], Tensor | None]
"""From the mask that the attention is given, its input [prompt pos d_model] and the cache, to the
mask that it gets; None to leave it as it is."""


def cut_pairs(
    at: Bool[Tensor, "prompt pos"],
    *,
    first_query: int,
    n_queries: int,
    first_key: int,
    n_keys: int,
    end: int | None = None,
) -> Bool[Tensor, "prompt query key"]:
    """The (query, key) pairs whose attention changes: all queries after a prompt's last key.

    Args:
        at: the keys, as positions of the text; it may be shorter than the text.
        first_query, first_key: the positions at which queries and keys begin; a sliding window has
            dropped the keys before ``first_key``, and a cache of fixed length has room for more.
        end: the position from which on queries are left alone; None for no end.
    """
    width = max(at.shape[1], first_key + n_keys)
    keys = torch.nn.functional.pad(at, (0, width - at.shape[1]))[:, first_key : first_key + n_keys]
    positions = torch.arange(at.shape[1], device=at.device)
    last = torch.where(at, positions, -1).amax(dim=1)
    queries = torch.arange(first_query, first_query + n_queries, device=at.device)
    cut = queries[None, :] > last[:, None]
    if end is not None:
        cut = cut & (queries < end)
    return cut[:, :, None] & keys[:, None, :]


def mask_by_head(
    mask: Bool[Tensor, "#prompt #head query key"] | Float[Tensor, "#prompt #head query key"],
    pairs: Bool[Tensor, "prompt query key"],
    heads: Bool[Tensor, " head"],
    *,
    factor: float | Float[Tensor, " prompt"],
    dtype: torch.dtype,
) -> Bool[Tensor, "prompt head query key"] | Float[Tensor, "prompt head query key"]:
    """The mask, for every head; of the same kind, or of ``dtype`` if a factor needs numbers.

    Args:
        factor: zero or more; one number, or one for each prompt.
    """
    where = pairs[:, None] & heads[None, :, None, None]
    cuts = not isinstance(factor, Tensor) and factor == 0
    if mask.dtype == torch.bool:
        if cuts:
            return mask & ~where
        numbers = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        mask = numbers.masked_fill(~mask, torch.finfo(dtype).min)
    lowest = torch.finfo(mask.dtype).min
    if cuts:
        return torch.where(where, lowest, mask)
    if isinstance(factor, Tensor):
        more = factor.to(mask.device).log().to(mask.dtype)[:, None, None, None]
        return torch.where(where, (mask + more).clamp(min=lowest), mask)
    return torch.where(where, mask + math.log(factor), mask)


def causal_mask(
    *, first_query: int, n_queries: int, first_key: int, n_keys: int, device: torch.device
) -> Bool[Tensor, "1 1 query key"]:
    """True where a query sees a key: at its own position and before."""
    queries = torch.arange(first_query, first_query + n_queries, device=device)
    keys = torch.arange(first_key, first_key + n_keys, device=device)
    return (keys[None, :] <= queries[:, None])[None, None]


def mask_hook(module: nn.Module, make: MakeMask) -> Callable[..., Any]:
    """A forward pre-hook, with keywords, that gives an attention module another mask."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    place = names.index("attention_mask")

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = kwargs.get("attention_mask", args[place] if len(args) > place else None)
        hidden = args[0] if args else kwargs["hidden_states"]
        caches = (value for value in (*args, *kwargs.values()) if isinstance(value, Cache))
        mask = make(given, hidden, next(caches, None))
        if mask is None:
            return None
        if len(args) > place:
            return (*args[:place], mask, *args[place + 1 :]), kwargs
        return args, {**kwargs, "attention_mask": mask}

    return hook


def as_scores(
    given: Any, hidden: Float[Tensor, "prompt pos d_model"], n_heads: int, *, first_query: int = 0
) -> Float[Tensor, "prompt head query key"]:
    """A mask as scores: zero where a query sees a key, else the least number.

    What is added to the scores of an attention is edited like the scores.

    Args:
        first_query: how many positions are cached.
    """
    n_prompts, n_queries = hidden.shape[:2]
    if given is None:
        given = causal_mask(
            first_query=first_query,
            n_queries=n_queries,
            first_key=0,
            n_keys=first_query + n_queries,
            device=hidden.device,
        )
    if given.dtype == torch.bool:
        numbers = torch.zeros(given.shape, dtype=hidden.dtype, device=given.device)
        given = numbers.masked_fill(~given, torch.finfo(hidden.dtype).min)
    return given.expand(n_prompts, n_heads, -1, -1)
