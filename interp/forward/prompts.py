"""What somebody gives to a patching method, as the methods want it, or refused by its name."""

from typing import Any

import torch

from interp.arguments import listed
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked


def device_of(model: HookedModel) -> torch.device:
    """Where the model is: inputs go there."""
    return next(iter(model.original_model.parameters())).device


def batch_for(model: HookedModel, prompts: Any, what: str = "prompts") -> TokenBatch:
    """Prompts as a batch on the model's device; see ``TokenBatch.of``.

    Raises:
        UserError: a model without hook points, or what is no prompts.
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
    """A name of each prompt, such as its group; none at all where nothing was given.

    Raises:
        UserError: another number of them, or one text for all.
    """
    if given is None:
        return ()
    names = tuple(str(one) for one in listed(what, given, "one name for each prompt"))
    if names and len(names) != n_prompts:
        raise UserError(f"{n_prompts} prompts but {len(names)} {what}")
    return names
