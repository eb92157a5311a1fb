"""The checked inputs that all patching methods of pairs of prompts share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import whole_number
from interp.forward.batch import TokenBatch
from interp.forward.memory import Budget, decide_budget
from interp.forward.partial import unedited_logits
from interp.forward.prompts import names_of_prompts, pairs_for
from interp.forward.trial import sweep_resolution
from interp.models.hooked_model import HookedModel
from interp.patching.metrics import Metric, apply_metric, metric_name
from interp.patching.result import PatchEffects
from interp.precision import result_dtype


@dataclass(frozen=True)
class PatchInputs:
    """Pairs of prompts and a metric of one call, checked when made.

    Attributes:
        clean, corrupted: token batches, as many prompts in one as in the other.
        groups, templates: of each prompt, or empty.
        seed: of the statistics.
        budget: bytes that the call may take.
    """

    model: HookedModel
    clean: TokenBatch
    corrupted: TokenBatch
    metric: Metric
    groups: Sequence[str]
    templates: Sequence[str]
    seed: int
    budget: Budget
    progress: bool

    @classmethod
    def checked(
        cls,
        model: HookedModel,
        clean: Any,
        corrupted: Any,
        metric: Metric,
        *,
        groups: Any = (),
        templates: Any = (),
        seed: Any = 0,
        budget: int | Budget | None = None,
        progress: bool = True,
    ) -> "PatchInputs":
        """From the arguments of a public function. Raises UserError for what does not fit."""
        clean, corrupted = pairs_for(model, clean, corrupted)
        return cls(
            model,
            clean,
            corrupted,
            metric,
            names_of_prompts("groups", groups, len(corrupted)),
            names_of_prompts("templates", templates, len(corrupted)),
            whole_number("seed", seed),
            decide_budget(budget, corrupted.tokens.device),
            progress,
        )

    def empty(self, *shape: int) -> Float[Tensor, "prompt ..."]:
        """NaN for each prompt, to be filled with effects."""
        dtype = result_dtype(self.model)
        return torch.full((len(self.corrupted), *shape), torch.nan, dtype=dtype)

    @torch.no_grad()
    def unedited_metric(
        self, batch: TokenBatch, metric: Metric, *, logits: Tensor | None = None
    ) -> Float[Tensor, " prompt"]:
        """The metric in an unedited run, on the CPU; from its logits where there are some."""
        logits = unedited_logits(self.model, batch) if logits is None else logits
        return apply_metric(metric, logits).to("cpu", result_dtype(self.model))

    def index(self, prompts: Sequence[int]) -> Int[Tensor, " prompt"]:
        """Indices of some prompts, on the prompts' device."""
        return torch.as_tensor(prompts, device=self.corrupted.tokens.device)

    def result(self, values: Float[Tensor, "prompt ..."], **fields: Any) -> PatchEffects:
        """The effects as a result, with what is known of the prompts; ``fields`` are the rest."""
        return PatchEffects(
            values=values,
            metric=metric_name(self.metric),
            groups=tuple(self.groups),
            templates=tuple(self.templates),
            seed=self.seed,
            resolution=sweep_resolution(self.model),
            **fields,
        )
