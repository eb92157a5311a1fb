"""Experts as nodes: what each adds to its projection, and how a gradient comes back through it.

Expert e of a projection adds ``gate_e(x) · s · B_e A_e x`` to its output. With the gradient G of a
metric at that output, the gradient at what the expert reads is

    gate_e · s · A_eᵀ B_eᵀ G  +  (∂metric/∂gate_e) · ∂gate_e/∂x,   ∂metric/∂gate_e = s · G·B_e A_e x

where the gate is the softmax weight of a chosen expert: ∂gate_e/∂logit_j = gate_e (δ_ej − share_j),
over the chosen experts if gates are renormalised, else over all. Which experts are chosen has no
gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.experts.edges.expert_graph import READS, WRITES, Experts
from interp.forward.adapted_projections import AdaptedProjection, original_of, projections_of
from interp.models.hooked_model import HookedModel
from interp.moelora.config import MoELoRAConfig
from interp.moelora.hooked import JointPart
from interp.moelora.layer import ExpertWeights, MoELoRALinear
from interp.moelora.projections import head_outputs
from interp.moelora.routing import choose_experts, gates_of_logits, per_rank
from interp.patching.edges.graph import INTO
from interp.precision import widened

Gates = Float[Tensor, "row pos expert"]


@dataclass(frozen=True, eq=False)
class ReadingExperts:
    """The experts of a projection that reads the residual stream, as functions of what they read.

    Attributes:
        nodes: their names and place.
        projection: the projection.
        weights: of the experts and their router.
        config: of the adapter.
        into: by ``q``, ``k`` or ``v``, which columns of the output each head takes; none for a
            projection of the MLP.
    """

    nodes: Experts
    projection: AdaptedProjection
    weights: ExpertWeights
    config: MoELoRAConfig
    into: Mapping[str, Int[Tensor, "unit d_head"]]

    @property
    def router_point(self) -> str:
        """The hook point of the router's softmax."""
        return f"{self.projection.name}.moelora.hook_router"

    def probabilities(self, x: Float[Tensor, "row pos d_in"]) -> Gates:
        """The router's softmax over all experts."""
        return self.weights.router_logits(x).softmax(dim=-1)

    def added(
        self, x: Float[Tensor, "row pos d_in"], expert: int | None = None
    ) -> Float[Tensor, "row pos d_out"]:
        """What one expert adds to the projection's output when it reads x; by default all."""
        logits = self.weights.router_logits(x)
        chosen = choose_experts(logits, self.config.top_k)
        gates = gates_of_logits(logits, chosen, renormalize=self.config.renormalize)
        if expert is not None:
            gates = gates * F.one_hot(torch.tensor(expert), gates.shape[-1]).to(gates)
        weights = per_rank(self.config.scaling * gates, self.config.r)
        return F.linear(self._hidden(x) * weights, widened(self.weights.up))

    def gradients(
        self,
        x: Float[Tensor, "row pos d_in"],
        gates: Gates,
        at_output: Float[Tensor, "row pos d_out"],
    ) -> Float[Tensor, "row expert pos d_in"]:
        """The gradient at what each expert reads, from that at the projection's output.

        Args:
            x: what the experts read.
            gates: those of the run.
        """
        r, scaling = self.config.r, self.config.scaling
        down, up, router = map(widened, (self.weights.down, self.weights.up, self.weights.router))
        back = rearrange(at_output @ up, "row pos (expert r) -> row pos expert r", r=r)
        hidden = rearrange(self._hidden(x), "row pos (expert r) -> row pos expert r", r=r)
        of_gates = scaling * (back * hidden).sum(dim=-1)
        through_output = einsum(
            scaling * gates[..., None] * back,
            rearrange(down, "(expert r) d_in -> expert r d_in", r=r),
            "row pos expert r, expert r d_in -> row expert pos d_in",
        )
        shares = gates if self.config.renormalize else self.probabilities(x).to(gates)
        slopes = gates * of_gates
        mean = shares @ router
        through_gate = einsum(
            slopes, router, "row pos expert, expert d_in -> row expert pos d_in"
        ) - einsum(slopes, mean, "row pos expert, row pos d_in -> row expert pos d_in")
        return through_output + through_gate

    def _hidden(self, x: Float[Tensor, "row pos d_in"]) -> Float[Tensor, "row pos expert_rank"]:
        return F.linear(x, widened(self.weights.down))


