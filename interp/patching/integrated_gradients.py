"""Integrated gradients of a layer's activations (Sundararajan et al. 2017, arXiv 1703.01365).

All units of one layer walk together from their unedited to their edited values in ``steps`` equal
steps, and each unit's effect is its change times the mean gradient along the way (midpoint rule);
the layers above are recomputed at every step, as in EAP-IG-activations (Hanna et al. 2024, arXiv
2403.17806). Completeness: a layer's effects add up to what editing the whole layer does, as the
steps grow. One step is the gradient half-way; attribution patching takes it at the beginning.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.hook_points import as_units, count_units, from_units, hook_name
from interp.forward.memory import Budget, decide_budget
from interp.forward.out_of_memory import halving
from interp.forward.partial import HookFunction, RecordedRun, record_run, resume
from interp.models.hooked_model import HookedModel
from interp.models.modes import with_gradients
from interp.patching.chunks import chunk_prompts, first_column, graph_demand, learning, take_chunk
from interp.patching.edits import ActivationEdit
from interp.patching.metrics import Metric, can_take, differentiable_sum
from interp.precision import result_dtype, widened
from interp.progress import progress_bar


def integrate_columns(
    model: HookedModel,
    batch: TokenBatch,
    edit: ActivationEdit,
    metric: Metric,
    *,
    steps: int = 8,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt layer unit pos"]:
    """Integrated gradients of every unit, by column; zero where nothing is edited.

    Raises:
        UserError: fewer than one step.
    """
    if steps < 1:
        raise UserError(f"integrated gradients need at least one step, not {steps}")
    n_layers, n_units = model.cfg.n_layers, count_units(model, edit.component)
    dtype = result_dtype(model)
    values = torch.zeros(len(batch), n_layers, n_units, batch.width, dtype=dtype)
    demand = graph_demand(model, edit.component)
    decided = decide_budget(budget, batch.tokens.device)
    chunks = chunk_prompts(edit.changed, demand, [metric], decided)
    with progress_bar(total=len(batch) * n_layers, description="integral", shown=progress) as bar:

        def run_chunk(prompts: list[int]) -> None:
            chunk = take_chunk(batch, edit, [metric], prompts)
            assert isinstance(chunk.edit, ActivationEdit)
            with torch.no_grad():
                start = first_column(chunk.edit.changed)
                run = record_run(model, chunk.batch, start=start, keep=(), edits=edit.hook_points)
            for layer in range(n_layers):
                found = _integrate_layer(model, run, chunk.edit, layer, chunk.metrics[0], steps)
                values[chunk.rows, layer, :, chunk.drop + run.start :] = found
                bar.update(len(prompts))

        learn, whole = learning(demand, decided, edit.changed), not can_take([metric])
        for _ in halving(chunks, run_chunk, divisible=not whole, bar=bar, learn=learn):
            pass
    return values


def _integrate_layer(
    model: HookedModel,
    run: RecordedRun,
    edit: ActivationEdit,
    layer: int,
    metric: Metric,
    steps: int,
) -> Float[Tensor, "prompt unit tail"]:
    """One step at a time, so that memory does not grow with the steps."""
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
    total: Tensor | None = None
    for step in range(steps):
        leaf: list[Tensor] = []
        change: list[Tensor] = []
        walk = _walker(edit, layer, rows, run.start, (step + 0.5) / steps, leaf, change)
        with with_gradients(model):
            logits = resume(
                model, run, layer=layer, rows=rows, hooks=[(hook_name(edit.component, layer), walk)]
            )
            (gradient,) = torch.autograd.grad(differentiable_sum(metric, logits), leaf)
        product = (change[0] * widened(gradient)).sum(dim=-1).transpose(1, 2)
        total = product if total is None else total + product
    assert total is not None
    return (total / steps).cpu()


def _walker(
    edit: ActivationEdit,
    layer: int,
    rows: Tensor,
    start: int,
    share: float,
    leaf: list[Tensor],
    change: list[Tensor],
) -> HookFunction:
    """A hook that puts the layer a share of the way to its edited values, as a leaf."""

    def hook_function(value: Tensor, hook: object) -> Tensor:
        shown = widened(as_units(value, edit.component).detach())
        change.append(edit.edited(shown, layer, rows, start) - shown)
        leaf.append((shown + share * change[0]).to(value.dtype).requires_grad_())
        return from_units(leaf[0], edit.component)

    return hook_function
