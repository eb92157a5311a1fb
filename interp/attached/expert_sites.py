"""The hooks of a constraint on experts, in a PEFT model with a MoELoRA adapter.

Experts at place ``spans`` are constrained at the false object in the prefill. Those at place
``all`` are constrained at every token; where a detector decides, in the prompts in which it fires.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.attached.state import AttachedState, Install
from interp.interventions.expert_constraint import ExpertConstraint, check_expert, edit_gates
from interp.interventions.intervention import Intervention


def named_in(intervention: Intervention, hf_model: Any) -> Intervention:
    """The intervention with the names of this model's modules.

    Raises UserError for a model without a MoELoRA adapter, or an expert that it does not have.
    """
    if not intervention.experts:
        return intervention
    from interp.moelora.plain_gates import find_plain, plain_projections  # imports PEFT: seconds

    known, parts = list(plain_projections(hf_model)), []
    for part in intervention.experts:
        pairs = []
        for name, expert in part.pairs:
            projection = find_plain(known, name)
            check_expert(projection, expert)
            pairs.append((projection.name, expert))
        parts.append(replace(part, experts=pairs))
    return Intervention(intervention.heads, tuple(parts), intervention.gate)


def install_experts(part: ExpertConstraint, hf_model: Any, *, everywhere: bool) -> Install:
    """What puts the edits of a constraint into the projections.

    Args:
        everywhere: experts at place ``all`` act in every prompt, and not only where positions are.
    """
    from interp.moelora.plain_gates import GateEdit, plain_projections

    layers = {projection.name: layer for projection, layer in plain_projections(hf_model).items()}

    def put(state: AttachedState) -> list[Any]:
        return [
            GateEdit(
                layers[name],
                partial(_edited, part=part, state=state, experts=experts, everywhere=everywhere),
            )
            for name, experts in part.by_projection().items()
        ]

    return put


def _edited(
    gates: Float[Tensor, "prompt pos expert"],
    *,
    part: ExpertConstraint,
    state: AttachedState,
    experts: list[int],
    everywhere: bool,
) -> Float[Tensor, "prompt pos expert"]:
    if state.suspended or (part.place == "spans" and not state.acting):
        return gates
    new = edit_gates(gates, experts, part.mode, factor=part.factor)
    if part.place == "all" and everywhere:
        return new
    at = state.positions.to(gates.device)
    where = at if part.place == "spans" else at.any(dim=1, keepdim=True)
    return torch.where(where[:, :, None], new, gates)
