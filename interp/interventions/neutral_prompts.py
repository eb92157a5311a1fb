"""Prompts in which the false object is a neutral word, for mode ``resample``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.forward.batch import TokenBatch
from interp.forward.transfer import upload

SPACES = ("Ġ", "▁")
"""The space before a word in byte-level and SentencePiece vocabularies."""


@dataclass(frozen=True, eq=False)
class NeutralPrompts:
    """Prompts up to their false object, and in its place a neutral word.

    Attributes:
        batch: the prompts; those without a false object are whole.
        ends: the neutral word's first token and its length in each; None without a false object.
        positions: Bool[prompt pos], the false objects in the prompts as they were.
    """

    batch: TokenBatch
    ends: Sequence[tuple[int, int] | None]
    positions: Bool[Tensor, "prompt pos"]

    @classmethod
    def of(
        cls, tokens: Tensor, real: Tensor, positions: Tensor, *, tokenizer: Any, neutral: str
    ) -> "NeutralPrompts":
        """From prompts [prompt pos], which tokens of them are real, and where the objects are."""
        prompts: list[list[int]] = []
        ends: list[tuple[int, int] | None] = []
        positions = positions.cpu()
        for row, (ids, there) in enumerate(zip(tokens.tolist(), real.tolist(), strict=True)):
            at = positions[row].nonzero()[:, 0]
            if len(at) == 0:
                prompts.append(list(compress(ids, there)))
                ends.append(None)
                continue
            first = int(at[0])
            before = list(compress(ids[:first], there[:first]))
            space, word = _tokens_of(neutral, tokenizer, like=ids[first])
            prompts.append([*before, *space, *word])
            ends.append((len(before) + len(space), len(word)))
        return cls(TokenBatch.from_lists(prompts, device=tokens.device), ends, positions)

    def aligned(
        self, outputs: Mapping[int, Float[Tensor, "prompt neutral_pos head d_head"]]
    ) -> dict[int, Float[Tensor, "prompt pos head d_head"]]:
        """Heads' outputs at the neutral word, by layer, at the places of the false objects.

        Aligned by the last token; a longer object repeats the neutral word's first token.
        """
        found = {
            layer: z.new_zeros(*self.positions.shape, *z.shape[2:]) for layer, z in outputs.items()
        }
        offsets = self.batch.offsets.tolist()
        for row, (end, offset) in enumerate(zip(self.ends, offsets, strict=True)):
            if end is None:
                continue
            at, length = self.positions[row].nonzero()[:, 0], end[1]
            steps = torch.arange(length - len(at), length).clamp(min=0) + offset + end[0]
            for layer, z in outputs.items():
                found[layer][row, upload(at, z.device)] = z[row, upload(steps, z.device)]
        return found


def _tokens_of(word: str, tokenizer: Any, *, like: int) -> tuple[list[int], list[int]]:
    """A word's tokens, with a space before it if the token ``like`` has one.

    A token that is only the space is returned on its own: it is not in the word's span.
    """
    spaced = tokenizer.convert_ids_to_tokens(like)[:1] in SPACES
    ids = tokenizer(f" {word}" if spaced else word, add_special_tokens=False)["input_ids"]
    alone = int(tokenizer.convert_ids_to_tokens(ids[0]) in SPACES)
    return ids[:alone], ids[alone:]
