"""Patching the output of one expert from another prompt's run.

Pairs of prompts of equal lengths, as in ``interp.patching.patch_heads``: the corrupted prompt runs
with one expert's values taken from the clean run, at all positions, and the metric is read at the
last one. ``output`` takes the expert's output alone, with the corrupted run's own gates, so that an
expert that is not chosen there has no effect; ``contribution`` takes output and gate.

Effect = metric(patched) − metric(corrupted run): positive means that the expert carries the clean
answer.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp.arguments import check_choice
from interp.errors import UserError
from interp.forward.batch import TokenBatch, first_difference, in_batches
from interp.forward.partial import record_run, resume
from interp.forward.prompts import pairs_for
from interp.forward.transfer import repeated_rows, upload
from interp.models.hooked_model import HookedModel
from interp.moelora.projections import AdaptedProjection, find_projection, projections_of
from interp.patching.metrics import Metric, can_take, check_metrics, metric_name
from interp.patching.result import PatchEffects
from interp.patching.variants import Variant, measure_runs, metrics_for, run_variants
from interp.precision import dtype_of, precision_of, result_dtype

Patched = Literal["output", "contribution"]
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
    check_choice("way to patch", what, get_args(Patched))
    clean, corrupted = pairs_for(model, clean, corrupted)
    first_difference(clean, corrupted)
    check_metrics([metric], len(clean))
    chosen = projections_of(model)
    if projections is not None:
        chosen = tuple(find_projection(chosen, name) for name in projections)
    if any(projection.layer is None for projection in chosen):
        raise UserError("only experts in the model's layers can be patched")
    runs = _patched_runs(model, (clean, corrupted), chosen, metric=metric, what=what)
    divisible = can_take([metric])
    # A metric that cannot be narrowed sees all prompts at once.
    size = CHUNK_TOKENS // clean.width if divisible else len(clean)
    counts = [projection.n_experts for projection in chosen]
    ((in_clean, in_corrupted, *patched),) = measure_runs(
        runs,
        in_batches(range(len(clean)), size),
        shape=(1, len(clean), 2 + sum(counts)),
        dtype=result_dtype(model),
        divisible=divisible,
        progress=progress,
        description=f"expert {what}",
    ).transpose(1, 2)
    effects = (torch.stack(patched) - in_corrupted).split(counts)
    padded = pad_sequence(list(effects), padding_value=torch.nan)
    return PatchEffects(
        values=rearrange(padded, "expert projection prompt -> prompt projection expert"),
        axes=("prompt", "projection", "expert"),
        corrupted=in_corrupted,
        clean=in_clean,
        component=f"expert {what}",
        method="exact",
        metric=metric_name(metric),
        source="run",
        labels={"projection": tuple(projection.name for projection in chosen)},
        groups=tuple(groups),
        templates=tuple(templates),
        seed=seed,
        resolution=precision_of(dtype_of(model)).resolution,
    )


def _patched_runs(
    model: HookedModel,
    batches: tuple[TokenBatch, TokenBatch],
    projections: Sequence[AdaptedProjection],
    *,
    metric: Metric,
    what: Patched,
) -> Callable[[list[int]], Iterator[Tensor]]:
    """The metric in the clean run, the corrupted run, and with each expert patched, in turn."""
    of_expert = ("expert_out",) if what == "output" else ("expert_out", "gate")
    points = [point for part in projections for point in (part.expert_out, part.gate)]

    def runs(chunk: list[int]) -> Iterator[Tensor]:
        rows = repeated_rows(len(chunk), 1, batches[0].tokens.device)
        measure = metrics_for([metric], upload(torch.tensor(chunk), rows.device))
        clean, corrupted = (
            record_run(model, batch.take(chunk), keep=(), edits=points) for batch in batches
        )
        yield measure(clean.logits)
        yield measure(corrupted.logits)
        for projection in projections:
            layer, source = projection.layer or 0, dict[str, Tensor]()
            hooks = [(getattr(projection, point), partial(_read, source)) for point in of_expert]
            resume(model, clean, layer=layer, rows=rows, hooks=hooks, stop=layer + 1)
            for expert in range(projection.n_experts):
                hooks = [(name, partial(_patch, new, expert)) for name, new in source.items()]
                yield from map(
                    measure, run_variants(model, corrupted, [Variant(layer, tuple(hooks))])
                )

    return runs


def _read(found: dict[str, Tensor], value: Tensor, hook: Any) -> None:
    found[hook.name] = value


def _patch(new: Tensor, expert: int, value: Tensor, hook: Any) -> Tensor:
    value = value.clone()
    value[:, :, expert] = new[:, :, expert]
    return value
