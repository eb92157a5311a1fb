"""Edits of heads at the object of premises.

Replaced values come from a source: ``zero``; the ``masked`` run (the object replaced by a neutral
word) or the true-premise ``twin``, aligned at the object; or the ``mean`` over object tokens. One
function makes the edit for both the search for heads and the constraint of the heads found.
"""

from typing import Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import check_choice
from interp.checked import checked
from interp.errors import UserError
from interp.forward.prompts import device_of
from interp.heads.headset import Site, check_site
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import aligned_positions
from interp.patching.chunks import first_position
from interp.patching.edits import ActivationEdit, AttentionEdit, HeadEdit
from interp.patching.patch_source import recorded_values
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
    check_choice("source", source, get_args(Source))
    encoded = encoded.to(device_of(model))
    at = encoded.objects(kind)
    if site == "attention":
        if source != "zero":
            raise UserError(f"site 'attention' cuts: source {source!r} is for site 'output'")
        return AttentionEdit(at, factor)
    if last_only:
        at = last_true(at)
    if source == "zero":
        return ActivationEdit(at, scale=factor)
    first = first_position(at)
    if source == "mean":
        if mean is None:
            mean = mean_output(model, encoded, kind)
        mean, shape = mean.to(at.device), (len(mean), *at[:, first:].shape, *mean.shape[1:])
        return ActivationEdit(at, mean[:, None, None].expand(shape), scale=factor, first=first)
    there = encoded.objects(source)
    begin = first_position(there)
    z = recorded_values(model, encoded.batch(source), "z", first=begin)
    positions = aligned_positions(at, there)[:, first:] - begin
    index = positions.clamp(min=0)[None, :, :, None, None].expand(len(z), -1, -1, *z.shape[3:])
    return ActivationEdit(at, z.gather(2, index), scale=factor, first=first)


def mean_output(
    model: HookedModel, encoded: EncodedPremises, kind: QuestionKind = "false"
) -> Float[Tensor, "layer head d_head"]:
    """Every head's output averaged over the object tokens of the prompts."""
    encoded = encoded.to(device_of(model))
    at = encoded.objects(kind)
    first = first_position(at)
    z = widened(recorded_values(model, encoded.batch(kind), "z", first=first))
    weights = at[None, :, first:, None, None].to(z.dtype)
    return (z * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))


def last_true(at: Bool[Tensor, "prompt pos"]) -> Bool[Tensor, "prompt pos"]:
    """Only the last True of each row."""
    return at & (at.flip(1).long().cumsum(dim=1).flip(1) == 1)
