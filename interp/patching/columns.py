"""One call of a transformers model for some columns of some prompts."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from interp.models.limits import check_batch
from interp.patching.batch import TokenBatch


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

    Raises:
        UserError: prompts beyond the model's positions, or tokens beyond its vocabulary.
    """
    check_batch(hf_model, batch)
    accepted = inspect.signature(hf_model.forward).parameters
    arguments: dict[str, Any] = {
        "input_ids": batch.tokens[rows, start:end],
        "attention_mask": batch.mask[rows, :end].long(),
        "use_cache": cache is not None,
    }
    if "position_ids" in accepted:
        arguments["position_ids"] = batch.positions[rows, start:end]
    if cache is not None:
        arguments["past_key_values"] = cache
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = keep
    if not getattr(hf_model.config, "return_dict", True):  # a checkpoint that asks for tuples
        arguments["return_dict"] = True
    with contiguous_unembedding(hf_model):
        return hf_model(**arguments).logits[:, -keep:]


@contextmanager
def contiguous_unembedding(hf_model: Any) -> Iterator[None]:
    """The unembedding gets its input as one block of memory.

    The last columns of a batch are a strided view, for which torch takes a batched product that is
    many times slower on a CPU.
    """
    unembedding = hf_model.get_output_embeddings()

    def contiguous(module: Any, args: tuple[Any, ...]) -> Any:
        return tuple(one.contiguous() if isinstance(one, Tensor) else one for one in args)

    if unembedding is None:
        yield
        return
    handle = unembedding.register_forward_pre_hook(contiguous)
    try:
        yield
    finally:
        handle.remove()
