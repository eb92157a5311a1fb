"""Random interventions matched to a given one, as a null.

Heads are matched per layer (``random_head_sets``), experts per projection. Chosen heads and experts
are never drawn.
"""

from dataclasses import replace

import torch

from interp.errors import UserError
from interp.forward.adapted_projections import projections_of
from interp.heads.headset import HeadSet, Site
from interp.heads.random_sets import random_head_sets
from interp.interventions.expert_constraint import Expert, ExpertConstraint
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.models.hooked_model import HookedModel


def random_interventions(
    model: HookedModel, intervention: Intervention, n_sets: int, *, seed: int = 0
) -> tuple[Intervention, ...]:
    """Interventions of the same modes on other heads and experts, drawn at random.

    Raises:
        UserError: so many heads, or experts of a projection, are chosen that none can match.
    """
    if not n_sets:
        return ()
    heads = _random_heads(model, intervention.heads, n_sets, seed=seed)
    experts = _random_experts(model, intervention.experts, n_sets, seed=seed)
    gate = intervention.gate
    return tuple(Intervention(*parts, gate) for parts in zip(heads, experts, strict=True))


def _random_heads(
    model: HookedModel, parts: tuple[Constraint, ...], n_sets: int, *, seed: int
) -> list[tuple[Constraint, ...]]:
    """Draws for all parts; parts of one site share a draw, so no head is drawn twice."""
    sites: tuple[Site, ...] = tuple(dict.fromkeys(part.site for part in parts))
    draws: dict[Site, tuple[HeadSet, ...]] = {}
    for site in sites:
        chosen = tuple(head for part in parts if part.site == site for head in part.heads)
        draws[site] = random_head_sets(
            HeadSet(chosen, site),
            n_layers=model.cfg.n_layers,
            n_heads=model.cfg.n_heads,
            n_sets=n_sets,
            seed=seed,
        )
    found = []
    for draw in range(n_sets):
        left = {site: list(sets[draw]) for site, sets in draws.items()}
        drawn = []
        for part in parts:
            taken = left[part.site][: len(part.heads)]
            del left[part.site][: len(taken)]
            chosen_by = draws[part.site][draw].chosen_by
            drawn.append(part.with_heads(HeadSet(tuple(taken), part.site, chosen_by)))
        found.append(tuple(drawn))
    return found


def _random_experts(
    model: HookedModel, parts: tuple[ExpertConstraint, ...], n_sets: int, *, seed: int
) -> list[tuple[ExpertConstraint, ...]]:
    if not parts:
        return [()] * n_sets
    sizes = {projection.name: projection.n_experts for projection in projections_of(model)}
    chosen: dict[str, list[int]] = {}
    for part in parts:
        for projection, experts in part.by_projection().items():
            chosen.setdefault(projection, []).extend(experts)
    for projection, experts in chosen.items():
        if 2 * len(experts) > sizes[projection]:
            raise UserError(
                f"no random experts can match {len(experts)} of {sizes[projection]} of "
                f"{projection}: ask for no null (random_sets=0)"
            )
    generator = torch.Generator().manual_seed(seed)
    found = []
    for draw in range(n_sets):
        left: dict[str, list[int]] = {}
        for projection, experts in sorted(chosen.items()):
            free = [expert for expert in range(sizes[projection]) if expert not in experts]
            order = torch.randperm(len(free), generator=generator).tolist()
            left[projection] = [free[index] for index in order]
        drawn = []
        for part in parts:
            pairs: list[Expert] = [
                (projection, left[projection].pop()) for projection, _ in part.pairs
            ]
            chosen_by = f"random, matched per projection, draw {draw}"
            drawn.append(replace(part, experts=pairs, chosen_by=chosen_by))
        found.append(tuple(drawn))
    return found
