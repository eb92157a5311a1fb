"""AtP*: attribution patching with its authors' two repairs (Kramár et al. 2024, arXiv 2403.00745).

* **QK fix**: the softmax of a saturated head is flat, so that a first-order step through it sees
  nothing. For queries and keys the new attention pattern is computed exactly, and only the step
  from the pattern to the metric is to first order.
* **GradDrop**: where a unit's direct and indirect effects cancel, their sum says nothing. The
  gradient is taken once for every layer with that layer's attention and MLP outputs dropped on the
  way back, and the absolute values are averaged over the layers but the unit's own (over all of
  them for the residual stream, which belongs to none).

Values are therefore **not negative**: a size, not a direction.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import TokenBatch, in_batches
from interp.forward.hook_points import as_units, count_units, hook_name
from interp.forward.memory import Budget, decide_budget
from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, HookFunction, RecordedRun, record_run, resume
from interp.forward.sizes import sizes_of
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require
from interp.models.modes import with_gradients
from interp.patching.attribution import (
    Handed,
    check_unchanged,
    edited_change,
    gradient_pass,
    keep_in_graph,
)
from interp.patching.chunks import chunk_prompts, first_column, graph_demand, learning, take_chunk
from interp.patching.edits import ActivationEdit, scores_hook_name
from interp.patching.metrics import Metric, can_take, differentiable_sum
from interp.precision import precision_of, result_dtype, widened
from interp.progress import progress_bar

Gradients = Sequence[Tensor]


def atp_star_columns(
    model: HookedModel,
    batch: TokenBatch,
    edit: ActivationEdit,
    places: Bool[Tensor, "place prompt pos"],
    metric: Metric,
    *,
    grad_drop: bool = True,
    qk_fix: bool = True,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt layer unit place"]:
    """AtP* of every unit at every place; NaN where a place is empty.

    Args:
        grad_drop, qk_fix: each repair can be left out; without GradDrop values have a sign.
    """
    if grad_drop:
        require(model, "residual")
    n_layers, n_units = model.cfg.n_layers, count_units(model, edit.component)
    shape = (len(batch), n_layers, n_units, len(places))
    values = torch.full(shape, torch.nan, dtype=result_dtype(model))
    decided = decide_budget(budget, batch.tokens.device)
    held = _held_places(model, edit, len(places), qk_fix, decided)
    watched = "pattern" if held else edit.component
    demand = graph_demand(model, watched, places=held)
    chunks = chunk_prompts(edit.changed, demand, [metric], decided)

    # The graph of all layers is kept while every layer is dropped in turn.
    def run_chunk(prompts: list[int]) -> None:
        chunk = take_chunk(batch, edit, [metric], prompts)
        own = chunk.edit
        assert isinstance(own, ActivationEdit)
        own_places = places[:, chunk.prompts, chunk.drop :]
        with torch.no_grad():
            points = [scores_hook_name(0)]
            points += [hook_name(name, 0) for name in (own.component, "attn_out", "mlp_out")]
            run = record_run(
                model, chunk.batch, start=first_column(own.changed), keep=(), edits=points
            )
        there = own_places.any(dim=2).T.cpu()[:, None, None, :]

        def run_places(some: list[int]) -> None:
            found = _chunk(
                model, run, own, own_places[some], chunk.metrics[0], grad_drop, qk_fix, progress
            )
            at = torch.where(there[..., some], found, torch.nan)
            values[chunk.rows[:, None], :, :, torch.tensor(some)] = at.permute(0, 3, 1, 2)

        groups = in_batches(range(len(places)), held or len(places))
        for _ in halving(groups, run_places, what="one prompt at one place"):
            pass

    learn = learning(demand, decided, edit.changed)
    for _ in halving(chunks, run_chunk, divisible=can_take([metric]), learn=learn):
        pass
    return values


def _held_places(
    model: HookedModel, edit: ActivationEdit, n_places: int, qk_fix: bool, budget: Budget
) -> int:
    """How many places' patterns are held together; none where no pattern is computed anew."""
    if not (qk_fix and edit.component in ("q", "k")):
        return 0
    width = edit.changed.shape[1]
    tail = width - first_column(edit.changed)
    bare = graph_demand(model, "pattern").least(tail, width)
    fitting = (budget.whole - bare) // max(1, sizes_of(model).pattern_changes(tail, width))
    return min(n_places, max(1, fitting))


