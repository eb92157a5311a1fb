"""Patching what one expert adds from another prompt's run.

Pairs of prompts of equal lengths, as in ``interp.patching.patch_heads``: the corrupted prompt runs
with one expert's values taken from the clean run, at all positions, and the metric is read at the
last one. ``output`` takes the expert's output alone, with the corrupted run's own gates, so that an
expert that is not chosen there has no effect; ``contribution`` takes output and gate.

Effect = metric(patched) − metric(corrupted run): positive means that the expert carries the clean
answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import TokenBatch, first_difference, in_batches
from interp.forward.partial import HookFunction, RecordedRun, record_run, resume
from interp.models.hooked_model import HookedModel
from interp.moelora.projections import GATE, Projection, find_projection, projections_of
from interp.patching.metrics import Metric, can_take, check_metrics, metric_name
from interp.patching.result import PatchEffects
from interp.patching.variants import Variant, measure_runs, metrics_for, run_variants
from interp.precision import dtype_of, precision_of, result_dtype

Patched = Literal["output", "contribution"]
OUTPUT = ".moelora.hook_expert_out"
CHUNK_TOKENS = 2048
"""Tokens of one batch: all experts' outputs of a projection are kept for it."""


def patch_experts(
    model: HookedModel,
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
) -> PatchEffects:
    """The effect of patching each expert of each projection alone.

    Args:
        model: from ``interp.moelora.hooked``.
        clean, corrupted: prompts of equal lengths, pair by pair.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        what: ``output`` patches the expert's output; ``contribution``, output and gate.
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
    chosen = (
        known
        if projections is None
        else tuple(find_projection(known, name) for name in projections)
    )
    if any(one.layer is None for one in chosen):
        raise UserError("only experts in the model's layers can be patched")
    points = [one.name + point for one in chosen for point in (OUTPUT, GATE)]

    def runs(chunk: list[int]) -> Iterator[Tensor]:
        measure = metrics_for([metric], torch.tensor(chunk, device=clean.tokens.device))
        clean_run, run = (
            record_run(model, one.take(chunk), keep=(), edits=points) for one in (clean, corrupted)
        )
        yield measure(clean_run.logits)
        yield measure(run.logits)
        for one in chosen:
            source = _values_in(model, clean_run, one, what)
            variants = [_patched(one, source, expert) for expert in range(one.n_experts)]
            yield from map(measure, run_variants(model, run, variants))

    divisible = can_take([metric])
    # A metric that cannot be narrowed sees all prompts at once.
    size = CHUNK_TOKENS // clean.width if divisible else len(clean)
    counts = [one.n_experts for one in chosen]
    ((there, bare, *patched),) = measure_runs(
        runs,
        in_batches(range(len(clean)), size),
        shape=(1, len(clean), 2 + sum(counts)),
        dtype=result_dtype(model),
        divisible=divisible,
        progress=progress,
        description=f"expert {what}",
    ).transpose(1, 2)
    effects = torch.stack([one - bare for one in patched], dim=1)
    values = effects.new_full((len(clean), len(chosen), max(counts)), torch.nan)
    for place, of_projection in enumerate(effects.split(counts, dim=1)):
        values[:, place, : counts[place]] = of_projection
    return PatchEffects(
        values=values,
        axes=("prompt", "projection", "expert"),
        corrupted=bare,
        clean=there,
        component=f"expert {what}",
        method="exact",
        metric=metric_name(metric),
        source="run",
        labels={"projection": tuple(one.name for one in chosen)},
        groups=tuple(groups),
        templates=tuple(templates),
        seed=seed,
        resolution=precision_of(dtype_of(model)).resolution,
    )


def _values_in(
    model: HookedModel, run: RecordedRun, projection: Projection, what: Patched
) -> dict[str, Tensor]:
    """By hook point, what the experts of a projection have there in a run."""
    points = [OUTPUT] if what == "output" else [OUTPUT, GATE]
    found: dict[str, Tensor] = {}

    def keep(name: str) -> HookFunction:
        def read(value: Tensor, hook: Any) -> None:
            found[name] = value

        return read

    hooks = [(name, keep(name)) for name in (projection.name + point for point in points)]
    layer, rows = _layer_of(projection), torch.arange(len(run.batch), device=run.logits.device)
    resume(model, run, layer=layer, rows=rows, hooks=hooks, stop=layer + 1)
    return found


def _patched(projection: Projection, source: Mapping[str, Tensor], expert: int) -> Variant:
    """One expert of a projection as it is in ``source``, by hook point."""

    def write(new: Tensor) -> HookFunction:
        def hook_function(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, :, expert] = new[:, :, expert]
            return value

        return hook_function

    hooks = tuple((name, write(new)) for name, new in source.items())
    return Variant(_layer_of(projection), hooks)


def _layer_of(projection: Projection) -> int:
    """The layer of a projection that has one."""
    assert projection.layer is not None
    return projection.layer
