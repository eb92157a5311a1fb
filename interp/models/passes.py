"""Something to do before every forward pass of a transformers model, from its prompts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn


@contextmanager
def before_each_call(hf_model: nn.Module, begin: Callable[..., None]) -> Iterator[None]:
    """While open, ``begin(tokens, mask, seen)`` is called before every call of the module.

    ``tokens`` are the new token ids [prompt pos], or None where the pass is given embeddings;
    ``mask`` is the attention mask, of a prefill that of its tokens, or None; ``seen`` counts the
    positions in the cache.
    """

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        tokens = kwargs.get("input_ids", args[0] if args else None)
        seen = 0 if past is None else int(past.get_seq_length())
        mask = kwargs.get("attention_mask")
        if tokens is not None:
            mask = _real_tokens(mask, seen + tokens.shape[1])
        begin(tokens, mask, seen)

    with hf_model.register_forward_pre_hook(hook, with_kwargs=True):
        yield


def _real_tokens(
    mask: Any, n_positions: int
) -> Bool[Tensor, "prompt pos"] | Int[Tensor, "prompt pos"] | None:
    """Which positions hold real tokens, from any mask that transformers is called with.

    ``generate`` gives a mask of queries and keys where the cache has a fixed length, and one for
    every kind of layer where there are several.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return None
    if mask.ndim == 4:  # [prompt 1 query key], True or 0 where a query sees a key
        seen = mask if mask.dtype == torch.bool else mask == 0
        return seen[:, 0, :, :n_positions].any(dim=1)
    return mask[:, :n_positions]
