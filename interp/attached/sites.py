"""The hooks of a constraint in a transformers model: one builder for each site.

Site ``output`` edits the input of the layers' output projections; site ``attention`` gives the
layers' attention a mask by head (`interp.attached.head_mask`).
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from interp.attached.anatomy import Anatomy
from interp.attached.head_mask import causal_mask, mask_by_head, mask_hook
from interp.attached.state import AttachedState, Install
from interp.errors import UserError
from interp.forward.transfer import upload
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.models.passes import HookOfOneModel

MASKED = ("eager", "sdpa")
"""Attention implementations that take a mask by head."""
_ADVICE = 'load it with attn_implementation="eager" or "sdpa"'


def check_mean(intervention: Intervention, anatomy: Anatomy, mean: Tensor | None) -> None:
    """Raise UserError for mode ``mean`` without a mean, or a mean of another size."""
    if not intervention.needs_mean:
        if mean is not None:
            raise UserError("mean= is for mode 'mean': leave it out")
        return
    if mean is None:
        raise UserError(
            "mode 'mean' needs mean=, the mean output of every head [layer head d_head]: "
            "interp.heads.object_edits.mean_output gives it on the hooked model"
        )
    layers, n_heads = len(anatomy.layers), anatomy.n_heads
    if mean.ndim != 3 or mean.shape[:2] != (layers, n_heads):
        raise UserError(
            f"mean= is [layer head d_head], of {layers} layers and {n_heads} heads, not "
            f"{list(mean.shape)}"
        )


def check_implementation(anatomy: Anatomy, part: Constraint) -> None:
    """Raise UserError where site ``attention`` meets a kernel that takes no mask by head."""
    for layer, _ in part.heads if part.site == "attention" else ():
        config = getattr(anatomy.attention_of(layer), "config", None)
        name = getattr(config, "_attn_implementation", None)
        if name not in (None, *MASKED):
            raise UserError(
                f"the model's attention ({name}) takes no mask by head, which site 'attention' "
                f"needs: {_ADVICE}"
            )


def install(
    part: Constraint, anatomy: Anatomy, *, mean: Float[Tensor, "layer head d_head"] | None = None
) -> Install:
    """What puts the hooks of a constraint into the layers; ``mean`` is for mode ``mean``."""
    build: Any = partial(_output_hook, mean=mean) if part.site == "output" else _attention_hook

    def put(state: AttachedState) -> list[RemovableHandle]:
        handles = []
        for layer, heads in _by_layer(part, anatomy.n_heads).items():
            module = (
                anatomy.projection(layer) if part.site == "output" else anatomy.attention_of(layer)
            )
            hook = build(part, state, layer=layer, heads=heads, module=module)
            own = HookOfOneModel(hook)
            handles.append(module.register_forward_pre_hook(own, with_kwargs=True))
        return handles

    return put


def _by_layer(part: Constraint, n_heads: int) -> dict[int, Bool[Tensor, " head"]]:
    """Which heads of each layer are constrained."""
    found: dict[int, Tensor] = {}
    for layer, head in sorted(part.heads):
        found.setdefault(layer, torch.zeros(n_heads, dtype=torch.bool))[head] = True
    return found


def _output_hook(
    part: Constraint,
    state: AttachedState,
    *,
    layer: int,
    heads: Bool[Tensor, " head"],
    mean: Tensor | None,
    **_: Any,
) -> Callable[..., Any]:
    def edited(by_head: Float[Tensor, "prompt pos head d_head"]) -> Tensor:
        strength = state.strength
        if part.mode in ("mean", "resample"):
            given = state.resampled[layer] if part.mode == "resample" else mean[layer]  # type: ignore[index]
            new = given.to(by_head).expand_as(by_head)
            if strength is None:
                return new
            return by_head + strength.to(by_head)[:, None, None, None] * (new - by_head)
        factor = state.factor_of(part.factor)
        if isinstance(factor, Tensor):
            factor = factor.to(by_head)[:, None, None, None]
        return factor * by_head

    def edit(z: Float[Tensor, "prompt pos width"]) -> Tensor:
        by_head = z.unflatten(-1, (len(heads), -1))
        where = state.positions.to(z.device)[:, :, None, None] & heads.to(z.device)[:, None]
        return torch.where(where, edited(by_head), by_head).flatten(-2)

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not state.acting:
            return None
        return (edit(args[0]), *args[1:]), kwargs

    return hook


def _attention_hook(
    part: Constraint,
    state: AttachedState,
    *,
    layer: int,
    heads: Bool[Tensor, " head"],
    module: nn.Module,
) -> Callable[..., Any]:
    heads_on = functools.cache(partial(upload, heads))

    def cut(given: Any, hidden: Tensor, cache: Cache | None) -> Tensor | None:
        steps = part.decoding_steps
        ended = steps is not None and state.first_query >= state.n_prompt + steps
        if state.suspended or ended:
            return None
        chosen = heads_on(hidden.device)
        return _cut(part, state, chosen, given=given, hidden=hidden, cache=cache, layer=layer)

    return mask_hook(module, cut)


def _cut(
    part: Constraint,
    state: AttachedState,
    heads: Bool[Tensor, " head"],
    *,
    given: Any,
    hidden: Tensor,
    cache: Cache | None,
    layer: int,
) -> Tensor:
    """The mask for a layer's attention in this pass."""
    if given is not None and (not isinstance(given, Tensor) or given.ndim != 4):
        raise UserError(f"the model's attention takes no mask by head: {_ADVICE}")
    n_queries, device = hidden.shape[1], hidden.device
    n_seen = state.first_query + n_queries
    n_keys, first_key = n_seen, 0
    if cache is not None:
        n_keys, first_key = map(int, cache.get_mask_sizes(n_queries, layer))
    if given is not None and given.shape[-1] != n_keys:  # keys that another layer has cached
        n_keys = given.shape[-1]
        first_key = max(n_seen - n_keys, 0)
    keys: dict[str, Any] = {
        "n_queries": n_queries,
        "first_key": first_key,
        "n_keys": n_keys,
        "device": device,
    }
    mask = causal_mask(first_query=state.first_query, **keys) if given is None else given
    end = None if part.decoding_steps is None else state.n_prompt + part.decoding_steps
    factor = state.factor_of(part.factor)
    return mask_by_head(
        mask, state.pairs(**keys, end=end), heads, factor=factor, dtype=hidden.dtype
    )