def _chunk(
    model: HookedModel,
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
    scores: list[Tensor] = [torch.empty(0)] * n_layers
    dropped: set[int] = set()
    handed: Handed = []
    hooks = [*keep_in_graph(seen, watched, handed)]
    if fixed:
        hooks += _keep_scores(scores)
    if grad_drop:
        hooks += _drop_hooks(n_layers, dropped)
    with with_gradients(model):
        value = differentiable_sum(metric, gradient_pass(model, run, hooks))
        check_unchanged(handed, edit.component)
    with torch.no_grad():
        if fixed:
            effects = _through_pattern(model, run, edit, places, seen, scores)
        else:
            effects = _to_first_order(model, run, edit, places, seen)
    turns: list[int | None] = list(range(n_layers)) if grad_drop else [None]
    total: Tensor | None = None
    for layer in progress_bar(turns, description="gradients", shown=progress):
        dropped.clear()
        if layer is not None:
            dropped.add(layer)
        gradients = torch.autograd.grad(value, seen, retain_graph=True, materialize_grads=True)
        found = effects(gradients)
        found = found.abs() if grad_drop else found
        total = found if total is None else total + found
    assert total is not None
    if grad_drop:
        of_no_layer = edit.component.startswith("resid")
        total = total / max(1, n_layers if of_no_layer else n_layers - 1)
    return total.to("cpu", result_dtype(model))


def _keep_scores(into: list[Tensor]) -> list[Hook]:
    """Hooks that put every layer's scores, masked and before the softmax, into ``into``."""

    def keep(layer: int) -> HookFunction:
        def hook_function(value: Tensor, hook: object) -> None:
            into[layer] = value.detach()

        return hook_function

    return [(scores_hook_name(layer), keep(layer)) for layer in range(len(into))]


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
    model: HookedModel,
    run: RecordedRun,
    edit: ActivationEdit,
    places: Tensor,
    seen: Sequence[Tensor],
) -> Callable[[Gradients], Float[Tensor, "prompt layer unit place"]]:
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
    changes = [
        edited_change(edit, value.detach(), layer, rows, run.start)
        for layer, value in enumerate(seen)
    ]
    masks = places[..., run.start :].to(changes[0].dtype)

    def effects(gradients: Gradients) -> Tensor:
        columns = [
            (change * widened(as_units(gradient, edit.component))).sum(dim=-1)
            for change, gradient in zip(changes, gradients, strict=True)
        ]
        return torch.einsum("lptu,spt->plus", torch.stack(columns), masks)

    return effects


def _through_pattern(
    model: HookedModel,
    run: RecordedRun,
    edit: ActivationEdit,
    places: Tensor,
    seen: Sequence[Tensor],
    scores: Sequence[Tensor],
) -> Callable[[Gradients], Float[Tensor, "prompt layer unit place"]]:
    """Exact new patterns for edited queries or keys, times the gradient of the pattern."""
    changes = [
        _pattern_changes(model, run, edit, places, layer, pattern.detach(), scores[layer])
        for layer, pattern in enumerate(seen)
    ]
    n_units = count_units(model, edit.component)

    def effects(gradients: Gradients) -> Tensor:
        layers = []
        for change, gradient in zip(changes, gradients, strict=True):
            of_heads = torch.einsum("sphqk,phqk->phs", change, widened(gradient))
            # The query heads of a group share their key: its effect is the sum of theirs.
            layers.append(of_heads.unflatten(1, (n_units, -1)).sum(dim=2))
        return torch.stack(layers, dim=1)

    return effects


def _pattern_changes(
    model: HookedModel,
    run: RecordedRun,
    edit: ActivationEdit,
    places: Tensor,
    layer: int,
    pattern: Tensor,
    scores: Tensor,
) -> Float[Tensor, "place prompt head q k"]:
    """The exact new pattern less the old one, from one run of the layer with all columns edited.

    A query's scores change with that query alone, and a key's with that key alone: a place takes
    its rows or columns of the new scores. From scores, not from p · exp(δ): the weights of a
    saturated head are lost in rounding.
    """
    edited = _edited_scores(model, run, edit, layer)
    _check_pattern(run, scores, pattern)
    if layer == 0:
        _check_units_apart(model, run, edit, edited)
    found = []
    for at in places:
        if edit.component == "q":
            where = at[:, None, run.start :, None]
        else:
            where = at[:, None, None, -scores.shape[3] :]
        new = widened(torch.where(where, edited, scores)).softmax(dim=-1)
        found.append(new - widened(pattern))
    return torch.stack(found)


def _edited_scores(
    model: HookedModel, run: RecordedRun, edit: ActivationEdit, layer: int, units: int | None = None
) -> Float[Tensor, "prompt head q k"]:
    """The scores of a layer in which the first ``units`` are edited in all columns, or all are."""
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
    n_units = count_units(model, edit.component)
    acting = torch.zeros(len(rows), n_units, dtype=torch.bool, device=rows.device)
    acting[:, :units] = True
    edited: list[Tensor] = [torch.empty(0)] * (layer + 1)
    hooks = [edit.hook(layer, rows, acting, run.start), _keep_scores(edited)[layer]]
    resume(model, run, layer=layer, rows=rows, hooks=hooks, stop=layer + 1)
    return edited[layer]


def _check_units_apart(
    model: HookedModel,
    run: RecordedRun,
    edit: ActivationEdit,
    together: Float[Tensor, "prompt head q k"],
) -> None:
    """Raise where a unit's scores hang on the others (OLMo 2 norms all its heads' keys at once)."""
    alone = _edited_scores(model, run, edit, 0, units=1)
    n_heads = alone.shape[1] // count_units(model, edit.component)
    seen = together[:, :n_heads] > torch.finfo(together.dtype).min / 2
    difference = (widened(alone[:, :n_heads]) - widened(together[:, :n_heads])).abs()
    scale = float(together[:, :n_heads][seen].abs().max()) + 1.0
    if float(difference[seen].max()) > precision_of(alone.dtype).agreement * scale:
        raise UserError(
            f"this model norms {edit.component!r} of all its heads together, so that AtP* cannot "
            "tell one from another: use method 'exact' or 'attribution' for it"
        )


def _check_pattern(run: RecordedRun, scores: Tensor, pattern: Tensor) -> None:
    """Raise where the pattern is more than its scores' softmax (attention sinks, say)."""
    real = run.batch.mask[:, None, run.start :, None]
    difference = (widened(scores).softmax(dim=-1) - widened(pattern)).abs()
    if float(difference.masked_fill(~real, 0.0).max()) > 1e-2:
        raise UserError(
            "this model's attention pattern is not the softmax of its scores: use method "
            "'attribution' for its queries and keys"
        )
