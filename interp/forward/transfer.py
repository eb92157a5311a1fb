"""Between the host and a device: what is sent to it, and rows that nobody has to read back.

Work is queued on a GPU, and the host waits for all of it whenever it reads a number. So masks and
indices are made on the host and sent with ``upload``, results are gathered on the device, and a
batch is read once.
"""

import torch
from jaxtyping import Int
from torch import Tensor

_REPEATS = "_repeats_of_prompts"


def upload(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the CPU, without waiting for what the device is doing."""
    if value.device == device:
        return value
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()  # torch waits for a copy from memory that is not pinned
    return value.to(device, non_blocking=value.device.type == "cpu")


def repeated_rows(n_prompts: int, times: int, device: torch.device) -> Int[Tensor, " row"]:
    """All prompts in their order, again and again: the rows of a batch with ``times`` edits."""
    rows = torch.arange(n_prompts, device=device).repeat(times)
    setattr(rows, _REPEATS, n_prompts)
    return rows


def repeats_of(rows: Int[Tensor, " row"], n_prompts: int) -> int:
    """How many times rows repeat all prompts in their order; 0 if they do not.

    Of rows from ``repeated_rows`` it is known; others are looked at.
    """
    times, rest = divmod(len(rows), n_prompts)
    if rest:
        return 0
    if getattr(rows, _REPEATS, None) == n_prompts:
        return times
    in_order = torch.arange(len(rows), device=rows.device) % n_prompts
    return times if torch.equal(rows, in_order) else 0
