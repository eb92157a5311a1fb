"""Writing an intervention into weights: at site ``output``, and for every position of every text.

A head's output goes into its own columns of the output projection. Columns of zeros are a head that
writes nothing; columns times a factor, one whose output is scaled. Weights know no false words, so
they act at all tokens of all texts, which is another thing than a constraint and costs more.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.attached.anatomy import Anatomy
from interp.errors import UserError
from interp.interventions.intervention import Intervention


def check_bakeable(intervention: Intervention) -> None:
    """Raise UserError for an intervention that no weights can do."""
    if intervention.experts:
        raise UserError(
            "experts cannot be baked: which of them act is decided by their router for each token; "
            "leave --bake out"
        )
    if not intervention.heads:
        raise UserError("there are no heads to bake")
    for part in intervention.heads:
        if part.site != "output":
            raise UserError(
                f"heads at site {part.site!r} cannot be baked: which tokens a head reads is "
                "computed anew for each prompt, no weight says it; leave --bake out, or evaluate "
                "the run at --site output"
            )
        if part.mode not in ("zero", "scale"):
            raise UserError(
                f"mode {part.mode!r} cannot be baked: what it puts in comes from other prompts; "
                "leave --bake out, or evaluate the run with --mode zero or scale"
            )


@torch.no_grad()
def bake_into(hf_model: Any, intervention: Intervention) -> None:
    """Scale the constrained heads' columns of a transformers model's output projections.

    Raises:
        UserError: what `check_bakeable` refuses, a head that the model does not have, or a
            projection whose weights are quantized, shared between layers, or of another kind.
    """
    check_bakeable(intervention)
    anatomy = Anatomy.of(hf_model)
    anatomy.check(intervention)
    chosen = [(part, layer, head) for part in intervention.heads for layer, head in part.heads]
    columns = {layer: _columns_of(anatomy, layer) for _, layer, _ in chosen}  # before any is scaled
    for part, layer, head in chosen:
        by_head = columns[layer]
        width = len(by_head) // anatomy.n_heads
        own_part = by_head[head * width : (head + 1) * width]
        if part.factor:
            own_part.mul_(part.factor)
        else:
            own_part.zero_()


def _columns_of(anatomy: Anatomy, layer: int) -> Tensor:
    """The weights of a layer's output projection, by its input: a view [head*d_head, d_model]."""
    module = anatomy.projection(layer)
    if type(module) is nn.Linear:
        weight = module.weight.T
    elif type(module) is Conv1D:  # of GPT-2, which holds them the other way round
        weight = module.weight
    else:
        raise UserError(
            f"the output projection of layer {layer} is a {type(module).__name__}, which cannot be "
            "scaled by head: bake into weights that are neither quantized nor adapted"
        )
    others = [number for number, found in enumerate(anatomy.attention) if found is not None]
    shared = [number for number in others if anatomy.projection(number) is module]
    if len(shared) > 1 or weight.is_meta or len(weight) % anatomy.n_heads:
        raise UserError(
            f"the output projection of layer {layer} cannot be scaled by head: its weights are "
            "shared between layers, elsewhere, or not divided over the heads"
        )
    return weight
