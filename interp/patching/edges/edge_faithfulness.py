"""How much of a behaviour do the first k edges of a ranking carry? MIB's curve for edges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import of_kind, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Prompts
from interp.forward.memory import Budget
from interp.forward.prompts import names_of_prompts
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.patching.edges.edge_pairs import EdgePairs
from interp.patching.edges.edge_sets import run_masks
from interp.patching.edges.graph import EdgeGraph
from interp.patching.edges.result import EdgeEffects
from interp.patching.edges.selection import Select, greedy_order
from interp.patching.effect_arrays import By
from interp.patching.faithfulness import PROPORTIONS, Faithfulness, check_proportions
from interp.patching.metrics import Metric
from interp.patching.patch_inputs import PatchInputs


@dataclass(frozen=True, eq=False)
class EdgeCircuits:
    """Circuits of the first edges of a ranking, and of random orders of the same edges.

    Attributes:
        graph: of the model.
        orders: places of the edges in the flattened scores: the ranking, then random orders.
        proportions, counts: of the edges in each circuit.
        seed: of the curve's intervals.
    """

    graph: EdgeGraph
    orders: tuple[np.ndarray, ...]
    proportions: tuple[float, ...]
    counts: tuple[int, ...]
    seed: int = 0

    @classmethod
    def of(
        cls,
        scores: EdgeEffects,
        *,
        by: By = "absolute",
        select: Select = "top",
        proportions: Sequence[float] = PROPORTIONS,
        n_random: int = 5,
        seed: int = 0,
    ) -> "EdgeCircuits":
        """From the scores of ``patch_edges``; the arguments are those of `edge_faithfulness`."""
        of_kind("scores", scores, EdgeEffects, advice="interp.patching.patch_edges gives them")
        shares = check_proportions(proportions)
        n_random, seed = whole_number("n_random", n_random, least=0), whole_number("seed", seed)
        order, generator = scores.order(by=by, select=select), np.random.default_rng(seed)
        orders = [order, *(generator.permutation(order) for _ in range(n_random))]
        if select == "greedy":  # random circuits lead to the logits too
            orders[1:] = [_greedy(scores.graph, ranked) for ranked in orders[1:]]
        counts = tuple(int(share * len(order)) for share in shares)
        return cls(scores.graph, tuple(orders), shares, counts, seed)

    def masks(self) -> list[Bool[Tensor, "writer reader"]]:
        """The edges of every circuit, order by order."""
        found = []
        for ranked in self.orders:
            for count in self.counts:
                mask = torch.zeros_like(self.graph.exists)
                mask.view(-1)[torch.from_numpy(ranked[:count].copy())] = True
                found.append(mask)
        return found

    def curve(
        self,
        values: Float[Tensor, "prompt circuit"],
        *,
        clean: Float[Tensor, " prompt"],
        corrupted: Float[Tensor, " prompt"],
        groups: Sequence[str] = (),
    ) -> Faithfulness:
        """The curve of the circuits' metrics, as ``run_circuits`` returns them."""
        curves = values.unflatten(1, (len(self.orders), len(self.counts))).transpose(0, 1)
        return Faithfulness(
            proportions=self.proportions,
            counts=self.counts,
            circuit=curves[0],
            clean=clean,
            corrupted=corrupted,
            random=curves[1:],
            groups=tuple(groups) or tuple(map(str, range(len(values)))),
            seed=self.seed,
            kind="edges",
        )


def _greedy(graph: EdgeGraph, ranked: np.ndarray) -> np.ndarray:
    """The greedy order of edges that are ranked in some other way than by scores."""
    scores = np.full(graph.shape, np.nan)
    scores.flat[ranked] = -np.arange(len(ranked), dtype=float)
    return greedy_order(graph, scores, "signed")


@torch.no_grad()
def run_circuits(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    circuits: EdgeCircuits,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> tuple[Float[Tensor, "prompt circuit"], dict[str, Tensor]]:
    """The metric of each circuit, and by name that of the clean and of the corrupted runs."""
    options: dict[str, Any] = {"budget": budget, "progress": progress}
    pairs = EdgePairs(PatchInputs(model, clean, corrupted, metric, **options))
    if pairs.graph != circuits.graph:
        raise UserError("the scores are of a model with other writers and readers")
    return run_masks(pairs, circuits.masks(), what="circuits")


@checked
@keeping_unhooked()
def edge_faithfulness(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    scores: EdgeEffects,
    by: By = "absolute",
    select: Select = "top",
    proportions: Sequence[float] = PROPORTIONS,
    n_random: int = 5,
    groups: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Faithfulness:
    """Run the circuits of a ranking's first edges on the clean prompts.

    The edges outside of a circuit carry what they carry in the corrupted run; see
    ``interp.patching.edges.circuit_run`` and, for CPR and CMD, ``interp.patching.faithfulness``.

    Args:
        clean, corrupted: pairs of prompts of equal lengths; best others than those of ``scores``.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        scores: the edges' scores, from ``patch_edges``.
        by: their order: ``signed``, as MIB ranks for CPR, or ``absolute``, for CMD.
        select: ``top`` or ``greedy``, see ``interp.patching.edges.selection``.
        proportions: of the edges in the circuits.
        n_random: how many random orders of the edges make the null.
        groups: of each prompt, for the intervals; by default each prompt its own.

    Raises:
        UserError: scores of another model's size, proportions that do not rise from above 0 to 1,
            unequal lengths, no gap between clean and corrupted, or a model whose circuits cannot be
            run.
    """
    order: dict[str, Any] = {"by": by, "select": select, "proportions": proportions}
    circuits = EdgeCircuits.of(scores, **order, n_random=n_random, seed=seed)
    options: dict[str, Any] = {"budget": budget, "progress": progress}
    values, runs = run_circuits(model, clean, corrupted, metric, circuits=circuits, **options)
    groups = names_of_prompts("groups", groups, len(values))
    return circuits.curve(values, **runs, groups=groups)
