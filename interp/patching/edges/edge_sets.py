"""Sets of edges patched together, and circuits of edges that are given: by name, or from a file."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import listed
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Prompts
from interp.forward.memory import Budget
from interp.forward.recorded_run import RecordedRun
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.patching.circuit import Circuit
from interp.patching.edges.circuit_of_edges import edges_of_circuit
from interp.patching.edges.circuit_run import CircuitRun
from interp.patching.edges.edge_pairs import Done, EdgePairs
from interp.patching.metrics import Metric, apply_metric
from interp.patching.patch_inputs import PatchInputs


def run_masks(
    pairs: EdgePairs,
    masks: Sequence[Bool[Tensor, "writer reader"]],
    *,
    what: str,
    patched: bool = False,
) -> tuple[Float[Tensor, "prompt mask"], dict[str, Tensor]]:
    """The metric with some edges, and by name that of the clean and of the corrupted runs.

    Args:
        masks: the edges of a circuit in the clean run; where ``patched``, those that are taken from
            the clean run in the corrupted one.
        what: names the progress bar.
    """
    device = pairs.inputs.corrupted.tokens.device
    names = ("corrupted", "clean") if patched else ("clean", "corrupted")

    @torch.no_grad()
    def run(runs: dict[str, RecordedRun], of_chunk: Metric, done: Done) -> Tensor:
        given = {"run": runs[names[0]], "other": runs[names[1]]}
        circuit_run, found = CircuitRun(pairs.inputs.model, pairs.parts, pairs.graph, **given), []
        for mask in masks:
            kept = (~mask if patched else mask).to(device)
            found.append(apply_metric(of_chunk, circuit_run.logits(kept)))
            done(len(found[-1]))
        return torch.stack(found, dim=1)

    return pairs.in_chunks(run, shape=(len(masks),), steps=len(masks), with_graph=False, what=what)


@checked
@keeping_unhooked()
def patch_edge_sets(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    sets: Iterable[Iterable[Any]],
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt set"]:
    """Effect of taking each set of edges together from the clean run, in the corrupted run.

    The corrupted prompts run; an edge of the set carries what its writer adds in the clean run,
    every other edge what its writer adds now. A set of one edge has the effect that ``patch_edges``
    gives it by ``exact`` (but for a norm behind the attention, where a head's part is taken at that
    norm's scale), the set of all edges that of the clean run.

    Args:
        clean, corrupted: pairs of prompts of equal lengths.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        sets: of edges, each ``"a3.h5->m7"`` or (writer, reader).

    Returns:
        metric(patched) − metric(corrupted run), on the CPU.

    Raises:
        UserError: no sets, an empty one, unknown names, or whatever ``edge_faithfulness`` raises it
            for.
    """
    options: dict[str, Any] = {"budget": budget, "progress": progress}
    pairs = EdgePairs(PatchInputs(model, clean, corrupted, metric, **options))
    masks = [pairs.graph.mask(pairs.graph.check(edges)) for edges in listed("sets", sets)]
    if not masks:
        raise UserError("there are no sets of edges: give at least one")
    values, runs = run_masks(pairs, masks, what="sets of edges", patched=True)
    return values - runs["corrupted"][:, None]


@checked
@keeping_unhooked()
def circuit_metric(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    circuit: Circuit | Iterable[Any],
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, " prompt"]:
    """The metric on the clean prompts when every edge outside of a circuit is the corrupted run's.

    Args:
        clean, corrupted: pairs of prompts of equal lengths.
        circuit: a circuit with edges, such as ``Circuit.load`` reads, or edges by name.

    Raises:
        UserError: a circuit of another model, or an empty one; or whatever ``edge_faithfulness``
            raises it for.
    """
    options: dict[str, Any] = {"budget": budget, "progress": progress}
    pairs = EdgePairs(PatchInputs(model, clean, corrupted, metric, **options))
    if isinstance(circuit, Circuit):
        if circuit.d_model != model.cfg.d_model:
            raise UserError(
                f"the circuit is of a model of width {circuit.d_model}, and this one has width "
                f"{model.cfg.d_model}"
            )
        edges = edges_of_circuit(pairs.graph, circuit)
    else:
        edges = pairs.graph.check(circuit)
    return run_masks(pairs, [pairs.graph.mask(edges)], what="circuits")[0][:, 0]
