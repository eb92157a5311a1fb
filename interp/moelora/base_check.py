"""Which base model an adapter belongs to.

An adapter's configuration records the shape of its base model and a few of its weights. Another
shape is an error when the adapter is loaded; the same shape with other weights (a fine-tuned or
rounded copy) is legitimate and only warned of.
"""

import logging
from typing import Any

import torch
from torch import nn

from interp.errors import UserError

logger = logging.getLogger(__name__)

_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
_SAMPLED = 8
# Rounding to bfloat16 changes a weight by less than 0.4 %; other training by much more.
_TOLERANCE = 0.02


def describe_base(model: nn.Module) -> dict[str, Any]:
    """The model's sizes and some of its weights, as JSON can hold them."""
    settings: Any = getattr(model, "config", None)
    if hasattr(settings, "get_text_config"):
        settings = settings.get_text_config()
    sizes = {name: getattr(settings, name, None) for name in _SIZES}
    known = {name: value for name, value in sizes.items() if isinstance(value, str | int)}
    return {**known, "weights": _some_weights(model)}


def check_base(recorded: dict[str, Any], model: nn.Module) -> None:
    """Compare `model` with what an adapter recorded; UserError if its shape is another."""
    here = describe_base(model)
    differing = [
        f"{name} is {here[name]}, not {recorded[name]}"
        for name in _SIZES
        if name in here and name in recorded and here[name] != recorded[name]
    ]
    if differing:
        raise UserError(
            f"the adapter was made for another base model ({'; '.join(differing)} there): load it "
            "with its own base model"
        )
    was, now = recorded.get("weights") or [], here["weights"]
    if len(was) == len(now) and was:
        before, after = torch.tensor(was), torch.tensor(now)
        if (before - after).abs().max() > _TOLERANCE * before.abs().max():
            logger.warning(
                "the adapter was made for a base model of this shape but with other weights"
            )


def _some_weights(model: nn.Module) -> list[float]:
    """The first values of the last weight matrix that is neither quantized nor an adapter's."""
    for name, parameter in reversed(list(model.named_parameters())):
        plain = parameter.ndim == 2 and parameter.is_floating_point() and not parameter.is_meta
        if plain and "moelora_" not in name and "modules_to_save" not in name:
            values = parameter.detach().flatten()[:_SAMPLED].float()
            return [round(value, 6) for value in values.tolist()]
    return []
