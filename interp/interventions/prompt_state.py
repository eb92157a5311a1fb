"""The prompts that are running under an intervention: where to act in them, and with what.

Before every forward pass of the model the state is brought up to date: a prefill finds the places
in its prompts; a decoding step, one token a prompt, keeps them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.layer_range import run_layers
from interp.forward.partial import record_run
from interp.interventions.object_positions import ObjectPositions
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require

SPACES = ("Ġ", "▁")
"""How byte-level and SentencePiece vocabularies write the space before a word."""
RESAMPLE_IN_SWEEP = (
    "mode 'resample' runs prompts of its own, which a patching sweep that begins in the middle of "
    "the model cannot hold: constrain with another mode, or edit heads in the sweep itself "
    "(interp.evaluate does)"
)


class PromptState:
    """What the hooks of an open ``constrain`` look at.

    Attributes:
        at: Bool[prompt pos], the places in the last prefill.
        prefilling: whether the pass that is running is a prefill.
        columns: how many columns the pass sees, with those in the cache.
        resampled: per layer [prompt pos head d_head], for mode ``resample``.
        suspended: hooks leave the pass alone (it is one of this state's own).
    """

    def __init__(
        self,
        model: HookedModel,
        places: ObjectPositions,
        *,
        resample_layers: Sequence[int],
        neutral: str,
    ) -> None:
        self.model, self._places = model, places
        self._resample_layers, self._neutral_text = sorted(set(resample_layers)), neutral
        self.at: Bool[Tensor, "prompt pos"] | None = None
        self.resampled: dict[int, Float[Tensor, "prompt pos head d_head"]] = {}
        self.prefilling = False
        self.columns = 0
        self.suspended = False

    @property
    def acting(self) -> bool:
        """Whether the places are columns of the pass that is running."""
        return self.prefilling and not self.suspended

    def begin(self, tokens: Tensor | None, mask: Tensor | None, seen: int) -> None:
        """Before every forward pass of the model: a prefill, or a decoding step after one?

        Arguments as `interp.models.versions.before_each_pass` gives them.
        """
        if self.suspended:
            return
        if tokens is None:
            raise UserError("constrain needs token ids: embeddings hide where the false object is")
        if self._resample_layers and _enters_midway(self.model):
            raise UserError(RESAMPLE_IN_SWEEP)
        self.prefilling = seen == 0
        self.columns = seen + tokens.shape[1]
        if not self.prefilling:
            if self.at is None or len(self.at) != len(tokens):
                raise UserError(
                    "a cache from outside the constraint cannot be continued: run the whole prompt"
                )
            if tokens.shape[1] > 1:
                raise UserError(
                    f"{tokens.shape[1]} columns follow a prefill at once, and places in them are "
                    "not known: run the whole prompt at once (no prefill_chunk_size), then one "
                    "token at a time"
                )
            return
        if len(tokens) > 1 and torch.equal(tokens[0], tokens[1]):
            require(self.model, "continuation")  # beams change places in a cache of another kind
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        self.at = self._places(tokens, real)
        if self._resample_layers:
            self.suspended = True
            try:
                self.resampled = self._resample(tokens, real)
            finally:
                self.suspended = False

    def _resample(self, tokens: Tensor, real: Tensor) -> dict[int, Tensor]:
        """Per layer, the outputs at the object when a neutral word stands there instead."""
        assert self.at is not None
        prompts: list[list[int]] = []
        ends: list[tuple[int, int] | None] = []
        for row in range(len(tokens)):
            where = self.at[row].nonzero()[:, 0]
            if len(where) == 0:
                prompts.append(tokens[row][real[row]].tolist())
                ends.append(None)
                continue
            before = tokens[row, : where[0]][real[row, : where[0]]].tolist()
            space, neutral = self._neutral(int(tokens[row, where[0]]))
            prompts.append([*before, *space, *neutral])
            ends.append((len(before) + len(space), len(neutral)))
        batch = TokenBatch.from_lists(prompts, device=tokens.device)
        z = record_run(self.model, batch).z
        out = {layer: z.new_zeros(*self.at.shape, *z.shape[3:]) for layer in self._resample_layers}
        for row, end in enumerate(ends):
            if end is None:
                continue
            places = self.at[row].nonzero()[:, 0]
            offset, length = int(batch.offsets[row]) + end[0], end[1]
            # Aligned by the last token; a longer object repeats the neutral word's first token.
            steps = torch.arange(length - len(places), length).clamp(min=0) + offset
            for layer, values in out.items():
                values[row, places] = z[layer, row, steps.to(z.device)]
        return out

    def _neutral(self, first: int) -> tuple[list[int], list[int]]:
        """The neutral word's tokens, after a space where the object's first token has one.

        A token that is nothing but the space comes apart: it is not in the word's span.
        """
        tokenizer = self.model.tokenizer
        spaced = tokenizer.convert_ids_to_tokens(first)[:1] in SPACES
        text = f" {self._neutral_text}" if spaced else self._neutral_text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        alone = int(tokenizer.convert_ids_to_tokens(ids[0]) in SPACES)
        return ids[:alone], ids[alone:]


def _enters_midway(model: HookedModel) -> bool:
    """Whether the run begins in some layer: ``interp.forward.layer_range`` stands on a block."""
    return any(
        getattr(one, "__module__", None) == run_layers.__module__
        for block in model.blocks
        for one in (block.__dict__.get("forward"), *block._forward_pre_hooks.values())
    )
