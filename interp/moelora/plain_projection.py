"""Which projections are a product with a frozen matrix and nothing else."""

from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps its hooks."""


def is_watched(module: nn.Module) -> bool:
    """Whether a module has hooks, or a forward of its own."""
    state = module.__dict__
    return "forward" in state or any(state[hooks] for hooks in _HOOKS)


def is_plain_projection(base: Any, x: Tensor) -> bool:
    """Whether a module is torch's own frozen projection, unwatched, and in the type of its input.

    Under autocast only where that is autocast's type too, so that nothing would be cast.
    """
    if type(base) is not nn.Linear or type(base.weight) is not nn.Parameter or is_watched(base):
        return False
    parts = [base.weight] if base.bias is None else [base.weight, base.bias]
    kind = x.device.type
    as_is = not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) == x.dtype
    return as_is and all(part.dtype == x.dtype and not part.requires_grad for part in parts)
