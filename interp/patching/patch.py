"""Activation patching of any component: one call, one result.

The corrupted prompts run with one unit's value replaced, at all positions, at each, or at named
spans, and the metric is read at the last position. Methods:

* ``exact``: one run for each unit (``sweep``).
* ``attribution``: first order, from one backward pass (AtP, arXiv 2403.00745).
* ``atp*``: AtP with its authors' two repairs (``atp_star``).
* ``ig``: integrated gradients (``integrated_gradients``).
* ``screen``: attribution ranks, exact patching verifies the first (``screen``).

Effect = metric(patched) − metric(corrupted run).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Prompts, TokenBatch, token_tensor
from interp.forward.hook_points import axis_of, check_component
from interp.forward.memory import Budget
from interp.forward.prompts import batch_for
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.patching.alignment import Positions, align
from interp.patching.metrics import Metric, check_metrics
from interp.patching.patch_inputs import PatchInputs
from interp.patching.patch_source import check_patch_source, patching_edit
from interp.patching.result import PatchEffects
from interp.patching.screen import screen
from interp.patching.sweep import Unit, sweep_heads
from interp.patching.unit_effects import DEFAULT_STEPS, check_method, effects_of_units


@checked
@keeping_unhooked()
def patch(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    component: str = "z",
    method: str = "exact",
    positions: Positions | str = "all",
    source: str = "run",
    reference: Prompts | None = None,
    units: Sequence[Unit] | None = None,
    steps: int = DEFAULT_STEPS,
    top_k: int = 20,
    groups: Sequence[str] = (),
    templates: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> PatchEffects:
    """Effect of replacing each unit of a component alone.

    Args:
        clean, corrupted: pairs of prompts; of equal lengths, or aligned by spans. A TokenBatch,
            token ids [prompt pos], or lists of token ids.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        component: z, q, k, v, pattern, attn_out, mlp_out, mlp_post, resid_pre, resid_mid or
            resid_post.
            With grouped queries a unit of k or v is a key-value head, which serves a whole group.
        positions: "all", "each", or {name: (spans in clean, spans in corrupted)}, [start, end) in
            token positions of the unpadded prompts.
        source: run, zero, mean or resample; see ``interp.patching.patch_source``.
        reference: prompts that ``mean`` is taken over, and no other source takes; by default the
            clean ones.
        units: only these (layer, unit), for the exact method; the others are NaN.
        steps: of the integral, for ``ig``.
        top_k: how many units ``screen`` verifies.
        groups, templates: of each prompt, for intervals and stability.
        seed: of ``resample`` and of the statistics.
        budget: bytes that the call may take; by default as ``interp.forward.memory``.

    Returns:
        effects with the axes prompt, layer, head (or kv_head, or none), position or span (if
        asked).

    Raises:
        UserError: unknown names, texts instead of tokens, unequal lengths without spans, a metric
            that is not one finite value per prompt, or has no gradient where one is needed, values
            that are not finite, a budget too small for one prompt.
    """
    check_method(method)
    if reference is not None and source != "mean":
        raise UserError(f"reference prompts are for source 'mean', not {source!r}")
    shared: dict[str, Any] = {"groups": groups, "templates": templates, "seed": seed}
    shared |= {"budget": budget, "progress": progress}
    what: dict[str, Any] = {"component": component, "positions": positions, "source": source}
    if method == "screen":
        if units is not None:
            raise UserError("method 'screen' chooses the units itself: leave `units` out")
        what |= {"reference": reference, "top_k": top_k}
        return screen(model, clean, corrupted, metric, **what, **shared).verified
    inputs = PatchInputs(model, clean, corrupted, metric, **shared)
    check_component(component, model)
    check_patch_source(source, component)
    if reference is not None:
        reference = batch_for(model, reference, "reference")
    return effects_of_units(
        inputs, method=method, units=units, steps=steps, reference=reference, **what
    )


@checked
@keeping_unhooked()
@torch.no_grad()
def patch_heads(
    model: HookedModel,
    clean: Int[Tensor, "prompt pos"],
    corrupted: Int[Tensor, "corrupted_prompt corrupted_pos"],
    metric: Callable[[Tensor], Tensor],
    *,
    component: str = "z",
    mask: Tensor | None = None,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt layer head"]:
    """Run ``corrupted`` with one head's value from ``clean`` at every position, for every head.

    The convention of TransformerLens' ``get_act_patch_attn_head_out_all_pos``, with the value of
    each prompt kept: the metric itself, not a difference.

    Args:
        clean, corrupted: token ids [prompt pos] of equal lengths, prompt by prompt.
        metric: last real position's logits Float[prompt d_vocab] → Float[prompt].
        component: z, q, k, v or pattern. For k and v the heads are key-value heads.
        mask: [prompt pos], True on real tokens, if prompts are padded (left or right).

    Returns:
        Float[prompt layer head]; a prompt pair without any difference gets the unpatched metric.
    """
    check_hooked(model)
    check_component(component, model)
    if axis_of(component) is None:
        raise UserError(f"{component!r} has no heads: use interp.patching.patch for it")
    clean, corrupted = token_tensor("clean", clean), token_tensor("corrupted", corrupted)
    if clean.shape != corrupted.shape:
        raise UserError(
            f"clean {tuple(clean.shape)} and corrupted {tuple(corrupted.shape)} differ in shape"
        )
    source = batch_for(model, TokenBatch.from_padded(clean, mask), "clean")
    batch = batch_for(model, TokenBatch.from_padded(corrupted, mask), "corrupted")
    check_metrics([metric], len(batch))
    edit = patching_edit(model, source, align(source, batch, "all"), component=component)
    found = sweep_heads(model, batch, edit, metrics=[metric], budget=budget, progress=progress)
    return found[0]
