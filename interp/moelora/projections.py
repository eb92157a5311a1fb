"""The queries, keys and values that adapted projections give, and those projections by name.

The names are those of `interp.forward.adapted_projections`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.errors import UserError
from interp.forward.adapted_projections import GATE as GATE
from interp.forward.adapted_projections import AdaptedProjection, original_of, projections_of
from interp.forward.adapted_projections import find_projection as find_projection
from interp.forward.hook_points import count_units
from interp.models.hooked_model import HookedModel
from interp.moelora.hooked import JointPart
from interp.moelora.layer import MoELoRALinear
from interp.moved import old_names

__getattr__ = old_names(__name__)


@dataclass(frozen=True)
class HeadOutputs:
    """The queries, keys or values of one layer, as the output of an adapted projection.

    Attributes:
        projection: the projection; of queries, keys and values together where it is joint.
        columns: Int[unit d_head], the part of the projection's output.
        width: the size of the projection's output.
        base: the module that gives the part without experts.
    """

    projection: AdaptedProjection
    columns: Int[Tensor, "unit d_head"]
    width: int
    base: nn.Module


def head_outputs(model: HookedModel, component: str) -> dict[int, HeadOutputs]:
    """By layer, where adapted projections give this component (``q``, ``k`` or ``v``) of the heads.

    Raises:
        UserError: a model without experts, or without any on this projection.
    """
    known = {projection.name: projection for projection in projections_of(model)}
    found = {}
    for layer, block in enumerate(model.blocks):
        original = original_of(getattr(block.attn, component))
        if isinstance(original, MoELoRALinear):
            name, adapted, base = f"blocks.{layer}.attn.{component}", original, original.base_layer
            columns = torch.arange(adapted.out_features)
        elif isinstance(original, JointPart):
            name, adapted = f"blocks.{layer}.attn.qkv", original.shared.layer
            base, columns = original.split, original.columns
        else:
            continue
        if name in known:
            columns = columns.reshape(count_units(model, component), -1)
            found[layer] = HeadOutputs(known[name], columns, adapted.out_features, base)
    if not found:
        targets = ", ".join(dict.fromkeys(projection.target for projection in known.values()))
        raise UserError(
            f"no {component} projection has experts; this adapter has them on {targets}"
        )
    return found
