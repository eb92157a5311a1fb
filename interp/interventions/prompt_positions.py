"""Where an intervention acts in the prompts that are running.

It is updated before every forward pass: a prefill finds the positions in its prompts, and a
decoding step of one token a prompt keeps them.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.errors import UserError
from interp.interventions.object_positions import ObjectPositions

OUTSIDE = (
    "a cache from outside the constraint, or of an earlier prompt, cannot be continued: run the "
    "whole prompt, and one batch of prompts to its end before the next"
)

CUT_BACK = (
    "a cache that was cut back into its prompt, or is of another prompt, cannot be continued: with "
    "an assistant model or a prompt lookup, several tokens follow a prefill at once: leave it out"
)


class PromptPositions:
    """The positions to act at, and the place of the current pass in its text.

    Attributes:
        positions: Bool[prompt pos], where to act in the last prefill.
        prefilling: whether the current pass is a prefill.
        n_seen: number of positions that the pass sees, cached ones included.
        suspended: hooks do nothing, because the pass is one of this state's own.
    """

    def __init__(self, find: ObjectPositions) -> None:
        self._find = find
        self.positions: Bool[Tensor, "prompt pos"] = torch.zeros(0, 0, dtype=torch.bool)
        self.prefilling = False
        self.n_seen = 0
        self.suspended = False

    @property
    def acting(self) -> bool:
        """Whether the current pass contains the positions."""
        return self.prefilling and not self.suspended

    def begin(self, tokens: Tensor | None, mask: Tensor | None, seen: int) -> None:
        """Update the state before a forward pass; called by `before_each_pass`.

        Args:
            tokens, mask: token ids of the pass, and which of them are real; None if not given.
            seen: number of cached positions: 0 in a prefill.

        Raises:
            UserError: no token ids, or several tokens behind a prefill.
        """
        if self.suspended:
            return
        if tokens is None:
            raise UserError("constrain needs token ids: embeddings hide where the false object is")
        before, self.n_seen = self.n_seen, seen + tokens.shape[1]
        self.prefilling = seen == 0
        if self.prefilling:
            real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
            self.prefill(tokens, real)
            return
        if len(self.positions) != len(tokens):
            raise UserError(OUTSIDE)
        if tokens.shape[1] > 1:
            raise UserError(
                f"{tokens.shape[1]} tokens follow a prefill at once: run the whole prompt in "
                "one pass (no prefill_chunk_size), then one token at a time"
            )
        # A cache of this text is as long as what ran, or cut back to some of its answer.
        if not self.positions.shape[1] <= seen <= before:
            self.n_seen = before
            raise UserError(CUT_BACK if seen < before else OUTSIDE)

    def prefill(self, tokens: Tensor, real: Tensor) -> None:
        """Find the positions in the prompts of a prefill."""
        self.positions = self._find(tokens, real)
