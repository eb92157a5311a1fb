"""``patch_edges``: the effect of every edge between two nodes, by attribution or exactly."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch

from interp.arguments import check_choice, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Prompts
from interp.forward.memory import Budget
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import Positions
from interp.patching.edges.edge_pairs import EdgePairs
from interp.patching.edges.result import EdgeEffects
from interp.patching.edges.score_edges import score_edges
from interp.patching.metrics import Metric, metric_name
from interp.patching.patch_inputs import PatchInputs

EdgeMethod = Literal["eap", "clean-corrupted", "eap-ig", "eap-ig-activations", "exact"]


@checked
@keeping_unhooked()
def patch_edges(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    method: str = "eap",
    steps: int = 5,
    edges: Iterable[Any] | None = None,
    positions: Positions | str = "all",
    groups: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> EdgeEffects:
    """Effect of taking each edge alone from the clean run, in the corrupted run.

    An edge leads from a writer (``input``, ``a3.h5``, ``m3``) to a reader (``a7.h1<q>``, ``m7``,
    ``logits``). Patched, the reader takes the corrupted run's residual stream plus the writer's
    change, clean less corrupted, and everything after the reader runs again. Norms are part of
    their reader, and of their writer where they come after it (Gemma): they are differentiated, not
    frozen. With grouped queries ``a7.h1<k>`` is the key of key-value head 1.

    Args:
        clean, corrupted: pairs of prompts, of equal lengths unless spans align them.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        method: ``eap``, ``clean-corrupted``, ``eap-ig``, ``eap-ig-activations`` (see
            ``interp.patching.edges.attribution``) or ``exact``, which runs every edge.
        steps: of ``eap-ig`` and ``eap-ig-activations``.
        edges: only these, each ``"a3.h5->m7"`` or (writer, reader); by default all. Attribution
            takes as long for one as for all.
        positions: "all", or spans by name, as ``interp.patching.patch`` takes them, by which
            prompts of unequal lengths are aligned: at these positions writers change, and at no
            others.
        groups: of each prompt, for intervals; by default each prompt its own.
        seed: of the intervals.
        budget: bytes that the call may take; by default as ``interp.forward.memory``.

    Returns:
        scores with ``to_dataframe``, ``circuit``, ``plot``, ``save`` and ``load``.

    Raises:
        UserError: unknown names, pairs of unequal lengths without spans, a metric without a
            gradient where one is needed, a model whose layers cannot be taken apart, a budget too
            small for one prompt.
    """
    check_choice("method", method, get_args(EdgeMethod))
    steps = whole_number("steps", steps, least=1)
    shared: dict[str, Any] = {"groups": groups, "seed": seed, "budget": budget}
    inputs = PatchInputs(model, clean, corrupted, metric, **shared, progress=progress)
    pairs = EdgePairs(inputs, positions)
    if pairs.by_spans and method == "clean-corrupted":
        raise UserError(
            "clean-corrupted takes gradients at the same positions of both runs: with spans, use "
            "eap, eap-ig or exact"
        )
    graph = pairs.graph
    chosen = graph.every_edge() if edges is None else graph.check(edges)
    values, metrics = score_edges(pairs, chosen, method=method, steps=steps)
    if edges is not None:
        values = values.masked_fill(~graph.mask(chosen), torch.nan)
    return EdgeEffects(
        values=values,
        graph=graph,
        d_model=model.cfg.d_model,
        corrupted=metrics["corrupted"],
        clean=metrics["clean"],
        method=f"{method}, {steps} steps" if method.startswith("eap-ig") else method,
        metric=metric_name(metric),
        groups=inputs.groups,
        seed=inputs.seed,
    )
