"""Attribution patching: every unit's effect to first order, from one backward pass.

Effect ≈ ∂metric/∂activation · (edited − unedited activation) (Nanda 2023; AtP, arXiv 2403.00745).
For an ``ActivationEdit`` the activation is its component's; for the ``attention`` site it is
``hook_pattern``, and the difference is that of the edited, *renormalised* row, so that a constant
added to the gradient of a row does not count.

Sign: an estimate of metric(edited) − metric(unedited), as the exact sweep gives it after the
unedited metric is taken off.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import listed
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.hook_points import as_units, check_component, count_units, hook_name
from interp.forward.memory import Budget, decide_budget
from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, HookFunction, RecordedRun, record_run, resume
from interp.forward.prompts import batch_for
from interp.models.hooked_model import HookedModel
from interp.models.modes import with_gradients
from interp.patching.chunks import chunk_prompts, first_column, graph_demand, learning, take_chunk
from interp.patching.edits import ActivationEdit, HeadEdit, check_edit
from interp.patching.metrics import Metric, can_take, differentiable_sum
from interp.precision import result_dtype, widened
from interp.progress import progress_bar

Handed = list[tuple[Tensor, int]]
"""Tensors that a model goes on with, and how often each had been written to before."""


def keep_in_graph(seen: list[Tensor], component: str, handed: Handed) -> list[Hook]:
    """Hooks that put every layer's value into ``seen``, as a tensor of the graph.

    What the model goes on with stands in ``handed``, for ``check_unchanged``.
    """

    def keep(layer: int) -> HookFunction:
        def hook_function(value: Tensor, hook: object) -> Tensor:
            # A hook point may show a reshaped view; handing it back puts that view in the graph.
            seen[layer] = value
            if component not in ("q", "k", "v"):
                return value
            own = value.clone()
            handed.append((own, own._version))
            return own

        return hook_function

    return [(hook_name(component, layer), keep(layer)) for layer in range(len(seen))]


def check_unchanged(handed: Handed, component: str) -> None:
    """Raise where a model wrote over what it was handed: its gradient is that of something else.

    OLMo clips queries, keys and values in place, for example.
    """
    if any(value._version != version for value, version in handed):
        raise UserError(
            f"this model changes {component!r} in place, so that its gradient is not to be had: "
            "use method 'exact' for it"
        )


def gradient_pass(
    model: HookedModel, run: RecordedRun, hooks: Sequence[Hook]
) -> Float[Tensor, "prompt d_vocab"]:
    """The last column's logits with a graph that begins at the first layer's input."""
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
    # Parameters are frozen: the first layer's input is what makes a graph at all.
    residual = run.resid_pre[0].detach().clone().requires_grad_()
    return resume(model, run, layer=0, rows=rows, hooks=hooks, residual=residual)


def edited_change(
    edit: HeadEdit, value: Tensor, layer: int, rows: Tensor, start: int
) -> Float[Tensor, "row tail unit width"]:
    """Edited less unedited value of every unit, by column; in float32 at least."""
    value = widened(value)
    shown = as_units(value, edit.component)
    if isinstance(edit, ActivationEdit):
        return edit.edited(shown, layer, rows, start) - shown
    return as_units(edit.edited(value, rows, start), edit.component) - shown


def _attribute_chunk(
    model: HookedModel, run: RecordedRun, edit: HeadEdit, metrics: Sequence[Metric]
) -> Float[Tensor, "metric prompt layer unit tail"]:
    """One forward pass over the tails of a chunk of prompts, and a backward pass a metric."""
    n_layers, n_units = model.cfg.n_layers, count_units(model, edit.component)
    seen: list[Tensor] = [torch.empty(0)] * n_layers
    handed: Handed = []
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
    with with_gradients(model):
        logits = gradient_pass(model, run, keep_in_graph(seen, edit.component, handed))
        check_unchanged(handed, edit.component)
        gradients = [
            torch.autograd.grad(
                differentiable_sum(metric, logits), seen, retain_graph=True, materialize_grads=True
            )
            for metric in metrics
        ]
    effects = torch.zeros(
        len(metrics),
        len(rows),
        n_layers,
        n_units,
        run.batch.width - run.start,
        dtype=result_dtype(model),
    )
    for layer, value in enumerate(seen):
        change = edited_change(edit, value.detach(), layer, rows, run.start)
        for index, of_metric in enumerate(gradients):
            product = change * widened(as_units(of_metric[layer], edit.component))
            effects[index, :, layer] = product.sum(dim=-1).transpose(1, 2).to(effects)
    return effects


def attribute_columns(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    metrics: Sequence[Metric],
    *,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer unit pos"]:
    """First-order effect of editing each unit alone, by column; zero where nothing is edited.

    Arguments as in ``sweep_heads``; the values are *differences* from the unedited run.
    """
    check_edit(edit)
    batch, metrics = batch_for(model, batch, "batch"), listed("metrics", metrics)
    check_component(edit.component, model)
    n_layers, n_units = model.cfg.n_layers, count_units(model, edit.component)
    values = torch.zeros(
        len(metrics), len(batch), n_layers, n_units, batch.width, dtype=result_dtype(model)
    )
    demand = graph_demand(model, edit.component)
    decided = decide_budget(budget, batch.tokens.device)
    chunks = chunk_prompts(edit.changed, demand, metrics, decided)

    def run_chunk(prompts: list[int]) -> None:
        chunk = take_chunk(batch, edit, metrics, prompts)
        with torch.no_grad():
            run = record_run(
                model,
                chunk.batch,
                start=first_column(chunk.edit.changed),
                keep=(),
                edits=(hook_name(edit.component, 0),),
            )
        found = _attribute_chunk(model, run, chunk.edit, chunk.metrics)
        values[:, chunk.rows, ..., chunk.drop + run.start :] = found

    learn, whole = learning(demand, decided, edit.changed), not can_take(metrics)
    with progress_bar(total=len(batch), description="gradients", shown=progress) as bar:
        for prompts, _ in halving(chunks, run_chunk, divisible=not whole, learn=learn):
            bar.update(len(prompts))
    return values


@checked
def attribute_heads(
    model: HookedModel,
    batch: TokenBatch,
    edit: HeadEdit,
    metrics: Sequence[Metric],
    *,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer unit"]:
    """First-order effect of editing each head (or unit of the edit's component) alone."""
    return attribute_columns(model, batch, edit, metrics, budget=budget, progress=progress).sum(
        dim=-1
    )
