"""Pairs of prompts for edges of experts: checked, recorded, and cut into chunks."""

from dataclasses import replace

from interp.experts.edges.expert_check import checked_nodes
from interp.experts.edges.expert_graph import ExpertGraph
from interp.experts.edges.expert_nodes import find_nodes, without_experts
from interp.patching.chunks import Demand
from interp.patching.edges.edge_pairs import EdgePairs
from interp.patching.patch_inputs import PatchInputs
from interp.precision import result_dtype


class ExpertPairs(EdgePairs):
    """Pairs of prompts, the frozen parts of an adapted model, and its experts.

    Raises:
        UserError: as ``EdgePairs`` and ``find_nodes`` do, and ``checked_nodes``.
    """

    graph: ExpertGraph

    def __init__(self, inputs: PatchInputs) -> None:
        model = inputs.model
        nodes = find_nodes(model)
        with without_experts(model):
            super().__init__(inputs)
        self.nodes = checked_nodes(model, nodes, self.parts, batch=inputs.corrupted)
        frozen = ExpertGraph.of(model, parallel=self.graph.parallel)
        assert isinstance(frozen, ExpertGraph)
        self.graph = replace(frozen, experts=nodes.experts)

    def demand(self, n_rerun: int, width: int, *, with_graph: bool) -> Demand:
        """Memory as for other edges, and that of experts' outputs and gradients."""
        found = super().demand(n_rerun, width, with_graph=with_graph)
        reading = list(self.nodes.all_reading())
        if not reading:
            return found
        outputs = [len(experts.weights.up) for experts in reading]
        token = n_rerun * result_dtype(self.inputs.model).itemsize
        if not with_graph:
            return replace(found, row=found.row + 4 * max(outputs) * token)
        # An MLP's outputs and their gradients, and the gradients of one layer's experts.
        d_model = self.inputs.model.cfg.d_model
        of_layer = max(
            sum(some.nodes.count for some in group) for group in self.nodes.reading.values()
        )
        inside = sum(size for size, some in zip(outputs, reading, strict=True) if not some.into)
        return replace(found, kept=found.kept + (2 * inside + 4 * of_layer * d_model) * token)
