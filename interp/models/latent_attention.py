"""Hook points of latent attention (MLA: DeepSeek V2 and V3, GLM Lite, Youtu) by position and head.

TransformerLens takes a head's width from the model's config, where latent attention has widths of
its own for queries and values, and shows queries, keys and values before it swaps heads and
positions. Here ``hook_z`` is [batch pos head v_head_dim], and ``hook_q``, ``hook_k`` and ``hook_v``
are [batch pos head width], as everywhere else.
"""

from typing import Any

from torch import Tensor
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import (
    BaseTensorConversion,
)
from transformer_lens.model_bridge.generalized_components.mla_attention import MLAAttentionBridge

from interp.models.hooked_model import HookedModel


def connect_latent_attention(model: HookedModel) -> None:
    """Give the hook points of every latent attention component of a bridge the usual axes."""
    for component in model.modules():
        if isinstance(component, MLAAttentionBridge) and component.original_component is not None:
            projection = getattr(component, "o", None)
            width = getattr(component.original_component, "v_head_dim", None)
            if projection is not None and width is not None:
                projection.hook_in.hook_conversion = _SplitHeads(int(width))
            for point in (component.hook_q, component.hook_k, component.hook_v):
                point.hook_conversion = _PositionsFirst()
                point.pos_dim = 1


class _SplitHeads(BaseTensorConversion):
    """[batch pos (head width)] as [batch pos head width]."""

    splits_attention_heads = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def handle_conversion(self, input_value: Tensor, *full_context: Any) -> Tensor:
        return input_value.unflatten(-1, (-1, self.width))

    def revert(self, input_value: Tensor, *full_context: Any) -> Tensor:
        return input_value.flatten(-2)


class _PositionsFirst(BaseTensorConversion):
    """[batch head pos width] as [batch pos head width]."""

    def handle_conversion(self, input_value: Tensor, *full_context: Any) -> Tensor:
        return input_value.transpose(1, 2)

    def revert(self, input_value: Tensor, *full_context: Any) -> Tensor:
        return input_value.transpose(1, 2)
