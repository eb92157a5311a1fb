"""Attention patterns of any transformers model, seen and changed where the softmax is taken.

Every eager attention calls a softmax over [prompt head query key]. A ``TorchFunctionMode`` stands
between: it may change the scores before, and the pattern after. Attention that only knows torch's
fused kernel is computed here, with the same softmax.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Edit = Callable[[Tensor], Tensor | None]


class Watch(TorchFunctionMode):
    """Edits of the scores and of the pattern, by layer; ``layer`` is the one whose turn it is."""

    def __init__(
        self, n_heads: int, scores: Mapping[int, Edit], patterns: Mapping[int, Edit]
    ) -> None:
        super().__init__()
        self.n_heads, self.scores, self.patterns = n_heads, scores, patterns
        self.positions = 0
        self.layer: int | None = None

    def count(self, module: Any, args: Any, kwargs: Any) -> None:
        """Before each pass of the model: how many positions there are."""
        self.positions = (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.layer is None:
            return func(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            return self._unfused(*args, **kwargs)
        if getattr(func, "__name__", "") == "softmax":
            value = args[0] if args else kwargs["input"]
            more = {name: one for name, one in kwargs.items() if name != "input"}
            if self._is_pattern(value):
                shape = value.shape
                shown = value.view(-1, self.n_heads, *shape[-2:])
                return self._softmax(shown, func, args[1:], more).view(shape)
        return func(*args, **kwargs)

    def _is_pattern(self, value: Tensor) -> bool:
        """[prompt head query key], or prompts and heads on one axis; a sink is one more key."""
        if value.dim() not in (3, 4) or value.shape[-2] != self.positions:
            return False
        heads = value.shape[1] if value.dim() == 4 else value.shape[0]
        fits = heads == self.n_heads if value.dim() == 4 else heads % self.n_heads == 0
        return fits and value.shape[-1] - self.positions in (0, 1)

    def _softmax(self, value: Tensor, func: Any, args: Any, kwargs: Any) -> Tensor:
        assert self.layer is not None
        if self.layer in self.scores:
            new = self.scores[self.layer](value)
            value = value if new is None else new
        pattern = func(value, *args, **kwargs)
        if self.layer in self.patterns:
            new = self.patterns[self.layer](pattern)
            pattern = pattern if new is None else new.to(pattern.dtype)
        return pattern

    def _unfused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = query @ key.transpose(-1, -2) * factor
        low = torch.finfo(scores.dtype).min
        if is_causal:
            closed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(closed, low)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, low)
            else:
                scores = scores + attn_mask
        return self._softmax(scores, torch.softmax, (-1,), {}) @ value
