"""``patch_expert_edges``: the effect of every edge into and out of an expert of an adapter."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

from interp.arguments import check_choice, whole_number
from interp.checked import checked
from interp.experts.edges.exact_experts import ExactExpertEdges
from interp.experts.edges.expert_pairs import ExpertPairs
from interp.experts.edges.expert_runs import ExpertRuns
from interp.experts.edges.result import ExpertEdgeEffects
from interp.forward.batch import Prompts
from interp.forward.memory import Budget
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.patching.edges.score_edges import score_edges
from interp.patching.metrics import Metric, metric_name
from interp.patching.patch_inputs import PatchInputs

ExpertEdgeMethod = Literal["eap", "eap-ig", "exact"]


@checked
@keeping_unhooked()
def patch_expert_edges(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    method: str = "eap",
    steps: int = 5,
    edges: Iterable[Any] | None = None,
    all_edges: bool = False,
    groups: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> ExpertEdgeEffects:
    """Effect of taking each edge of an expert alone from the clean run, in the corrupted run.

    The nodes are those of ``interp.patching.patch_edges`` and, of a model from
    ``interp.moelora.hooked``, the experts: ``a3.q.e2`` is expert 2 of the query projection of layer
    3, ``m3.in.e2`` is of the MLP's (see ``interp.experts.edges.expert_graph``). All other nodes
    stand for the frozen projections alone. Patched, an expert that reads (``q``, ``k``, ``v``,
    ``qkv``, ``in``, ``gate``) takes the corrupted run's residual stream plus the writer's change,
    through the layer's norm; everything after it runs again. The change of an expert that writes
    (``o``, ``out``) is its gate times its output, clean less corrupted.

    Its router reads what an expert reads, so the gate moves too. In ``exact`` the gate is the one
    that the router gives for the changed input, where another expert may be chosen; the other
    experts keep their gates. Attribution differentiates the softmax weights of the chosen experts,
    and does not see that another may be chosen: an expert that is not chosen in the corrupted run
    has no gradient.

    Args:
        clean, corrupted: pairs of prompts, of equal lengths.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        method: ``eap``, ``eap-ig`` (see ``interp.patching.edges.attribution``) or ``exact``, which
            runs every edge.
        steps: of ``eap-ig``.
        edges: only these, each ``"a1.h5->a3.q.e2"`` or (writer, reader), also between other nodes;
            by default all that begin or end at an expert.
        all_edges: without ``edges``, score those between all other nodes too.
        groups: of each prompt, for intervals; by default each prompt its own.
        seed: of the intervals.
        budget: bytes that the call may take; by default as ``interp.forward.memory``.

    Returns:
        scores with ``to_dataframe``, ``plot``, ``save`` and ``load``; ``left_out`` names the
        projections whose experts are no nodes.

    Raises:
        UserError: a model without experts, unknown names, pairs of unequal lengths, a metric
            without a gradient where one is needed, a model whose layers cannot be taken apart, or
            in which a norm comes behind experts that write; a budget too small for one prompt.
    """
    check_choice("method", method, get_args(ExpertEdgeMethod))
    steps = whole_number("steps", steps, least=1)
    shared: dict[str, Any] = {"groups": groups, "seed": seed, "budget": budget}
    inputs = PatchInputs(model, clean, corrupted, metric, **shared, progress=progress)
    pairs = ExpertPairs(inputs)
    chosen = pairs.graph.every_edge() if all_edges else pairs.graph.edges_of_experts()
    if edges is not None:
        chosen = pairs.graph.check(edges)
    values, metrics = score_edges(
        pairs,
        chosen,
        method=method,
        steps=steps,
        by_edge=True,
        runs_of=partial(ExpertRuns, nodes=pairs.nodes),
        exact_of=ExactExpertEdges,
    )
    return ExpertEdgeEffects(
        values=values,
        edges=tuple(chosen),
        corrupted=metrics["corrupted"],
        clean=metrics["clean"],
        method=f"{method}, {steps} steps" if method == "eap-ig" else method,
        metric=metric_name(metric),
        left_out=pairs.nodes.left_out,
        groups=inputs.groups,
        seed=inputs.seed,
    )
