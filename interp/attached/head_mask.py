"""An attention mask with an entry for every head, which cuts some heads' view of some keys.

transformers gives an attention module a mask [prompt 1 query key]: True or False (``sdpa``),
numbers that are added to the scores (``eager``), or None where the kernel leaves later keys out by
itself. Both kernels take one [prompt head query key] as well. log(factor) is added to the scores of
the heads that are constrained, at the keys that they are to read less; factor 0 leaves them out.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def cut_pairs(
    at: Bool[Tensor, "prompt pos"], *, first_query: int, n_queries: int, first_key: int, n_keys: int
) -> Bool[Tensor, "prompt query key"]:
    """The (query, key) pairs whose attention changes: all queries after a prompt's last key.

    Args:
        at: the keys, as positions of the text; it may be shorter than the text.
        first_query, first_key: the positions at which queries and keys begin; a sliding window has
            dropped the keys before ``first_key``, and a cache of fixed length has room for more.
    """
    width = max(at.shape[1], first_key + n_keys)
    keys = torch.nn.functional.pad(at, (0, width - at.shape[1]))[:, first_key : first_key + n_keys]
    positions = torch.arange(at.shape[1], device=at.device)
    last = torch.where(at, positions, -1).amax(dim=1)
    queries = torch.arange(first_query, first_query + n_queries, device=at.device)
    return (queries[None, :] > last[:, None])[:, :, None] & keys[:, None, :]


def mask_by_head(
    mask: Bool[Tensor, "#prompt #head query key"] | Float[Tensor, "#prompt #head query key"],
    pairs: Bool[Tensor, "prompt query key"],
    heads: Bool[Tensor, " head"],
    *,
    factor: float,
    dtype: torch.dtype,
) -> Bool[Tensor, "prompt head query key"] | Float[Tensor, "prompt head query key"]:
    """The mask, for every head; of the same kind, or of ``dtype`` if a factor needs numbers."""
    where = pairs[:, None] & heads[None, :, None, None]
    if mask.dtype == torch.bool:
        if factor == 0:
            return mask & ~where
        numbers = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        mask = numbers.masked_fill(~mask, torch.finfo(dtype).min)
    if factor == 0:
        return torch.where(where, torch.finfo(mask.dtype).min, mask)
    return torch.where(where, mask + math.log(factor), mask)


def causal_mask(
    *, first_query: int, n_queries: int, first_key: int, n_keys: int, device: torch.device
) -> Bool[Tensor, "1 1 query key"]:
    """True where a query sees a key: at its own position and before."""
    queries = torch.arange(first_query, first_query + n_queries, device=device)
    keys = torch.arange(first_key, first_key + n_keys, device=device)
    return (keys[None, :] <= queries[:, None])[None, None]
