"""Similarity of the outputs of a projection's experts, on a sample of tokens.

Two numbers for every two experts of a projection, both of what each would add with a gate of one:

* *cosine* of the two outputs for the same token, mean over tokens; 0 for unrelated directions.
* *linear CKA* (Kornblith et al., arXiv 1905.00414): ``‖Yᵢᵀ Yⱼ‖² / (‖Yᵢᵀ Yᵢ‖ ‖Yⱼᵀ Yⱼ‖)`` of the
  centred outputs [token d_out]; 1 if one is the other turned and scaled. Its value by chance, with
  the tokens of one expert shuffled, has the mean ``tr(Σᵢ) tr(Σⱼ) / ((n − 1) ‖Σᵢ‖ ‖Σⱼ‖)`` exactly in
  the numerator, and stands beside it.

Experts have r directions, so that the outputs themselves are never made: the moments of the hidden
values (r numbers an expert) and BᵀB are enough, and they are summed as tokens come.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.routing import similarity_figure
from interp.moelora.layer import ExpertWeights
from interp.moelora.projections import AdaptedProjection

COLUMNS = ("layer", "target", "expert", "other", "cosine", "cka", "cka_chance")


@dataclass(frozen=True, eq=False)
class OutputSimilarity(Displayed):
    """How alike every two experts of every projection are, on ``n`` tokens.

    Attributes:
        n: how many tokens were drawn.
        table: layer, target, expert, other (a later one), cosine, cka, cka_chance. CKA is NaN for
            an expert whose output does not vary (a fresh adapter's is zero).
    """

    n: int
    table: pd.DataFrame

    def __post_init__(self) -> None:
        if missing := [name for name in COLUMNS if name not in self.table]:
            raise UserError(f"a table of similarities lacks the column {missing[0]!r}")

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def by_projection(self) -> pd.DataFrame:
        """Means over pairs of experts: layer, target, cosine, cka, cka_chance."""
        numbers = ["cosine", "cka", "cka_chance"]
        means: Any = self.table.groupby(["layer", "target"], sort=False)[numbers].mean()
        return means.reset_index()

    def plot(self, **options: Any) -> go.Figure:
        """The means by depth."""
        return similarity_figure(self.by_projection(), **options)

    def _shown(self) -> Shown:
        words = f"How alike two experts' outputs are, on {self.n:,} tokens; means over pairs."
        return Shown(words, (self.by_projection(),), self.plot)


class OutputMoments:
    """Sums over the sampled tokens, projection by projection."""

    def __init__(
        self, weights: Sequence[ExpertWeights], projections: Sequence[AdaptedProjection]
    ) -> None:
        self.weights, self.projections = tuple(weights), tuple(projections)
        widths = [len(adapter.down) for adapter in weights]
        self.sums = [torch.zeros(width, dtype=torch.float64) for width in widths]
        self.products = [torch.zeros(width, width, dtype=torch.float64) for width in widths]
        self.cosines = [torch.zeros(p.n_experts, p.n_experts).double() for p in projections]
        self.counts = [0] * len(self.projections)

    def add(self, number: int, x: Float[Tensor, "token d_in"]) -> None:
        """Add sampled tokens."""
        if not len(x):
            return
        hidden = self.weights[number].hidden(x)
        exact = hidden.flatten(1).double().cpu()
        self.cosines[number] += self.weights[number].cosines(hidden).double().sum(dim=0).cpu()
        self.sums[number] += exact.sum(dim=0)
        self.products[number] += exact.T @ exact
        self.counts[number] += len(x)

    def state(self) -> dict[str, Tensor]:
        """The sums as tensors by name."""
        found = {"counts": torch.tensor(self.counts)}
        for name in ("sums", "products", "cosines"):
            found |= {f"{name}.{i}": values for i, values in enumerate(getattr(self, name))}
        return found

    def add_state(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums over other tokens, of the same projections."""
        self.counts = [a + int(b) for a, b in zip(self.counts, state["counts"], strict=True)]
        for name in ("sums", "products", "cosines"):
            for i, values in enumerate(getattr(self, name)):
                values += state[f"{name}.{i}"]

    def similarity(self) -> OutputSimilarity:
        """The similarities of the tokens added so far."""
        rows = []
        for number, projection in enumerate(self.projections):
            n, weights = self.counts[number], self.weights[number]
            both = linear_cka(
                self.sums[number], self.products[number], weights.gram, n=n, r=weights.r
            )
            cosine = self.cosines[number] / (n or torch.nan)
            for i, j in itertools.combinations(range(projection.n_experts), 2):
                numbers = (float(part[i, j]) for part in (cosine, *both))
                rows.append((projection.layer, projection.target, i, j, *numbers))
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        return OutputSimilarity(max(self.counts, default=0), table)


def linear_cka(
    sums: Float[Tensor, " expert_rank"],
    products: Float[Tensor, "expert_rank expert_rank"],
    gram: Float[Tensor, "expert r expert r"],
    *,
    n: int,
    r: int,
) -> tuple[Float[Tensor, "expert expert"], Float[Tensor, "expert expert"]]:
    """Linear CKA between experts' outputs, and its value by chance, from moments over n tokens.

    `sums` and `products` are of the hidden values, `gram` is BᵀB.
    """
    experts = len(sums) // r
    if n < 2:
        nothing = torch.full((experts, experts), torch.nan, dtype=torch.float64)
        return nothing, nothing
    centred = products - torch.outer(sums, sums) / n
    cross = rearrange(centred, "(i r) (j s) -> i r j s", r=r, s=r)
    grams = torch.stack([gram[i, :, i] for i in range(experts)])
    # ‖Yᵢᵀ Yⱼ‖² = tr(Gᵢ C_ij Gⱼ C_ijᵀ) and tr(Σᵢ) = tr(Gᵢ C_ii).
    square = einsum(grams, cross, grams, cross, "i a b, i b j c, j c d, i a j d -> i j")
    trace = torch.stack([(grams[i] * cross[i, :, i].T).sum() for i in range(experts)])
    norm = square.diagonal().clamp_min(0).sqrt()
    scale = torch.outer(norm, norm)
    # Rounding leaves something of an output that does not vary.
    varies = scale > 1e-20 * scale.max().clamp_min(torch.finfo(torch.float64).tiny)
    cka = torch.where(varies, square / scale, torch.nan)
    chance = torch.where(varies, torch.outer(trace, trace) / ((n - 1) * scale), torch.nan)
    return cka, chance
