"""Attribution patching: every head's effect to first order, from one backward pass.

Effect ≈ ∂metric/∂activation · (edited − unedited activation) (Nanda 2023; AtP, arXiv 2403.00745).
For the ``output`` site the activation is ``hook_z``; for the ``attention`` site it is
``hook_pattern``, and the difference is that of the edited, *renormalised* row, so that a constant
added to the gradient of a row does not count.

Sign: an estimate of metric(edited) − metric(unedited), as the exact sweep gives it after the
unedited metric is taken off.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.patching.batch import TokenBatch
from interp.patching.edits import (
    HeadEdit,
    OutputEdit,
    output_hook_name,
    pattern_hook_name,
    take_edit,
)
from interp.patching.forward import HookFunction, RecordedRun, record_run, resume
from interp.patching.metrics import Metric, apply_metric, can_take, take_metrics
from interp.patching.sweep import chunk_prompts, first_column

DEFAULT_GRADIENT_TOKENS = 1024


def _attribute_chunk(
    model: Any, run: RecordedRun, edit: HeadEdit, metrics: Sequence[Metric]
) -> Float[Tensor, "metric prompt layer head"]:
    """One forward pass over the tails of a chunk of prompts, and a backward pass a metric."""
    n_layers = model.cfg.n_layers
    seen: list[Tensor] = [torch.empty(0)] * n_layers
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)

    def keep(layer: int) -> HookFunction:
        def hook_function(value: Tensor, hook: object) -> Tensor:
            # A hook point may show a reshaped view; handing it back puts that view in the graph.
            seen[layer] = value
            return value

        return hook_function

    name = output_hook_name if isinstance(edit, OutputEdit) else pattern_hook_name
    hooks = [(name(layer), keep(layer)) for layer in range(n_layers)]
    with torch.enable_grad():
        # Parameters are frozen: the first layer's input is what makes a graph at all.
        residual = run.resid_pre[0].detach().clone().requires_grad_()
        logits = resume(model, run, layer=0, rows=rows, hooks=hooks, residual=residual)
        gradients = [
            torch.autograd.grad(apply_metric(metric, logits).sum(), seen, retain_graph=True)
            for metric in metrics
        ]
    effects = torch.zeros(len(metrics), len(rows), n_layers, model.cfg.n_heads)
    for layer, value in enumerate(seen):
        value = value.detach()
        if isinstance(edit, OutputEdit):
            change = edit.edited(value, layer, rows, run.start) - value
            over = (1, 3)
        else:
            change = edit.edited(value, rows, run.start) - value
            over = (2, 3)
        for index, of_metric in enumerate(gradients):
            effects[index, :, layer] = (change * of_metric[layer]).sum(dim=over).float().cpu()
    return effects


def attribute_heads(
    model: Any,
    batch: TokenBatch,
    edit: HeadEdit,
    metrics: Sequence[Metric],
    *,
    batch_tokens: int = DEFAULT_GRADIENT_TOKENS,
    progress: bool = True,
) -> Float[Tensor, "metric prompt layer head"]:
    """First-order effect of editing each head alone, for each metric.

    Arguments as in ``sweep_heads``; the values are *differences* from the unedited run.
    """
    whole = not can_take(metrics)
    values = torch.full(
        (len(metrics), len(batch), model.cfg.n_layers, model.cfg.n_heads), torch.nan
    )
    chunks = chunk_prompts(edit, 1, batch_tokens, whole=whole)
    for chunk in tqdm(chunks, desc="gradients", disable=not progress):
        prompts = torch.as_tensor(chunk, device=batch.tokens.device)
        part = batch.take(chunk)
        part_edit = take_edit(edit, prompts, drop=batch.width - part.width)
        with torch.no_grad():
            run = record_run(model, part, start=first_column(part_edit), keep_z=False)
        part_metrics = take_metrics(metrics, prompts)
        values[:, prompts.cpu()] = _attribute_chunk(model, run, part_edit, part_metrics)
    return values
