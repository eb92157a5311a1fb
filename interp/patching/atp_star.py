"""AtP*: attribution patching with its authors' two repairs (Kramár et al. 2024, arXiv 2403.00745).

* **QK fix**: the softmax of a saturated head is flat, so that a first-order step through it sees
  nothing. For queries and keys the new attention pattern is computed exactly, and only the step
  from the pattern to the metric is to first order.
* **GradDrop**: where a unit's direct and indirect effects cancel, their sum says nothing. The
  gradient is taken once for every layer with that layer's attention and MLP outputs dropped on the
  way back, and the absolute values are averaged over the layers but the unit's own.

Values are therefore **not negative**: a size, not a direction.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.errors import UserError
from interp.patching.attribution import edited_change, gradient_pass, keep_in_graph
from interp.patching.batch import TokenBatch
from interp.patching.components import as_units, count_units, hook_name
from interp.patching.edits import ActivationEdit, take_edit
from interp.patching.forward import Hook, HookFunction, RecordedRun, record_run, resume
from interp.patching.metrics import Metric, apply_metric, can_take, take_metrics
from interp.patching.shared_prefix import grouped_scores
from interp.patching.sweep import chunk_prompts, first_column

Gradients = Sequence[Tensor]


def atp_star_columns(
    model: Any,
    batch: TokenBatch,
    edit: ActivationEdit,
    places: Bool[Tensor, "place prompt pos"],
    metric: Metric,
    *,
    grad_drop: bool = True,
    qk_fix: bool = True,
    budget: int | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt layer unit place"]:
    """AtP* of every unit at every place; NaN where a place is empty.

    Args:
        grad_drop, qk_fix: each repair can be left out; without GradDrop values have a sign.
    """
    n_layers, n_units = model.cfg.n_layers, count_units(model, edit.component)
    values = torch.full((len(batch), n_layers, n_units, len(places)), torch.nan)
    whole = not can_take([metric])
    # The graph of all layers is kept while every layer is dropped in turn.
    for chunk in chunk_prompts(model, edit.changed, n_layers, budget, whole=whole):
        prompts = torch.as_tensor(chunk, device=batch.tokens.device)
        part = batch.take(chunk)
        drop = batch.width - part.width
        own = take_edit(edit, prompts, drop=drop)
        assert isinstance(own, ActivationEdit)
        own_places = places[:, prompts, drop:]
        (own_metric,) = take_metrics([metric], prompts)
        with torch.no_grad():
            run = record_run(model, part, start=first_column(own.changed), keep=())
        found = _chunk(model, run, own, own_places, own_metric, grad_drop, qk_fix, progress)
        there = own_places.any(dim=2).T.cpu()[:, None, None, :]
        values[prompts.cpu()] = torch.where(there, found, torch.nan)
    return values


def _chunk(
    model: Any,
    run: RecordedRun,
    edit: ActivationEdit,
    places: Tensor,
    metric: Metric,
    grad_drop: bool,
    qk_fix: bool,
    progress: bool,
) -> Float[Tensor, "prompt layer unit place"]:
    n_layers = model.cfg.n_layers
    fixed = qk_fix and edit.component in ("q", "k")
    watched = "pattern" if fixed else edit.component
    seen: list[Tensor] = [torch.empty(0)] * n_layers
    dropped: set[int] = set()
    hooks = [*keep_in_graph(seen, watched)]
    if grad_drop:
        hooks += _drop_hooks(n_layers, dropped)
    with torch.enable_grad():
        value = apply_metric(metric, gradient_pass(model, run, hooks)).sum()
    with torch.no_grad():
        effects = (_through_pattern if fixed else _to_first_order)(model, run, edit, places, seen)
    turns: list[int | None] = list(range(n_layers)) if grad_drop else [None]
    total: Tensor | None = None
    for layer in tqdm(turns, desc="gradients", disable=not progress):
        dropped.clear()
        if layer is not None:
            dropped.add(layer)
        gradients = torch.autograd.grad(value, seen, retain_graph=True, materialize_grads=True)
        found = effects(gradients)
        found = found.abs() if grad_drop else found
        total = found if total is None else total + found
    assert total is not None
    return (total / max(1, n_layers - 1) if grad_drop else total).float().cpu()


def _drop_hooks(n_layers: int, dropped: set[int]) -> list[Hook]:
    """Hooks under which gradients do not pass the outputs of the layers in ``dropped``."""

    def guard(layer: int) -> HookFunction:
        def hook_function(value: Tensor, hook: object) -> Tensor:
            if value.requires_grad:
                value.register_hook(lambda g: torch.zeros_like(g) if layer in dropped else g)
            return value

        return hook_function

    return [
        (hook_name(component, layer), guard(layer))
        for layer in range(n_layers)
        for component in ("attn_out", "mlp_out")
    ]


def _to_first_order(
    model: Any, run: RecordedRun, edit: ActivationEdit, places: Tensor, seen: Sequence[Tensor]
) -> Callable[[Gradients], Float[Tensor, "prompt layer unit place"]]:
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
    changes = [
        edited_change(edit, value.detach(), layer, rows, run.start)
        for layer, value in enumerate(seen)
    ]
    masks = places[..., run.start :].to(changes[0].dtype)

    def effects(gradients: Gradients) -> Tensor:
        columns = [
            (change * as_units(gradient, edit.component)).sum(dim=-1)
            for change, gradient in zip(changes, gradients, strict=True)
        ]
        return torch.einsum("lptu,spt->plus", torch.stack(columns), masks)

    return effects


def _through_pattern(
    model: Any, run: RecordedRun, edit: ActivationEdit, places: Tensor, seen: Sequence[Tensor]
) -> Callable[[Gradients], Float[Tensor, "prompt layer unit place"]]:
    """Exact new patterns for edited queries or keys, times the gradient of the pattern."""
    changes = [
        _pattern_changes(model, run, edit, places, layer, pattern.detach())
        for layer, pattern in enumerate(seen)
    ]
    n_units = count_units(model, edit.component)

    def effects(gradients: Gradients) -> Tensor:
        layers = []
        for change, gradient in zip(changes, gradients, strict=True):
            of_heads = torch.einsum("sphqk,phqk->phs", change, gradient)
            # The query heads of a group share their key: its effect is the sum of theirs.
            layers.append(of_heads.unflatten(1, (n_units, -1)).sum(dim=2))
        return torch.stack(layers, dim=1)

    return effects


def _pattern_changes(
    model: Any, run: RecordedRun, edit: ActivationEdit, places: Tensor, layer: int, pattern: Tensor
) -> Float[Tensor, "place prompt head q k"]:
    """p' − p with the scores moved by δ: p' ∝ p · exp(δ), whatever masks and biases there are."""
    query, keys, scale = attention_inputs(model, run, layer, ())
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
    everyone = torch.ones(
        len(rows), count_units(model, edit.component), dtype=torch.bool, device=rows.device
    )
    hook = edit.hook(layer, rows, everyone, run.start)
    new_query, new_keys, _ = attention_inputs(model, run, layer, (hook,))
    moved = scale * (grouped_scores(new_query, new_keys) - grouped_scores(query, keys))
    tail = query.shape[2]
    found = []
    for at in places:
        if edit.component == "q":
            mask = at[:, None, -tail:, None]
        else:
            mask = at[:, None, None, :]
        logarithm = pattern.clamp(min=torch.finfo(pattern.dtype).tiny).log() + moved * mask
        found.append(logarithm.softmax(dim=-1) - pattern)
    return torch.stack(found)


def attention_inputs(
    model: Any, run: RecordedRun, layer: int, hooks: Sequence[Hook]
) -> tuple[Tensor, Tensor, float]:
    """Queries [row head q d_head], keys of all columns [row kv_head k d_head], and the scale.

    As the scores see them, after rotation; from the one layer alone.
    """
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
    if run.plain is not None and run.plain.supports(hooks):
        seen: dict[int, tuple[Tensor, Tensor, float]] = {}
        run.plain.resume(
            run.batch, run.beginning, rows, start=run.start, layer=layer,
            residual=run.resid_pre[layer], hooks=hooks, stop=layer + 1, seen=seen,
        )  # fmt: skip
        return seen[layer]
    found: dict[str, Tensor] = {}

    def keep(name: str) -> HookFunction:
        def hook_function(value: Tensor, hook: object) -> None:
            found[name] = value.transpose(1, 2)

        return hook_function

    names = {}
    for letter in "qk":
        rotated = f"blocks.{layer}.attn.hook_rot_{letter}"
        has_rotary = "rotary" in str(getattr(model.cfg, "positional_embedding_type", ""))
        used = rotated if has_rotary and rotated in model.hook_dict else None
        names[letter] = used or hook_name(letter, layer)
    resume(
        model, run, layer=layer, rows=rows, stop=layer + 1,
        hooks=[*hooks, *((name, keep(letter)) for letter, name in names.items())],
    )  # fmt: skip
    if set(found) != {"q", "k"}:
        raise UserError("this model does not show its rotated queries and keys: use attribution")
    keys = found["k"]
    if run.start:
        keys = torch.cat([run.beginning[layer][0], keys], dim=2)
    return found["q"], keys, found["q"].shape[-1] ** -0.5
