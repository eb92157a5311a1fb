"""From a constraint to hooks: one builder a site, and no other way to act on a running model."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.forward.hook_points import hook_name
from interp.forward.partial import Hook
from interp.interventions.expert_constraint import ExpertConstraint, edit_gates
from interp.interventions.head_constraint import Constraint
from interp.interventions.prompt_state import PromptState
from interp.models.hooked_model import HookedModel
from interp.moelora.projections import GATE
from interp.patching.edits import AttentionEdit, scores_hook_name

MeanOutput = Float[Tensor, "layer head d_head"]


def hooks_of(
    part: Constraint | ExpertConstraint,
    model: HookedModel,
    running: PromptState | None,
    mean: MeanOutput | None = None,
) -> list[Hook]:
    """The hooks that hold a constraint.

    Args:
        running: where to act; None will do for experts at place ``all``.
        mean: what mode ``mean`` of site ``output`` puts in.
    """
    return BUILDERS[part.site](part, model, running, mean)


def _output_hooks(
    part: Constraint, model: HookedModel, running: PromptState, mean: MeanOutput | None
) -> list[Hook]:
    mode, factor = part.mode, part.factor

    def at_layer(layer: int, heads: Bool[Tensor, " head"]) -> Hook:
        def write(z: Tensor, hook: object) -> Tensor:
            if not running.acting:
                return z
            assert running.at is not None
            where = running.at[:, :, None, None] & heads[None, None, :, None].to(z.device)
            if mode == "mean":
                assert mean is not None
                new = mean[layer].to(device=z.device, dtype=z.dtype).expand_as(z)
            elif mode == "resample":
                new = running.resampled[layer].to(z.dtype)
            else:
                new = factor * z
            return torch.where(where, new, z)

        return hook_name("z", layer), write

    return [at_layer(*one) for one in _by_layer(part, model).items()]


def _attention_hooks(
    part: Constraint, model: HookedModel, running: PromptState, mean: MeanOutput | None
) -> list[Hook]:
    def at_layer(layer: int, heads: Bool[Tensor, " head"]) -> Hook:
        def cut(scores: Tensor, hook: object) -> Tensor:
            if running.suspended:
                return scores
            assert running.at is not None
            queries, keys = scores.shape[2:]
            # While decoding there are more columns than the prompt had: none is the object.
            # A layer with a sliding window has kept the keys of the last columns only.
            # A cache of a fixed length has room for columns that are yet to come.
            columns = max(running.columns, keys)
            at = torch.nn.functional.pad(running.at, (0, columns - running.at.shape[1]))
            at = at[:, -keys:].to(scores.device)
            rows = torch.arange(len(at), device=at.device)
            everywhere = heads.to(at.device).expand(len(at), -1)
            edit = AttentionEdit(at, part.factor)
            first = min(running.columns, keys) - queries
            _, function = edit.hook(layer, rows, everywhere, first)
            return cast(Tensor, function(scores, hook))

        return scores_hook_name(layer), cut

    return [at_layer(*one) for one in _by_layer(part, model).items()]


def _expert_hooks(
    part: ExpertConstraint, model: HookedModel, running: PromptState | None, mean: MeanOutput | None
) -> list[Hook]:
    def at_projection(name: str, experts: list[int]) -> Hook:
        def write(gates: Float[Tensor, "*token expert"], hook: object) -> Tensor:
            if part.place == "spans":
                assert running is not None
                if not running.acting:
                    return gates
            new = edit_gates(gates, experts, part.mode, part.factor)
            if part.place == "all":
                return new
            assert running is not None
            assert running.at is not None
            return torch.where(running.at[:, :, None].to(gates.device), new, gates)

        return name + GATE, write

    return [at_projection(*one) for one in part.by_projection().items()]


BUILDERS: Mapping[str, Callable[..., list[Hook]]] = {
    "output": _output_hooks,
    "attention": _attention_hooks,
    "experts": _expert_hooks,
}


def _by_layer(part: Constraint, model: HookedModel) -> dict[int, Bool[Tensor, " head"]]:
    """Which heads of each layer are constrained."""
    found: dict[int, Tensor] = {}
    for layer, head in sorted(part.heads):
        heads = found.setdefault(layer, torch.zeros(model.cfg.n_heads, dtype=torch.bool))
        heads[head] = True
    return found
