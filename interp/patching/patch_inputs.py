"""The inputs that all patching methods of pairs of prompts share."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import whole_number
from interp.forward.batch import Prompts, TokenBatch
from interp.forward.memory import Budget, decide_budget
from interp.forward.partial import unedited_logits
from interp.forward.prompts import names_of_prompts, pairs_for
from interp.forward.trial import sweep_resolution
from interp.models.hooked_model import HookedModel
from interp.patching.metrics import Metric, apply_metric, metric_name
from interp.patching.result import PatchEffects
from interp.precision import result_dtype


class PatchInputs:
    """Pairs of prompts, a metric and what else a call is given, checked when made.

    The arguments are those of ``interp.patching.patch``; ``clean`` and ``corrupted`` become token
    batches. Raises UserError for what does not fit.
    """

    def __init__(
        self,
        model: HookedModel,
        clean: Prompts,
        corrupted: Prompts,
        metric: Metric,
        *,
        groups: Sequence[str] = (),
        templates: Sequence[str] = (),
        seed: int = 0,
        budget: int | Budget | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.metric, self.progress = model, metric, progress
        self.clean, self.corrupted = pairs_for(model, clean, corrupted)
        n_prompts, device = len(self.corrupted), self.corrupted.tokens.device
        self.groups = names_of_prompts("groups", groups, n_prompts)
        self.templates = names_of_prompts("templates", templates, n_prompts)
        self.seed, self.budget = whole_number("seed", seed), decide_budget(budget, device)

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
        """The effects as a result; ``fields`` are those that depend on the method."""
        return PatchEffects(
            values=values,
            metric=metric_name(self.metric),
            groups=self.groups,
            templates=self.templates,
            seed=self.seed,
            resolution=sweep_resolution(self.model),
            **fields,
        )
