"""What the hooks of an open ``constrain`` read: where to act, and with which values.

The positions are kept by `interp.interventions.prompt_positions`; mode ``resample`` needs values
too, which a run of other prompts gives.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.layer_range import run_layers
from interp.forward.partial import record_run
from interp.forward.transfer import upload
from interp.interventions.neutral_prompts import NeutralPrompts
from interp.interventions.object_positions import ObjectPositions
from interp.interventions.prompt_positions import PromptPositions
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require

RESAMPLE_IN_SWEEP = (
    "mode 'resample' runs prompts of its own, which is impossible in a patching sweep that begins "
    "in a later layer: constrain with another mode, or edit heads in the sweep itself "
    "(interp.evaluate does)"
)


class PromptState(PromptPositions):
    """The positions of the prompts that run on a hooked model, and values for mode ``resample``.

    Attributes:
        strength: Float[prompt], from 0 (no effect) to 1 (the whole constraint); None for all 1.
        resampled: per layer [prompt pos head d_head], for mode ``resample``.
    """

    def __init__(
        self,
        model: HookedModel,
        find: ObjectPositions,
        *,
        resample_layers: Sequence[int],
        neutral: str,
        strengths: Sequence[float] | None = None,
    ) -> None:
        super().__init__(find)
        self.model, self._strengths = model, strengths
        self.strength: Float[Tensor, " prompt"] | None = None
        self._resample_layers, self._neutral_text = sorted(set(resample_layers)), neutral
        self.resampled: dict[int, Float[Tensor, "prompt pos head d_head"]] = {}

    @property
    def step(self) -> int:
        """The decoding steps since the prefill, the current one included; 0 in the prefill."""
        return self.n_seen - self.positions.shape[1]

    def begin(self, tokens: Tensor | None, mask: Tensor | None, seen: int) -> None:
        """As in `PromptPositions`. Raises UserError for ``resample`` in a sweep, too."""
        midway = tokens is not None and not self.suspended and self._resample_layers
        if midway and _enters_midway(self.model):
            raise UserError(RESAMPLE_IN_SWEEP)
        super().begin(tokens, mask, seen)

    def prefill(self, tokens: Tensor, real: Tensor) -> None:
        """Find the positions, and the values of mode ``resample``."""
        if len(tokens) > 1 and torch.equal(tokens[0], tokens[1]):
            require(self.model, "continuation")  # beams reorder the cache
        super().prefill(tokens, real)
        if self._strengths is not None:
            copies, rest = divmod(len(tokens), max(1, len(self._strengths)))
            if rest or not self._strengths:
                raise UserError(
                    f"{len(self._strengths)} strengths for {len(tokens)} prompts: give one a prompt"
                )
            each = torch.tensor(self._strengths, dtype=torch.float32).repeat_interleave(copies)
            self.strength = upload(each, tokens.device)
        if self._resample_layers:
            self.suspended = True
            try:
                self.resampled = self._resample(tokens, real)
            finally:
                self.suspended = False

    def _resample(self, tokens: Tensor, real: Tensor) -> dict[int, Tensor]:
        """Per layer, the outputs at the object when it is replaced by the neutral word."""
        prompts = NeutralPrompts.of(
            tokens,
            real,
            self.positions,
            tokenizer=self.model.tokenizer,
            neutral=self._neutral_text,
        )
        z = record_run(self.model, prompts.batch).z
        return prompts.aligned({layer: z[layer] for layer in self._resample_layers})


def _enters_midway(model: HookedModel) -> bool:
    """Whether the run begins in a later layer, because ``run_layers`` has overridden a block."""
    return any(
        getattr(function, "__module__", None) == run_layers.__module__
        for block in model.blocks
        for function in (block.__dict__.get("forward"), *block._forward_pre_hooks.values())
    )
