"""Integrated gradients of a layer's activations (Sundararajan et al. 2017, arXiv 1703.01365).

All units of one layer move together from their unedited to their edited values in ``steps`` equal
steps, and each unit's effect is its change times the mean gradient along the path (midpoint rule);
the layers above are recomputed at every step, as in EAP-IG-activations (Hanna et al. 2024, arXiv
2403.17806). Completeness: with many steps, a layer's effects sum to the effect of editing the
whole layer. One step takes the gradient half-way; attribution patching takes it at the beginning.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.hook_points import as_units, count_units, from_units, hook_name
from interp.forward.memory import Budget, decide_budget
from interp.forward.partial import RecordedRun, resume
from interp.models.call import with_gradients
from interp.models.hooked_model import HookedModel
from interp.patching.attribution import check_unchanged
from interp.patching.checks import checked_together
from interp.patching.chunks import graph_demand, run_chunks, take_chunk
from interp.patching.edits import ActivationEdit
from interp.patching.metrics import Metric, differentiable_sum
from interp.precision import result_dtype, widened
from interp.progress import progress_bar


def integrate_positions(
    model: HookedModel,
    batch: TokenBatch,
    edit: ActivationEdit,
    *,
    metric: Metric,
    steps: int = 8,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt layer unit pos"]:
    """Integrated gradients of every unit, by position; zero where nothing is edited.

    Raises:
        UserError: fewer than one step.
    """
    if steps < 1:
        raise UserError(f"integrated gradients need at least one step, not {steps}")
    n_layers, n_units = model.cfg.n_layers, count_units(model, edit.component)
    shape = (len(batch), n_layers, n_units, batch.width)
    values = torch.zeros(shape, dtype=result_dtype(model))

    def run_chunk(prompts: list[int]) -> None:
        chunk = take_chunk(batch, edit, [metric], prompts=prompts)
        assert isinstance(chunk.edit, ActivationEdit)
        of_chunk: ActivationEdit = chunk.edit
        run, begun = chunk.record(model, edits=edit.hook_points), bar.n
        device = run.batch.tokens.device

        def integrals() -> Float[Tensor, "prompt layer unit pos"]:
            bar.n, found = begun, []
            for layer in range(n_layers):
                walk = _Walk(of_chunk, run, layer)
                found.append(walk.integral(model, chunk.metrics[0], steps=steps).to(device))
                bar.update(len(prompts))
            return torch.stack(found, dim=1)

        found = checked_together(integrals).to("cpu", values.dtype)
        values[chunk.rows, :, :, chunk.drop + run.start :] = found

    demand = graph_demand(model, edit.component)
    decided = decide_budget(budget, batch.tokens.device)
    with progress_bar(total=len(batch) * n_layers, description="integral", shown=progress) as bar:
        for _ in run_chunks(
            run_chunk, edit.changed, demand, metrics=[metric], budget=decided, bar=bar
        ):
            pass
    return values


class _Walk:
    """A layer's path from its unedited to its edited values."""

    def __init__(self, edit: ActivationEdit, run: RecordedRun, layer: int) -> None:
        self.edit, self.run, self.layer = edit, run, layer
        self.fraction = 0.0
        """How much of the way the next forward pass goes."""
        self.leaf = self.change = torch.empty(0)
        self.copy: tuple[Tensor, int] | None = None
        """What the model was given in its place, which it may change, and its version."""

    def hook(self, value: Tensor, hook: object) -> Tensor:
        """Put the layer ``fraction`` of the way to its edited values, as a leaf of the graph."""
        units = widened(as_units(value, self.edit.component).detach())
        rows, start = self.run.batch.every_row, self.run.start
        self.change = self.edit.edited(units, self.layer, rows=rows, start=start) - units
        self.leaf = (units + self.fraction * self.change).to(value.dtype).requires_grad_()
        put = from_units(self.leaf, self.edit.component)
        if self.edit.component in ("q", "k", "v"):
            put = put.clone()
            self.copy = put, put._version
        return put

    def integral(
        self, model: HookedModel, metric: Metric, *, steps: int
    ) -> Float[Tensor, "prompt unit pos"]:
        """One step at a time, so that memory does not grow with the steps."""
        hooks = [(hook_name(self.edit.component, self.layer), self.hook)]
        rows, total = self.run.batch.every_row, None
        for step in range(steps):
            self.fraction = (step + 0.5) / steps
            with with_gradients(model):
                logits = resume(model, self.run, layer=self.layer, rows=rows, hooks=hooks)
                check_unchanged(self.edit.component, [] if self.copy is None else [self.copy])
                (gradient,) = torch.autograd.grad(differentiable_sum(metric, logits), [self.leaf])
            product = (self.change * widened(gradient)).sum(dim=-1).transpose(1, 2)
            total = (0.0 if total is None else total) + product
        assert total is not None
        return total / steps
