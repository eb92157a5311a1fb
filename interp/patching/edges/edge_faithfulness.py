"""How much of a behaviour do the first k edges of a ranking carry? MIB's curve for edges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from interp.arguments import of_kind, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Prompts
from interp.forward.memory import Budget
from interp.forward.recorded_run import RecordedRun
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.patching.edges.circuit_run import CircuitRun
from interp.patching.edges.edge_pairs import EdgePairs
from interp.patching.edges.result import EdgeEffects
from interp.patching.effect_arrays import By
from interp.patching.faithfulness import PROPORTIONS, Faithfulness, check_proportions
from interp.patching.metrics import Metric, apply_metric
from interp.patching.patch_inputs import PatchInputs


@checked
@keeping_unhooked()
@torch.no_grad()
def edge_faithfulness(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    scores: EdgeEffects,
    by: By = "absolute",
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
        proportions: of the edges in the circuits.
        n_random: how many random orders of the edges make the null.
        groups: of each prompt, for the intervals; by default each prompt its own.

    Raises:
        UserError: scores of another model's size, proportions that do not rise from above 0 to 1,
            unequal lengths, no gap between clean and corrupted, or a model whose circuits cannot be
            run.
    """
    of_kind("scores", scores, EdgeEffects, advice="interp.patching.patch_edges gives them")
    shared: dict[str, Any] = {"groups": groups, "seed": seed, "budget": budget}
    inputs = PatchInputs(model, clean, corrupted, metric, **shared, progress=progress)
    pairs = EdgePairs(inputs)
    if pairs.graph != scores.graph:
        raise UserError("the scores are of a model with other writers and readers")
    shares, n_random = check_proportions(proportions), whole_number("n_random", n_random, least=0)
    order, generator = scores.order(by=by), np.random.default_rng(inputs.seed)
    orders = [order, *(generator.permutation(order) for _ in range(n_random))]
    counts = tuple(int(share * len(order)) for share in shares)
    circuits = [_mask(pairs, ranked[:count]) for ranked in orders for count in counts]

    def run(runs: dict[str, RecordedRun], of_chunk: Metric, done: Any) -> Tensor:
        circuit_run, found = CircuitRun(model, pairs.parts, pairs.graph, **runs), []
        for circuit in circuits:
            found.append(apply_metric(of_chunk, circuit_run.logits(circuit)))
            done(len(found[-1]))
        return torch.stack(found, dim=1)

    values, metrics = pairs.in_chunks(
        run, shape=(len(circuits),), steps=len(circuits), with_graph=False, what="circuits"
    )
    curves = values.unflatten(1, (len(orders), len(counts))).transpose(0, 1)
    return Faithfulness(
        proportions=shares,
        counts=counts,
        circuit=curves[0],
        clean=metrics["clean"],
        corrupted=metrics["corrupted"],
        random=curves[1:],
        groups=tuple(inputs.groups) or tuple(map(str, range(len(values)))),
        seed=inputs.seed,
    )


def _mask(pairs: EdgePairs, kept: np.ndarray) -> Bool[Tensor, "writer reader"]:
    """Some edges, by their places in the flattened scores."""
    mask = torch.zeros_like(pairs.graph.exists)
    mask.view(-1)[torch.from_numpy(kept.copy())] = True
    return mask.to(pairs.inputs.corrupted.tokens.device)
