"""Build the hooks of a constraint: one builder for each site."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.forward.adapted_projections import GATE
from interp.forward.hook_points import hook_name
from interp.forward.partial import Hook
from interp.forward.prompts import device_of
from interp.forward.transfer import repeated_rows, upload
from interp.interventions.expert_constraint import ExpertConstraint, edit_gates
from interp.interventions.head_constraint import Constraint
from interp.interventions.prompt_state import PromptState
from interp.models.hooked_model import HookedModel
from interp.patching.edits import AttentionEdit, scale_scores, scores_hook_name

MeanOutput = Float[Tensor, "layer head d_head"]


def hooks_of(
    part: Constraint | ExpertConstraint,
    model: HookedModel,
    *,
    state: PromptState | None = None,
    mean: MeanOutput | None = None,
) -> list[Hook]:
    """The hooks that apply a constraint.

    Args:
        state: the positions to act at; not needed for experts at place ``all``.
        mean: what mode ``mean`` of site ``output`` puts in.
    """
    return BUILDERS[part.site](part, model, state=state, mean=mean)


def _output_hooks(
    part: Constraint, model: HookedModel, *, state: PromptState, mean: MeanOutput | None
) -> list[Hook]:
    def write(z: Tensor, hook: object, *, layer: int, heads: Bool[Tensor, " head"]) -> Tensor:
        if not state.acting:
            return z
        where = state.positions.to(z.device)[:, :, None, None]
        where = where & heads[None, None, :, None].to(z.device)
        if part.mode == "mean":
            assert mean is not None
            new = mean[layer].to(device=z.device, dtype=z.dtype).expand_as(z)
        elif part.mode == "resample":
            new = state.resampled[layer].to(z)
        else:
            new = part.factor * z
        if state.strength is not None:
            new = z + state.strength.to(z)[:, None, None, None] * (new - z)
        return torch.where(where, new, z)

    return [
        (hook_name("z", layer), partial(write, layer=layer, heads=heads))
        for layer, heads in _by_layer(part, model).items()
    ]


def _attention_hooks(
    part: Constraint, model: HookedModel, *, state: PromptState, mean: MeanOutput | None
) -> list[Hook]:
    def cut(scores: Tensor, hook: object, *, layer: int, heads: Bool[Tensor, " head"]) -> Tensor:
        if state.suspended or (
            part.decoding_steps is not None and state.step > part.decoding_steps
        ):
            return scores
        queries, keys = scores.shape[2:]
        # While decoding there are more keys than prompt tokens: the new ones are not the object. A
        # sliding window keeps the last keys only, and a cache of fixed length has room for keys to
        # come.
        width = max(state.n_seen, keys)
        at = state.positions
        at = torch.nn.functional.pad(at, (0, width - at.shape[1]))[:, -keys:].to(scores.device)
        rows = repeated_rows(len(at), 1, at.device)
        first = min(state.n_seen, keys) - queries
        pairs = AttentionEdit(at).pairs(rows, first, queries)
        where = pairs[:, None] & heads.to(at.device)[:, None, None]
        factor: float | Tensor = part.factor
        if state.strength is not None:
            factor = (1 - state.strength * (1 - part.factor))[:, None, None, None]
        return scale_scores(scores, where, factor)

    return [
        (scores_hook_name(layer), partial(cut, layer=layer, heads=heads))
        for layer, heads in _by_layer(part, model).items()
    ]


def _expert_hooks(
    part: ExpertConstraint,
    model: HookedModel,
    *,
    state: PromptState | None,
    mean: MeanOutput | None,
) -> list[Hook]:
    def write(gates: Float[Tensor, "*token expert"], hook: object, *, experts: list[int]) -> Tensor:
        if part.place == "spans":
            assert state is not None
            if not state.acting:
                return gates
        new = edit_gates(gates, experts, part.mode, factor=part.factor)
        if part.place == "all" or state is None:
            return new
        return torch.where(state.positions[:, :, None].to(gates.device), new, gates)

    projections = part.by_projection().items()
    return [(name + GATE, partial(write, experts=experts)) for name, experts in projections]


BUILDERS: Mapping[str, Callable[..., list[Hook]]] = {
    "output": _output_hooks,
    "attention": _attention_hooks,
    "experts": _expert_hooks,
}


def _by_layer(part: Constraint, model: HookedModel) -> dict[int, Bool[Tensor, " head"]]:
    """Which heads of each layer are constrained, on the model's device."""
    found: dict[int, Tensor] = {}
    for layer, head in sorted(part.heads):
        heads = found.setdefault(layer, torch.zeros(model.cfg.n_heads, dtype=torch.bool))
        heads[head] = True
    return {layer: upload(heads, device_of(model)) for layer, heads in found.items()}
