"""NaN and infinity in weights: which one has them.

A sum is finite if all its terms are, unless it overflows; so one pass over the weights that sums
them finds a bad one, and only where a sum is not finite each value is looked at.
"""

from typing import Any

import torch
from torch import nn

from interp.errors import UserError


def first_bad_weight(model: Any) -> str | None:
    """The name of the first parameter or buffer with a value that is not finite, or None."""
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if not weight.is_floating_point() or weight.is_meta or not weight.numel():
            continue
        total = weight.detach().sum(dtype=torch.float32)
        if not bool(torch.isfinite(total)) and not bool(torch.isfinite(weight).all()):
            return name
    return None


def check_weights(model: nn.Module, spec: str) -> None:
    """Raise UserError that names the first weight that is NaN or infinite, and how many are."""
    name = first_bad_weight(model)
    if name is None:
        return
    weight: Any = model.get_parameter(name) if name in dict(model.named_parameters()) else None
    weight = model.get_buffer(name) if weight is None else weight
    bad = int((~torch.isfinite(weight)).sum())
    raise UserError(
        f"the weights of {spec} are damaged: {bad} of {weight.numel()} values of {name} are NaN or "
        "infinite; get the model again, or load it in another dtype"
    )
