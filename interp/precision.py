"""The precision of each number type, and the type in which sums and differences are computed.

bfloat16 keeps eight bits: numbers between 16 and 32 are 0.125 apart, so that an effect of a tenth
of a logit disappears in the rounding of the two logits that it is a difference of. What is computed
*from* a model's numbers (metrics, differences, means, products with gradients) is therefore never
narrower than float32, and never narrower than the numbers themselves.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.quantized import computing_dtype, is_packed, quantized_modules


@dataclass(frozen=True)
class Precision:
    """What rounding does to a number type.

    Attributes:
        agreement: two ways of computing the same logits differ by no more than this, relative to
            the largest logit plus one; anything else differs by far more.
        resolution: an effect (a difference of two metrics, in logits or nats) smaller than this is
            rounding, and counts as none.
    """

    agreement: float
    resolution: float


PRECISIONS: dict[torch.dtype, Precision] = {
    # transformers computes some norms and softmaxes in float32 whatever the model's type, so that
    # only equal formulas agree this closely.
    torch.float64: Precision(agreement=1e-9, resolution=1e-9),
    # The order of a batch alone moves the logits of a 135M model by up to 7e-5.
    torch.float32: Precision(agreement=1e-4, resolution=2e-4),
    torch.float16: Precision(agreement=1e-2, resolution=1e-2),
    torch.bfloat16: Precision(agreement=5e-2, resolution=5e-2),
}
"""By number type; see ``precision_of``."""


def precision_of(dtype: torch.dtype) -> Precision:
    """The precision of a number type; the coarsest for an unknown one, such as 8-bit types."""
    return PRECISIONS.get(dtype, PRECISIONS[torch.bfloat16])


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums and differences of such numbers are computed: float32 or float64."""
    return torch.promote_types(dtype, torch.float32)


def widened(values: Tensor) -> Tensor:
    """The values as float32, or unchanged if they are float32 or wider."""
    return values.to(wide_dtype(values.dtype))


def dtype_of(model: Any) -> torch.dtype:
    """The number type of a hooked model's activations: that of its first weight that is plain."""
    return plain_dtype(model.original_model)


def plain_dtype(hf_model: nn.Module) -> torch.dtype:
    """The type of the first weight that is neither packed nor a whole number; else float32."""
    weights = (weight for weight in hf_model.parameters() if not is_packed(weight))
    return next((weight.dtype for weight in weights), torch.float32)


def coarsest_dtype(model: Any) -> torch.dtype:
    """The coarsest type that anything in a hooked model is rounded to.

    That of its activations, unless quantized projections compute in another: ``int8`` in a model
    with LLM.int8(), ``bfloat16`` where 4-bit projections compute in it.
    """
    found = {computing_dtype(module) for _, module in quantized_modules(model.original_model)}
    kinds = {dtype_of(model), *found} - {None}
    return max(kinds, key=lambda kind: precision_of(kind).agreement)


def result_dtype(model: Any) -> torch.dtype:
    """The type of a model's metrics and effects: float64 for a model in float64, else float32."""
    return wide_dtype(dtype_of(model))


def agrees(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether two logits of the same run differ by no more than a model's type explains."""
    scale = float(expected.abs().max()) + 1.0
    difference = float((widened(found) - widened(expected)).abs().max())
    return difference <= precision_of(dtype).agreement * scale  # never true of NaN
