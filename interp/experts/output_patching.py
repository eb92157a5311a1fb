"""Patching what one expert adds from another prompt's run.

Pairs of prompts of equal lengths, as in ``interp.patching.patch_heads``: the corrupted prompt runs
with one expert's values taken from the clean run, at all positions, and the metric is read at the
last one. ``output`` takes the expert's output alone, with the corrupted run's own gates, so that an
expert that is not chosen there has no effect; ``contribution`` takes output and gate.

Effect = metric(patched) − metric(corrupted run): positive means that the expert carries the clean
answer.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.interventions.projections import GATE, Projection, find_projection, projections_of
from interp.models.precision import dtype_of, precision_of, result_dtype
from interp.patching.batch import TokenBatch, first_difference
from interp.patching.forward import Hook, RecordedRun, record_run, resume
from interp.patching.metrics import (
    Metric,
    apply_metric,
    can_take,
    check_metrics,
    metric_name,
    take_metrics,
)
from interp.patching.out_of_memory import halving
from interp.patching.result import PatchingResult
from interp.progress import progress_bar

Patched = Literal["output", "contribution"]
OUTPUT = ".moelora.hook_expert_out"
CHUNK_TOKENS = 2048
"""Tokens of one batch: all experts' outputs of a projection are kept for it."""


@torch.no_grad()
def patch_experts(
    model: Any,
    clean: TokenBatch,
    corrupted: TokenBatch,
    metric: Metric,
    *,
    what: Patched = "output",
    projections: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    templates: Sequence[str] = (),
    seed: int = 0,
    progress: bool = True,
) -> PatchingResult:
    """The effect of patching each expert of each projection alone.

    Args:
        model: from ``interp.moelora.hooked``.
        clean, corrupted: prompts of equal lengths, pair by pair.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        what: see the module's text.
        projections: only these, by name; by default all.
        groups, templates, seed: as in ``interp.patching.patch``.

    Returns:
        effects [prompt projection expert].

    Raises:
        UserError: an unknown name, a model without experts, prompts of different lengths.
    """
    if what not in get_args(Patched):
        raise UserError(f"unknown way {what!r} to patch; known: {', '.join(get_args(Patched))}")
    first_difference(clean, corrupted)
    check_metrics([metric], len(clean))
    known = projections_of(model)
    chosen = known if projections is None else tuple(
        find_projection(known, name) for name in projections
    )  # fmt: skip
    if any(one.layer is None for one in chosen):
        raise UserError("only experts in the model's layers can be patched")
    n_experts = max(one.n_experts for one in chosen)
    dtype = result_dtype(model)
    values = torch.full((len(clean), len(chosen), n_experts), torch.nan, dtype=dtype)
    bare, there = torch.empty(2, len(clean), dtype=dtype)
    points = [one.name + point for one in chosen for point in (OUTPUT, GATE)]
    # A metric that cannot be narrowed sees all prompts at once.
    size = max(1, CHUNK_TOKENS // clean.width) if can_take([metric]) else len(clean)
    chunks = [list(range(len(clean)))[begin : begin + size] for begin in range(0, len(clean), size)]
    total = len(clean) * sum(one.n_experts for one in chosen)
    with progress_bar(total=total, description=f"expert {what}", shown=progress) as bar:

        def run_chunk(chunk: list[int]) -> None:
            prompts = torch.tensor(chunk, device=clean.tokens.device)
            (own,) = take_metrics([metric], prompts)
            runs = [
                record_run(model, one.take(chunk), keep=(), edits=points)
                for one in (clean, corrupted)
            ]
            for into, run in zip((there, bare), runs, strict=True):
                into[chunk] = apply_metric(own, run.logits).to(values)
            for place, one in enumerate(chosen):
                source = _values_in(model, runs[0], one, what)
                for expert in range(one.n_experts):
                    hooks = [(name, _write(new, expert)) for name, new in source.items()]
                    found = apply_metric(own, _resumed(model, runs[1], one, hooks))
                    values[chunk, place, expert] = found.to(values) - bare[chunk]
                    bar.update(len(chunk))

        for _ in halving(chunks, run_chunk, divisible=can_take([metric]), bar=bar):
            pass
    return PatchingResult(
        values=values, axes=("prompt", "projection", "expert"), corrupted=bare, clean=there,
        component=f"expert {what}", method="exact", metric=metric_name(metric), source="run",
        labels={"projection": tuple(one.name for one in chosen)}, groups=tuple(groups),
        templates=tuple(templates), seed=seed,
        resolution=precision_of(dtype_of(model)).resolution,
    )  # fmt: skip


def _resumed(
    model: Any,
    run: RecordedRun,
    projection: Projection,
    hooks: Sequence[Hook],
    *,
    only: bool = False,
) -> Float[Tensor, "prompt d_vocab"]:
    """The run again from the projection's layer on; that layer only, if nothing else is wanted."""
    assert projection.layer is not None
    rows = torch.arange(len(run.batch), device=run.batch.tokens.device)
    stop = projection.layer + 1 if only else None
    return resume(model, run, layer=projection.layer, rows=rows, hooks=hooks, stop=stop)


def _values_in(
    model: Any, run: RecordedRun, projection: Projection, what: Patched
) -> dict[str, Tensor]:
    """By hook point, what the experts of a projection have there in a run."""
    points = [OUTPUT] if what == "output" else [OUTPUT, GATE]
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor, Any], None]:
        def read(value: Tensor, hook: Any) -> None:
            found[name] = value

        return read

    names = [projection.name + point for point in points]
    _resumed(model, run, projection, [(name, keep(name)) for name in names], only=True)
    return found


def _write(source: Tensor, expert: int) -> Callable[[Tensor, Any], Tensor]:
    def write(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, :, expert] = source[:, :, expert]
        return value

    return write
