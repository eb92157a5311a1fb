"""Prompts on a model's device, refused by the argument's name, and one forward pass over them."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from interp.arguments import listed
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.models.call import call_model
from interp.models.hooked_model import HookedModel
from interp.models.limits import changes_rotary, check_length, check_rotary, check_tokens
from interp.models.placement import input_device
from interp.models.versions import check_hooked


def device_of(model: HookedModel) -> torch.device:
    """The device that token ids belong on; see `interp.models.placement`."""
    return input_device(model.original_model)


def batch_for(model: HookedModel, prompts: Any, what: str = "prompts") -> TokenBatch:
    """Prompts as a batch on the model's device; see ``TokenBatch.of``.

    Raises:
        UserError: a model without hook points, or anything but token ids.
    """
    check_hooked(model)
    return TokenBatch.of(prompts, what=what, device=device_of(model))


def pairs_for(model: HookedModel, clean: Any, corrupted: Any) -> tuple[TokenBatch, TokenBatch]:
    """The clean and the corrupted prompts of a method, as many of one as of the other."""
    pair = batch_for(model, clean, "clean"), batch_for(model, corrupted, "corrupted")
    if len(pair[0]) != len(pair[1]):
        raise UserError(
            f"{len(pair[0])} clean prompts but {len(pair[1])} corrupted ones: give pairs"
        )
    return pair


def names_of_prompts(what: str, given: Any, n_prompts: int) -> tuple[str, ...]:
    """A name for each prompt, such as its group; empty for None.

    Raises:
        UserError: another number of them, or one text for all.
    """
    if given is None:
        return ()
    names = tuple(str(name) for name in listed(what, given, "one name for each prompt"))
    if names and len(names) != n_prompts:
        raise UserError(f"{n_prompts} prompts but {len(names)} {what}")
    return names


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
    if changes_rotary(hf_model, batch.longest):
        check_rotary(hf_model, batch.shortest, batch.longest)
