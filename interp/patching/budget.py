"""How many rows one forward pass may hold: a memory budget, not a constant.

The estimate counts, in numbers per row: for every run column the widest layer's activations (MLP
inner values three times, the residual stream's size ten times), the keys and values that attention
sees, and the attention pattern of one layer.
"""

from typing import Any

import torch

from interp.errors import UserError
from interp.models.precision import result_dtype

CPU_BUDGET = 192 * 2**20
"""Bytes, for all batches that run side by side. More rows gain nothing on a CPU: batches of 24 MiB
and of 100 MiB take the same time, 400 MiB a sixth more (two cores, 135M parameters)."""
GPU_SHARE = 0.25
"""Of the free memory of a GPU."""


def default_budget(device: torch.device) -> int:
    """Bytes that one forward pass of a sweep may take on this device."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return CPU_BUDGET


def bytes_per_row(model: Any, tail: int, width: int) -> int:
    """Estimate of what one row of ``tail`` run columns out of ``width`` takes in a forward pass."""
    cfg = model.cfg
    n_kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    inner = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    numbers = tail * (3 * inner + 10 * cfg.d_model)
    numbers += 2 * width * n_kv_heads * cfg.d_head + cfg.n_heads * tail * width
    return numbers * _itemsize(model)


def rows_within(
    model: Any, *, tail: int, width: int, budget: int | None, device: torch.device
) -> int:
    """The most rows that fit. Raises UserError if not even one does."""
    limit = default_budget(device) if budget is None else budget
    each = bytes_per_row(model, tail, width)
    if each > limit:
        raise UserError(
            f"a budget of {limit / 2**20:.3g} MiB is too small for one prompt of {width} tokens, "
            f"which takes about {each / 2**20:.3g} MiB"
        )
    return limit // each


def _itemsize(model: Any) -> int:
    # Whatever the weights' type, a sweep's activations are float32 at least.
    return result_dtype(model).itemsize
