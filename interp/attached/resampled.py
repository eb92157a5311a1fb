"""Mode ``resample`` on a plain model: heads' outputs where the false object is a neutral word."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.attached.anatomy import Anatomy
from interp.forward.prompts import call_positions
from interp.interventions.intervention import Intervention
from interp.interventions.neutral_prompts import NeutralPrompts


class Resampler:
    """Runs prompts with a neutral word in place of their false objects.

    Args:
        layers: whose heads' outputs are wanted.
        neutral: the word.
    """

    def __init__(
        self, base: Any, tokenizer: Any, anatomy: Anatomy, *, layers: Iterable[int], neutral: str
    ) -> None:
        self.base, self.tokenizer, self.anatomy = base, tokenizer, anatomy
        self.layers, self.neutral = sorted(set(layers)), neutral

    @classmethod
    def of(
        cls, under: Intervention, base: Any, tokenizer: Any, anatomy: Anatomy, *, neutral: str
    ) -> "Resampler | None":
        """For the heads of an intervention that are in mode ``resample``; None without any."""
        heads = [head for part in under.heads if part.mode == "resample" for head in part.heads]
        if not heads:
            return None
        layers = [layer for layer, _ in heads]
        return cls(base, tokenizer, anatomy, layers=layers, neutral=neutral)

    @torch.no_grad()
    def outputs(
        self, tokens: Tensor, real: Tensor, positions: Tensor
    ) -> dict[int, Float[Tensor, "prompt pos head d_head"]]:
        """Per layer, the heads' outputs at the neutral word, at the places of the false objects."""
        prompts = NeutralPrompts.of(
            tokens, real, positions, tokenizer=self.tokenizer, neutral=self.neutral
        )
        seen: dict[int, Tensor] = {}

        def keep(module: Any, args: tuple[Any, ...], *, layer: int) -> None:
            seen[layer] = args[0].unflatten(-1, (self.anatomy.n_heads, -1))

        with ExitStack() as stack:
            for layer in self.layers:
                hook = partial(keep, layer=layer)
                projection = self.anatomy.projection(layer)
                stack.enter_context(projection.register_forward_pre_hook(hook))
            call_positions(self.base, prompts.batch, prompts.batch.every_row)
        return prompts.aligned(seen)
