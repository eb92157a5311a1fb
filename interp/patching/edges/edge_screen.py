"""Screen and verify edges: attribution ranks all, exact patching verifies the first and a sample.

There are too many edges to patch each, or to patch random eighths of them together as for heads:
effects of thousands do not add. Instead some of the unverified edges are drawn at random and
patched exactly, each alone. That says two things about the rest, whatever the effects' form:

* at most a share ``1 − (1 − confidence)^(1/n)`` of the unverified edges have a larger absolute
  effect than the largest of the ``n`` that were drawn;
* an edge drawn at random lies within ``|estimate| + q`` with the confidence, for the conformal
  quantile ``q`` of the drawn edges' errors (Lei et al., arXiv 1604.04173).

Beside this, all unverified edges are patched together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import check_choice, real_number, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.forward.batch import Prompts
from interp.forward.memory import Budget
from interp.models.hooked_model import HookedModel
from interp.patching.edges.edge_sets import patch_edge_sets
from interp.patching.edges.patch_edges import EdgeMethod, patch_edges
from interp.patching.edges.result import EdgeEffects
from interp.patching.metrics import Metric


@dataclass(frozen=True, eq=False)
class EdgeScreening(Displayed):
    """Estimates, verified effects, and what a sample says about the rest.

    Attributes:
        estimate: of all edges, by the method that ranks.
        verified: exact effects of the first ``top_k``; NaN elsewhere.
        drawn: exact effects of some unverified edges, drawn at random; NaN elsewhere.
        together: Float[prompt 2], effects of all verified and of all other edges, each patched
            together.
        confidence: of the statements about the rest.
    """

    estimate: EdgeEffects
    verified: EdgeEffects
    drawn: EdgeEffects
    together: Float[Tensor, "prompt 2"]
    confidence: float

    @property
    def n_rest(self) -> int:
        """How many edges were not verified."""
        return len(self.estimate.order()) - len(self.verified.order())

    @property
    def largest_drawn(self) -> float:
        """The largest absolute mean effect of the drawn edges; 0 if there are none."""
        found = np.abs(self.drawn.mean.ravel()[self.drawn.order()])
        return float(found.max(initial=0.0))

    @property
    def share_larger(self) -> float:
        """At most this share of the unverified edges has a larger effect than ``largest_drawn``."""
        n = len(self.drawn.order())
        return 0.0 if n == self.n_rest else 1 - (1 - self.confidence) ** (1 / n)

    @property
    def bound(self) -> Float[np.ndarray, "writer reader"]:
        """Limits of the unverified edges' absolute effects, each valid at the confidence alone."""
        drawn = self.drawn.order()
        estimate, exact = self.estimate.mean.copy(), self.drawn.mean.ravel()[drawn]
        estimate[~np.isnan(self.verified.mean)] = np.nan
        errors = np.sort(np.abs(exact - estimate.ravel()[drawn]))
        if not len(errors):
            return estimate
        place = min(math.ceil((len(errors) + 1) * self.confidence), len(errors))
        return np.abs(estimate) + errors[place - 1]

    def _shown(self) -> Shown:
        verified = self.verified.to_dataframe()
        first, rest = self.together.double().mean(dim=0).tolist()
        n = len(self.drawn.order())
        words = (
            f"{len(verified)} edges verified exactly; together they move {self.estimate.metric} by "
            f"{first:.3g}, the {self.n_rest} others by {rest:.3g}. Of these, {n} were drawn and "
            f"patched: the largest effect is {self.largest_drawn:.3g}, and at confidence "
            f"{self.confidence:g} at most {100 * self.share_larger:.2g} % of the others are larger."
        )
        if len(verified) > 2:
            words += (
                f" Spearman {self.estimate.agreement(self.verified)['spearman']:.2f} among the "
            )
            words += "verified."
        return Shown(words, (verified,), self.estimate.plot)


@checked
def screen_edges(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    ranked_by: str = "eap-ig",
    steps: int = 5,
    top_k: int = 20,
    sample: int = 100,
    confidence: float = 0.95,
    groups: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> EdgeScreening:
    """Rank all edges, patch the first ``top_k`` and a random ``sample`` of the rest exactly.

    Args:
        clean, corrupted: pairs of prompts of equal lengths.
        ranked_by: the method that ranks: ``eap-ig``, ``eap``, ``clean-corrupted`` or
            ``eap-ig-activations``.
        top_k: how many edges are verified.
        sample: how many of the other edges are drawn, at least as many as the confidence needs.
        confidence: of what the sample says about the others.

    The other arguments are those of ``patch_edges``.

    Raises:
        UserError: a sample too small for the confidence, or whatever ``patch_edges`` and
            ``patch_edge_sets`` raise it for.
    """
    known = [method for method in get_args(EdgeMethod) if method != "exact"]
    check_choice("method that ranks", ranked_by, known)
    top_k, sample = whole_number("top_k", top_k, least=1), whole_number("sample", sample, least=1)
    if not 0 < (confidence := real_number("confidence", confidence)) < 1:
        raise UserError(f"confidence is between 0 and 1, not {confidence}")
    if sample < (needed := math.ceil(confidence / (1 - confidence) - 1e-9)):
        raise UserError(
            f"a bound at confidence {confidence:g} needs a sample of at least {needed} edges, not "
            f"{sample}"
        )
    running: dict[str, Any] = {"budget": budget, "progress": progress}
    options: dict[str, Any] = {"groups": groups, "seed": seed, **running}
    given = (model, clean, corrupted, metric)
    estimate = patch_edges(*given, method=ranked_by, steps=steps, **options)
    order = estimate.order()
    generator = np.random.default_rng(estimate.seed)
    rest = order[top_k:]
    drawn = generator.choice(rest, min(sample, len(rest)), replace=False)
    first, others, some = (estimate.graph.named(places) for places in (order[:top_k], rest, drawn))
    exact = patch_edges(*given, method="exact", edges=[*first, *some], **options)

    def only(edges: list[tuple[str, str]]) -> EdgeEffects:
        outside = ~exact.graph.mask(edges)
        return replace(exact, values=exact.values.masked_fill(outside, torch.nan))

    sets = [edges for edges in (first, others) if edges]
    together = patch_edge_sets(*given, sets=sets, **running)
    if len(sets) < 2:
        together = torch.cat([together, torch.zeros_like(together)], dim=1)
    return EdgeScreening(estimate, only(first), only(some), together, confidence)
