"""Edits made in transformers' own modules, with which the self-check compares hook points."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

KEY = 1
"""The position that one head is cut off from, and that a value is written to."""


def cut_edges(
    scores: Float[Tensor, "row head query key"], row: int, key: int = KEY
) -> Bool[Tensor, "row head query key"]:
    """The last head's edges from every query after the key to the key, in one row."""
    where = torch.zeros_like(scores, dtype=torch.bool)
    n_cached = scores.shape[3] - scores.shape[2]
    where[row, -1, max(0, key + 1 - n_cached) :, key] = True
    return where


@contextmanager
def adding(module: nn.Module, change: Tensor) -> Iterator[None]:
    """The module's input has something added."""

    def before(module: Any, args: tuple[Any, ...]) -> Any:
        return (args[0] + change.reshape(args[0].shape).to(args[0].device), *args[1:])

    with module.register_forward_pre_hook(before):
        yield


@contextmanager
def cutting_mask(attention: nn.Module, n_heads: int, row: int) -> Iterator[list[bool]]:
    """The attention's own mask cuts the edges; the list stays empty if it takes no such mask.

    Only an additive mask [row 1 query key] says without doubt what it does.
    """
    used: list[bool] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.is_floating_point():
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            heads = n_heads if mask.shape[1] == 1 else -1
            mask = mask.expand(len(hidden), heads, -1, -1)
            used.append(True)
            mask = mask.masked_fill(cut_edges(mask, row), torch.finfo(mask.dtype).min)
            return args, {**kwargs, "attention_mask": mask}
        return None

    with attention.register_forward_pre_hook(before, with_kwargs=True):
        yield used


@contextmanager
def cutting_softmax(attention: nn.Module, n_heads: int, row: int) -> Iterator[list[bool]]:
    """The edges are cut in what the attention takes its softmax of."""
    used: list[bool] = []
    running: list[Any] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            scores = args[0] if args else None
            if getattr(func, "__name__", "") == "softmax" and isinstance(scores, Tensor):
                by_head = scores if scores.ndim == 4 else None
                if scores.ndim == 3 and scores.shape[0] % n_heads == 0:
                    by_head = scores.unflatten(0, (-1, n_heads))
                if by_head is not None and by_head.shape[1] == n_heads and not used:
                    used.append(True)
                    lowest = torch.finfo(scores.dtype).min
                    new = by_head.masked_fill(cut_edges(by_head, row), lowest)
                    args = (new.reshape(scores.shape), *args[1:])
            return func(*args, **(kwargs or {}))

    def enter(module: Any, args: Any) -> None:
        running.append(Mode())
        running[-1].__enter__()

    def leave(module: Any, args: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    with attention.register_forward_pre_hook(enter), attention.register_forward_hook(leave):
        try:
            yield used
        finally:
            while running:
                running.pop().__exit__(None, None, None)
