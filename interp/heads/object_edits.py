"""Edits on premises: where a head's value at the object comes from.

``zero``; the ``masked`` run (the object replaced by a neutral word) or the true-premise ``twin``,
aligned at the object; the ``mean`` over object tokens. One function makes the edit, so that the
search for heads and the constraint that follows from it do the same thing.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.heads.headset import Site, check_site
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import aligned_columns
from interp.patching.edits import ActivationEdit, AttentionEdit, HeadEdit
from interp.patching.patch_source import tail_values
from interp.precision import widened
from interp.premises.encode import EncodedPremises
from interp.premises.questions import QuestionKind

Source = Literal["zero", "masked", "twin", "mean"]


@checked
def premise_edit(
    model: HookedModel,
    encoded: EncodedPremises,
    kind: QuestionKind = "false",
    *,
    site: Site = "output",
    source: Source = "zero",
    factor: float = 0.0,
    mean: Float[Tensor, "layer head d_head"] | None = None,
    last_only: bool = False,
) -> HeadEdit:
    """The edit at the object of every prompt of ``encoded.batch(kind)``.

    Args:
        source: what replaces the heads' values: ``zero``; the values of the ``masked`` or ``twin``
            run; or their ``mean``. The ``attention`` site has only ``zero``.
        factor: weight of the head's own value (``output``) or of its attention (``attention``).
        mean: the mean output to use with source ``mean``; by default over these prompts' objects.
        last_only: edit the object's last token only, as the paper's path patching does.
    """
    check_site(site)
    if source not in get_args(Source):
        raise UserError(f"unknown source {source!r}; known: {', '.join(get_args(Source))}")
    at = encoded.objects(kind)
    if site == "attention":
        if source != "zero":
            raise UserError(f"site 'attention' cuts: source {source!r} is for site 'output'")
        return AttentionEdit(at, factor)
    if last_only:
        at = last_true(at)
    if source == "zero":
        return ActivationEdit(at, scale=factor)
    first = int(at.any(dim=0).nonzero()[0])
    if source == "mean":
        if mean is None:
            mean = mean_output(model, encoded, kind)
        shape = (len(mean), at.shape[0], at.shape[1] - first, *mean.shape[1:])
        return ActivationEdit(at, mean[:, None, None].expand(shape), scale=factor, first=first)
    there = encoded.objects(source)
    begin = int(there.any(dim=0).nonzero()[0])
    z = tail_outputs(model, encoded.batch(source), begin)
    columns = aligned_columns(at, there)[:, first:] - begin
    index = columns.clamp(min=0)[None, :, :, None, None].expand(len(z), -1, -1, *z.shape[3:])
    return ActivationEdit(at, z.gather(2, index), scale=factor, first=first)


def mean_output(
    model: HookedModel, encoded: EncodedPremises, kind: QuestionKind = "false"
) -> Float[Tensor, "layer head d_head"]:
    """Every head's output averaged over the object tokens of the prompts."""
    at = encoded.objects(kind)
    first = int(at.any(dim=0).nonzero()[0])
    z = widened(tail_outputs(model, encoded.batch(kind), first))
    weights = at[None, :, first:, None, None].to(z.dtype)
    return (z * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))


@torch.no_grad()
def tail_outputs(
    model: HookedModel, batch: TokenBatch, first: int
) -> Float[Tensor, "layer prompt tail head d_head"]:
    """Every head's output from column ``first`` on, in chunks of prompts."""
    return tail_values(model, batch, "z", first)


def last_true(at: Bool[Tensor, "prompt pos"]) -> Bool[Tensor, "prompt pos"]:
    """Only the last True of each row."""
    return at & (at.flip(1).long().cumsum(dim=1).flip(1) == 1)
