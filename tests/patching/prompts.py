"""Prompts that tests of the plain and of the hooked modules share."""

from typing import Any

import torch

from interp.patching import LogitDifference, TokenBatch

PROMPTS = [
    [5, 9, 7, 8, 30, 31, 32, 12],
    [20, 21, 22],
    [40, 41, 42, 43, 44, 45, 46, 47, 48],
]
BATCH = TokenBatch.from_lists(PROMPTS, pad=3)
ROWS = torch.tensor([2, 0, 0, 1])
CLEAN = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31], [40, 41, 42, 43, 44, 45]])
CORRUPTED = TokenBatch.from_lists([[5, 9, 7, 81, 30, 31], [40, 41, 52, 43, 44, 45]])
METRIC = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 3e-5}  # two attention kernels
