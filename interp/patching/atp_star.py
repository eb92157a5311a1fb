"""AtP*: attribution patching with its authors' two repairs (Kramár et al. 2024, arXiv 2403.00745).

* **QK fix**: the softmax of a saturated head is flat, so a first-order step through it sees
  nothing. For queries and keys the new attention pattern is computed exactly, and only the step
  from the pattern to the metric is to first order.
* **GradDrop**: a unit's direct and indirect effects can cancel, and their sum is then near zero.
  The gradient is taken once for every layer with that layer's attention and MLP outputs dropped in
  the backward pass, and the absolute values are averaged over the layers but the unit's own (over
  all of them for the residual stream, which belongs to no layer).

Values are therefore **not negative**: a size, not a direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import TokenBatch, in_batches
from interp.forward.hook_points import as_units, count_units, hook_name
from interp.forward.memory import Budget, decide_budget
from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, RecordedRun, resume
from interp.forward.sizes import sizes_of
from interp.forward.transfer import upload
from interp.models.call import with_gradients
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require
from interp.patching.attribution import edited_change, gradient_pass
from interp.patching.checks import checked_together
from interp.patching.chunks import first_position, graph_demand, run_chunks, take_chunk
from interp.patching.edits import ActivationEdit, rows_of_units, scores_hook_name
from interp.patching.metrics import Metric, differentiable_sum
from interp.precision import precision_of, result_dtype, widened
from interp.progress import progress_bar

EffectsOf = Callable[[Sequence[Tensor]], Float[Tensor, "prompt layer unit position_set"]]
"""Effects from the gradient of each layer."""


def atp_star_effects(
    model: HookedModel,
    batch: TokenBatch,
    edit: ActivationEdit,
    *,
    position_sets: Bool[Tensor, "position_set prompt pos"],
    metric: Metric,
    grad_drop: bool = True,
    qk_fix: bool = True,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt layer unit position_set"]:
    """AtP* of every unit at every set of positions; NaN where a set is empty.

    Args:
        grad_drop, qk_fix: each repair can be left out; without GradDrop values have a sign.
    """
    if grad_drop:
        require(model, "residual")
    position_sets = position_sets.cpu()
    n_sets, n_units = len(position_sets), count_units(model, edit.component)
    shape = (len(batch), model.cfg.n_layers, n_units, n_sets)
    values = torch.full(shape, torch.nan, dtype=result_dtype(model))
    decided = decide_budget(budget, batch.tokens.device)
    fix = qk_fix and edit.component in ("q", "k")
    at_once = _patterns_at_once(model, edit, n_sets=n_sets, budget=decided) if fix else n_sets

    # The graph of all layers is kept while every layer is dropped in turn.
    def run_chunk(prompts: list[int]) -> None:
        chunk = take_chunk(batch, edit, [metric], prompts=prompts)
        assert isinstance(chunk.edit, ActivationEdit)
        sets = upload(position_sets[:, chunk.rows, chunk.drop :], batch.tokens.device)
        read = [hook_name(name, 0) for name in (edit.component, "attn_out", "mlp_out")]
        run = chunk.record(model, edits=[scores_hook_name(0), *read])
        nonempty = position_sets[:, chunk.rows].any(dim=2).T[:, None, None, :]
        method = _AtpStar(model, run, chunk.edit, chunk.metrics[0], grad_drop, fix, progress)

        def run_sets(some: list[int]) -> None:
            taken = sets[upload(torch.tensor(some), sets.device)]
            effects = checked_together(lambda: method.effects(taken)).cpu()
            found = torch.where(nonempty[..., some], effects, torch.nan)
            values[chunk.rows[:, None], :, :, torch.tensor(some)] = found.permute(0, 3, 1, 2)

        groups = in_batches(range(n_sets), at_once)
        for _ in halving(groups, run_sets, what="one prompt at one set of positions"):
            pass

    watched = "pattern" if fix else edit.component
    demand = graph_demand(model, watched, position_sets=at_once if fix else 0)
    for _ in run_chunks(run_chunk, edit.changed, demand, metrics=[metric], budget=decided):
        pass
    return values


def _patterns_at_once(
    model: HookedModel, edit: ActivationEdit, *, n_sets: int, budget: Budget
) -> int:
    """At how many sets of positions the new patterns fit into memory together."""
    width = edit.changed.shape[1]
    n_rerun = width - first_position(edit.changed)
    graph = graph_demand(model, "pattern")(n_rerun, width).least
    fitting = (budget.whole - graph) // max(1, sizes_of(model).pattern_changes(n_rerun, width))
    return min(n_sets, max(1, fitting))


@dataclass(frozen=True)
class _AtpStar:
    """AtP* of one recorded run."""

    model: HookedModel
    run: RecordedRun
    edit: ActivationEdit
    metric: Metric
    grad_drop: bool
    qk_fix: bool
    progress: bool

    def effects(
        self, position_sets: Bool[Tensor, "position_set prompt pos"]
    ) -> Float[Tensor, "prompt layer unit position_set"]:
        """One forward pass, and a backward pass for every layer dropped."""
        model, n_layers = self.model, self.model.cfg.n_layers
        scores: list[Tensor] = [torch.empty(0)] * n_layers
        dropped: set[int] = set()
        hooks = _keep_scores(scores) if self.qk_fix else []
        if self.grad_drop:
            hooks += _drop_hooks(n_layers, dropped)
        watched = "pattern" if self.qk_fix else self.edit.component
        with with_gradients(model):
            logits, seen = gradient_pass(model, self.run, watched, hooks=hooks)
            value = differentiable_sum(self.metric, logits)
        with torch.no_grad():
            if self.qk_fix:
                effects = self._through_pattern(position_sets, seen, scores)
            else:
                effects = self._to_first_order(position_sets, seen)
        turns: list[int | None] = list(range(n_layers)) if self.grad_drop else [None]
        total: Tensor | None = None
        for layer in progress_bar(turns, description="gradients", shown=self.progress):
            dropped.clear()
            if layer is not None:
                dropped.add(layer)
            gradients = torch.autograd.grad(value, seen, retain_graph=True, materialize_grads=True)
            found = effects(gradients)
            found = found.abs() if self.grad_drop else found
            total = found if total is None else total + found
        assert total is not None
        if self.grad_drop:
            in_no_layer = self.edit.component.startswith("resid")
            total = total / max(1, n_layers if in_no_layer else n_layers - 1)
        return total.to(result_dtype(model))

    def _to_first_order(self, position_sets: Tensor, seen: Sequence[Tensor]) -> EffectsOf:
        changes = [
            edited_change(self.edit, value.detach(), layer=layer, run=self.run)
            for layer, value in enumerate(seen)
        ]
        masks = position_sets[..., self.run.start :].to(changes[0].dtype)

        def effects(gradients: Sequence[Tensor]) -> Tensor:
            by_position = [
                (change * widened(as_units(gradient, self.edit.component))).sum(dim=-1).to(masks)
                for change, gradient in zip(changes, gradients, strict=True)
            ]
            return torch.einsum("lptu,spt->plus", torch.stack(by_position), masks)

        return effects

    def _through_pattern(
        self, position_sets: Tensor, seen: Sequence[Tensor], scores: Sequence[Tensor]
    ) -> EffectsOf:
        """Exact new patterns for edited queries or keys, times the gradient of the pattern."""
        self._check_softmax(seen, scores)
        changes = [
            self._pattern_changes(position_sets, layer, pattern=pattern.detach(), scores=before)
            for layer, (pattern, before) in enumerate(zip(seen, scores, strict=True))
        ]
        n_units = count_units(self.model, self.edit.component)

        def effects(gradients: Sequence[Tensor]) -> Tensor:
            layers = []
            for change, gradient in zip(changes, gradients, strict=True):
                by_head = torch.einsum("sphqk,phqk->phs", change, widened(gradient))
                # The query heads of a group share their key: its effect is the sum of theirs.
                by_unit = by_head.unflatten(1, (n_units, -1)).sum(dim=2)
                layers.append(by_unit.to(position_sets.device))  # layers may be on several devices
            return torch.stack(layers, dim=1)

        return effects

    def _pattern_changes(
        self, position_sets: Tensor, layer: int, *, pattern: Tensor, scores: Tensor
    ) -> Float[Tensor, "position_set prompt head q k"]:
        """The exact new pattern less the old one, from one run of the layer, edited everywhere.

        A query's scores change with that query alone, and a key's with that key alone: a set of
        positions takes its rows or columns of the new scores. The new pattern is computed from
        scores, not as p · exp(δ): rounding loses the small weights of a saturated head.
        """
        start = self.run.start
        edited = self._edited_scores(layer)
        if layer == 0:
            self._check_units_apart(edited)
        found = []
        for at in position_sets.to(scores.device):
            if self.edit.component == "q":
                where = at[:, None, start:, None]
            else:
                where = at[:, None, None, -scores.shape[3] :]
            new = widened(torch.where(where, edited, scores)).softmax(dim=-1)
            found.append(new - widened(pattern))
        return torch.stack(found)

    def _check_softmax(self, patterns: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        """Raise if a pattern is not the softmax of its scores; all layers are looked at at once."""
        real, differences = self.run.batch.mask[:, None, self.run.start :, None], []
        for pattern, before in zip(patterns, scores, strict=True):
            difference = (widened(before).softmax(dim=-1) - widened(pattern.detach())).abs()
            difference = difference.masked_fill(~real.to(difference.device), 0.0)
            differences.append(difference.max().to(real.device))
        if float(torch.stack(differences).max()) > 1e-2:  # attention sinks, say
            raise UserError(
                "this model's attention pattern is not the softmax of its scores: use method "
                "'attribution' for its queries and keys"
            )

    def _edited_scores(
        self, layer: int, *, n_edited: int | None = None
    ) -> Float[Tensor, "prompt head q k"]:
        """A layer's scores with its first ``n_edited`` units (by default all) edited everywhere."""
        model, run, rows = self.model, self.run, self.run.batch.every_row
        n_units = count_units(model, self.edit.component)
        some = [range(n_units)[:n_edited]]
        acting = rows_of_units(some, n_units, len(rows), device=rows.device)
        edited: list[Tensor] = [torch.empty(0)] * (layer + 1)
        edit_hook = self.edit.hook(layer, rows=rows, units=acting, start=run.start)
        hooks = [edit_hook, _keep_scores(edited)[layer]]
        resume(model, run, layer=layer, rows=rows, hooks=hooks, stop=layer + 1)
        return edited[layer]

    def _check_units_apart(self, together: Float[Tensor, "prompt head q k"]) -> None:
        """Raise if a unit's scores depend on other units (OLMo 2 norms all heads' keys at once)."""
        component = self.edit.component
        alone = self._edited_scores(0, n_edited=1)
        n_heads = alone.shape[1] // count_units(self.model, component)
        seen = together[:, :n_heads] > torch.finfo(together.dtype).min / 2
        difference = (widened(alone[:, :n_heads]) - widened(together[:, :n_heads])).abs()
        scale = float(together[:, :n_heads][seen].abs().max()) + 1.0
        if float(difference[seen].max()) > precision_of(alone.dtype).agreement * scale:
            raise UserError(
                f"this model norms {component!r} of all its heads together, so AtP* cannot tell "
                "one from another: use method 'exact' or 'attribution' for it"
            )


def _keep_scores(into: list[Tensor]) -> list[Hook]:
    """Hooks that put every layer's scores, masked and before the softmax, into ``into``."""

    def keep(value: Tensor, hook: object, *, layer: int) -> None:
        into[layer] = value.detach()

    return [(scores_hook_name(layer), partial(keep, layer=layer)) for layer in range(len(into))]


def _drop_hooks(n_layers: int, dropped: set[int]) -> list[Hook]:
    """Hooks under which gradients do not pass the outputs of the layers in ``dropped``."""

    def guard(value: Tensor, hook: object, *, layer: int) -> Tensor:
        if value.requires_grad:
            value.register_hook(lambda g: torch.zeros_like(g) if layer in dropped else g)
        return value

    return [
        (hook_name(component, layer), partial(guard, layer=layer))
        for layer in range(n_layers)
        for component in ("attn_out", "mlp_out")
    ]
