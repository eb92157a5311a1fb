"""Logits at the positions only at which a token of an answer is predicted.

The unembedding of the embedded model is a fifth of its weights, and its logits are 49,152 numbers a
position; answers are a tenth to a quarter of the tokens.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from interp.moelora.data.encoding import IGNORED


def predicting_positions(labels: Int[Tensor, "example pos"]) -> Int[Tensor, " position"]:
    """The positions at which some example's next token is part of its answer."""
    return (labels[:, 1:] != IGNORED).any(dim=0).nonzero()[:, 0]


def keeps_logits(model: Any) -> bool:
    """Whether a transformers or PEFT model can compute the logits of some positions only."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def logits_at(
    model: Any,
    inputs: Mapping[str, Any],
    positions: Int[Tensor, " position"],
    *,
    keeps: bool,
) -> tuple[Any, Float[Tensor, "example position d_vocab"]]:
    """A forward pass's outputs, and its logits at these positions.

    `keeps` is what `keeps_logits` says of the model.
    """
    if keeps:
        outputs = model(**inputs, logits_to_keep=positions)
        return outputs, outputs.logits
    outputs = model(**inputs)
    return outputs, outputs.logits[:, positions]