@dataclass(frozen=True, eq=False)
class WritingExperts:
    """The experts of a projection that writes to the residual stream.

    Attributes:
        nodes: their names and place.
        projection: the projection.
        scale: what its output is multiplied with on the way to the residual stream.
    """

    nodes: Experts
    projection: AdaptedProjection
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class ExpertNodes:
    """The experts of a model that are nodes.

    Attributes:
        reading: by layer and part of it, the projections that read there.
        writing: likewise, those that write.
        left_out: names of projections whose experts are no nodes.
    """

    reading: dict[tuple[int, str], list[ReadingExperts]] = field(default_factory=dict)
    writing: dict[tuple[int, str], list[WritingExperts]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def experts(self) -> tuple[Experts, ...]:
        """All of them, in the order in which they stand in a layer."""
        return tuple(some.nodes for some in (*self.all_reading(), *self.all_writing()))

    def all_reading(self) -> Iterator[ReadingExperts]:
        """All that read."""
        for some in self.reading.values():
            yield from some

    def all_writing(self) -> Iterator[WritingExperts]:
        """All that write."""
        for some in self.writing.values():
            yield from some


def find_nodes(model: HookedModel) -> ExpertNodes:
    """The experts of a hooked model that are nodes, by layer.

    Raises:
        UserError: a model without experts, or without any that is a node.
    """
    projections = projections_of(model)
    order = [*READS, *WRITES]
    kept = [part for part in projections if part.layer is not None and part.target in order]
    kept.sort(key=lambda part: (part.layer, order.index(part.target)))
    left_out = tuple(part.name for part in projections if part not in kept)
    if not kept:
        raise UserError(
            f"no expert of this adapter is a node: its projections are {', '.join(left_out[:3])}, "
            f"and nodes are those of {', '.join(order)}"
        )
    found = ExpertNodes(left_out=left_out)
    columns = _columns(model, kept)
    for projection in kept:
        layer, target = projection.layer or 0, projection.target
        nodes = Experts(layer, target, projection.n_experts)
        if target in WRITES:
            place = layer, WRITES[target]
            found.writing.setdefault(place, []).append(WritingExperts(nodes, projection))
            continue
        adapted = original_of(model.get_submodule(projection.name))
        (name,) = adapted.adapters_in_use
        experts = ReadingExperts(
            nodes,
            projection,
            adapted.weights(name),
            adapted.experts[name].config,
            columns.get(projection.name, {}),
        )
        found.reading.setdefault((layer, READS[target]), []).append(experts)
    return found


def _columns(
    model: HookedModel, projections: Sequence[AdaptedProjection]
) -> dict[str, dict[str, Int[Tensor, "unit d_head"]]]:
    """By projection, the columns that it gives each head's query, key or value."""
    found: dict[str, dict[str, Tensor]] = {}
    targets = {projection.target for projection in projections}
    for into in INTO:
        if targets & {f"attn.{into}", "attn.qkv"}:
            for outputs in head_outputs(model, into).values():
                found.setdefault(outputs.projection.name, {})[into] = outputs.columns
    return found


@contextmanager
def without_experts(model: HookedModel) -> Iterator[None]:
    """While open, every adapted projection of a hooked model is the frozen one alone."""
    there: list[tuple[Any, Any]] = []
    for component in model.modules():
        original = component._modules.get("_original_component")
        if isinstance(original, MoELoRALinear | JointPart):
            there.append((component, original))
    try:
        for component, original in there:
            is_part = isinstance(original, JointPart)
            component.set_original_component(original.split if is_part else original.base_layer)
        yield
    finally:
        for component, original in there:
            component.set_original_component(original)
