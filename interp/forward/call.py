"""One call of a transformers model for some columns of some prompts."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from interp.forward.batch import TokenBatch
from interp.models.call import call_model
from interp.models.limits import check_length, check_tokens


def call_columns(
    hf_model: Any,
    batch: TokenBatch,
    rows: Int[Tensor, " row"],
    *,
    start: int = 0,
    end: int | None = None,
    cache: Cache | None = None,
    keep: int = 1,
) -> Float[Tensor, "row keep d_vocab"]:
    """Run columns [start, end) of some prompts; returns the last ``keep`` columns' logits.

    The model runs in evaluation mode, and is left in the mode that it was in.

    Raises:
        UserError: prompts beyond the model's positions, or tokens beyond its vocabulary.
    """
    check_tokens(hf_model, *batch.token_range)
    check_length(hf_model, batch.longest, batch.width)
    tokens, mask = batch.tokens[rows, start:end], batch.mask[rows, :end]
    return call_model(hf_model, tokens, mask, cache=cache, keep=keep)
