"""One call of a transformers model for some positions of some prompts."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from interp.forward.batch import TokenBatch
from interp.models.call import call_model
from interp.models.limits import check_length, check_tokens


def call_positions(
    hf_model: Any,
    batch: TokenBatch,
    rows: Int[Tensor, " row"],
    *,
    start: int = 0,
    end: int | None = None,
    cache: Cache | None = None,
    keep: int = 1,
) -> Float[Tensor, "row keep d_vocab"]:
    """Run positions [start, end) of some prompts; returns the last ``keep`` positions' logits.

    Raises:
        UserError: prompts beyond the model's positions, or tokens beyond its vocabulary.
    """
    check_limits(hf_model, batch)
    tokens, mask = batch.tokens[rows, start:end], batch.mask[rows, :end]
    return call_model(hf_model, tokens, mask, cache=cache, keep=keep)


def check_limits(hf_model: Any, batch: TokenBatch) -> None:
    """Raise UserError for prompts beyond a model's positions, or tokens beyond its vocabulary."""
    check_tokens(hf_model, *batch.token_range)
    check_length(hf_model, batch.longest, batch.width)
