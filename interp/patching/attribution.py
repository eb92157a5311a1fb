"""Attribution patching: every unit's effect to first order, from one backward pass.

Effect ≈ ∂metric/∂activation · (edited − unedited activation) (Nanda 2023; AtP, arXiv 2403.00745).
For an ``ActivationEdit`` the activation is that of its component. For an ``AttentionEdit`` it is
``hook_pattern``, and the difference is that of the edited, *renormalised* row, so that a constant
added to the gradient of a row does not count.

Sign: an estimate of metric(edited) − metric(unedited).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import listed
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.hook_points import as_units, check_component, count_units, hook_name
from interp.forward.memory import Budget, decide_budget
from interp.forward.partial import Hook, RecordedRun, resume
from interp.forward.prompts import batch_for
from interp.forward.trial import keeping_unhooked
from interp.models.call import with_gradients
from interp.models.hooked_model import HookedModel
from interp.patching.checks import checked_together
from interp.patching.chunks import graph_demand, run_chunks, take_chunk
from interp.patching.edits import ActivationEdit, HeadEdit, check_edit
from interp.patching.metrics import Metric, differentiable_sum
from interp.precision import result_dtype, widened
from interp.progress import progress_bar


def gradient_pass(
    model: HookedModel, run: RecordedRun, component: str, *, hooks: Sequence[Hook] = ()
) -> tuple[Float[Tensor, "prompt d_vocab"], list[Tensor]]:
    """The last position's logits, and every layer's value of a component, in one graph.

    To be called within ``with_gradients``.

    Args:
        hooks: further (hook point, function) pairs, which run after those that read the component.

    Raises:
        UserError: the model changes the component in place (OLMo clips queries, keys and values),
            so that the gradient would be that of something else.
    """
    seen: list[Tensor] = [torch.empty(0)] * model.cfg.n_layers
    copies: list[tuple[Tensor, int]] = []

    def keep(value: Tensor, hook: object, *, layer: int) -> Tensor:
        # The hook point may show a reshaped view; returning it puts that view in the graph.
        seen[layer] = value
        if component not in ("q", "k", "v"):
            return value
        copy = value.clone()
        copies.append((copy, copy._version))
        return copy

    layers = range(len(seen))
    reading = [(hook_name(component, layer), partial(keep, layer=layer)) for layer in layers]
    # Parameters are frozen: the graph begins at the first layer's input.
    residual = run.resid_pre[0].detach().clone().requires_grad_()
    hooks, rows = [*reading, *hooks], run.batch.every_row
    logits = resume(model, run, layer=0, rows=rows, hooks=hooks, residual=residual)
    check_unchanged(component, copies)
    return logits, seen


def check_unchanged(component: str, copies: Sequence[tuple[Tensor, int]]) -> None:
    """Raise UserError if the model has changed some of these tensors since they had a version."""
    if any(copy._version != version for copy, version in copies):
        raise UserError(
            f"this model changes {component!r} in place, so its gradient cannot be taken: use "
            "method 'exact' for it"
        )


def edited_change(
    edit: HeadEdit, value: Tensor, *, layer: int, run: RecordedRun
) -> Float[Tensor, "prompt pos unit width"]:
    """Edited less unedited value of every unit at each position of a run, in float32 at least."""
    value, rows, start = widened(value), run.batch.every_row, run.start
    units = as_units(value, edit.component)
    if isinstance(edit, ActivationEdit):
        return edit.edited(units, layer, rows=rows, start=start) - units
    return as_units(edit.edited(value, rows=rows, start=start), edit.component) - units


def _attribute_chunk(
    model: HookedModel, run: RecordedRun, edit: HeadEdit, *, metrics: Sequence[Metric]
) -> Float[Tensor, "metric prompt layer unit pos"]:
    """One forward pass over a chunk of prompts, and one backward pass for each metric."""
    with with_gradients(model):
        logits, seen = gradient_pass(model, run, edit.component)
        gradients = [
            torch.autograd.grad(
                differentiable_sum(metric, logits), seen, retain_graph=True, materialize_grads=True
            )
            for metric in metrics
        ]
    effects, device = [], run.batch.tokens.device
    for layer, value in enumerate(seen):
        change = edited_change(edit, value.detach(), layer=layer, run=run)
        products = [
            (change * widened(as_units(of_layers[layer], edit.component))).sum(dim=-1)
            for of_layers in gradients
        ]
        effects.append(torch.stack(products).transpose(2, 3).to(device, result_dtype(model)))
    return torch.stack(effects, dim=2)


def attribute_positions(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    *,
    metrics: Sequence[Metric],
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer unit pos"]:
    """First-order effect of editing each unit alone, by position; zero where nothing is edited."""
    check_edit(edit)
    batch, metrics = batch_for(model, batch, "batch"), listed("metrics", metrics)
    check_component(edit.component, model)
    n_units = count_units(model, edit.component)
    shape = (len(metrics), len(batch), model.cfg.n_layers, n_units, batch.width)
    values = torch.zeros(shape, dtype=result_dtype(model))

    def run_chunk(prompts: list[int]) -> None:
        chunk = take_chunk(batch, edit, metrics, prompts=prompts)
        run = chunk.record(model, edits=(hook_name(edit.component, 0),))
        found = checked_together(
            lambda: _attribute_chunk(model, run, chunk.edit, metrics=chunk.metrics)
        ).cpu()
        values[:, chunk.rows, ..., chunk.drop + run.start :] = found
        bar.update(len(prompts))

    demand = graph_demand(model, edit.component)
    decided = decide_budget(budget, batch.tokens.device)
    with progress_bar(total=len(batch), description="gradients", shown=progress) as bar:
        for _ in run_chunks(
            run_chunk, edit.changed, demand, metrics=metrics, budget=decided, bar=bar
        ):
            pass
    return values


@checked
@keeping_unhooked()
def attribute_heads(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    *,
    metrics: Sequence[Metric],
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer unit"]:
    """First-order effect of editing each head (or unit of the edit's component) alone.

    Args:
        batch: the prompts.
        edit: what an edited unit does, and at which positions.
        metrics: each Float[prompt d_vocab] → Float[prompt].
        budget: bytes that the call may take; by default as ``interp.forward.memory``.
    """
    options: dict[str, Any] = {"budget": budget, "progress": progress}
    return attribute_positions(model, batch, edit, metrics=metrics, **options).sum(dim=-1)
