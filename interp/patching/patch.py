"""Activation patching of any component: one call, one result.

The corrupted prompts run with one unit's value replaced, at all positions, at each, or at named
spans, and the metric is read at the last position. Methods:

* ``exact``: one run a unit, as cheaply as it can be had (``sweep``).
* ``attribution``: first order, from one backward pass (AtP, arXiv 2403.00745).
* ``atp*``: AtP with its authors' two repairs (``atp_star``).
* ``ig``: integrated gradients (``integrated_gradients``).
* ``screen``: attribution ranks, exact patching verifies the first (``screen``).

Effect = metric(patched) − metric(corrupted run).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import pairs_of_numbers, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Prompts, TokenBatch, token_tensor
from interp.forward.chunks import Demand, chunk_prompts, graph_demand, row_demand
from interp.forward.hook_points import axis_of, check_component, count_units
from interp.forward.memory import Budget, decide_budget
from interp.forward.out_of_memory import halving
from interp.forward.partial import unedited_logits
from interp.forward.prompts import batch_for, names_of_prompts, pairs_for
from interp.forward.trial import sweep_resolution
from interp.models.versions import check_hooked
from interp.patching.alignment import Alignment, Positions, align
from interp.patching.atp_star import atp_star_columns
from interp.patching.attribution import attribute_columns
from interp.patching.edits import ActivationEdit
from interp.patching.integrated_gradients import integrate_columns
from interp.patching.metrics import (
    Metric,
    apply_metric,
    can_take,
    check_metrics,
    metric_name,
    take_metrics,
)
from interp.patching.origin import check_origin, derangement, mean_values, patching_edit
from interp.patching.result import PatchingResult
from interp.patching.sweep import Unit, check_units, sweep_heads, sweep_places
from interp.precision import result_dtype
from interp.progress import progress_bar

Method = Literal["exact", "attribution", "atp*", "ig", "screen"]
DEFAULT_STEPS = 8


def check_method(method: str) -> None:
    """Raise for an unknown method, and list the known."""
    if not isinstance(method, str) or method not in get_args(Method):
        raise UserError(f"unknown method {method!r}; known: {', '.join(get_args(Method))}")


@checked
def patch(
    model: Any,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    component: str = "z",
    method: str = "exact",
    positions: Positions | str = "all",
    source: str = "run",
    reference: Prompts | None = None,
    units: Sequence[Unit] | None = None,
    steps: int = DEFAULT_STEPS,
    top_k: int = 20,
    groups: Sequence[str] = (),
    templates: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> PatchingResult:
    """Effect of replacing each unit of a component alone; see the module's text.

    Args:
        clean, corrupted: pairs of prompts; of equal lengths, or aligned by spans. A TokenBatch,
            token ids [prompt pos], or lists of token ids.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        component: z, q, k, v, pattern, attn_out, mlp_out, resid_pre, resid_mid or resid_post.
            With grouped queries a unit of k or v is a key-value head, which serves a whole group.
        positions: "all", "each", or {name: (spans in clean, spans in corrupted)}, [start, end) in
            token positions of the unpadded prompts.
        source: run, zero, mean or resample; see ``interp.patching.origin``.
        reference: prompts that ``mean`` is taken over; by default the clean ones.
        units: only these (layer, unit), for the exact method; the others are NaN.
        steps: of the integral, for ``ig``.
        top_k: how many units ``screen`` verifies.
        groups, templates: of each prompt, for intervals and stability.
        seed: of ``resample`` and of the statistics.
        budget: bytes that the call may take; by default as ``interp.forward.memory``.

    Returns:
        effects with the axes prompt, layer, head (or kv_head, or none), position or span (if
        asked).

    Raises:
        UserError: unknown names, texts instead of tokens, unequal lengths without spans, a metric
            that is not one finite value per prompt, or has no gradient where one is needed, values
            that are not finite, a budget too small for one prompt.
    """
    check_method(method)
    clean, corrupted = pairs_for(model, clean, corrupted)
    check_component(component, model)
    check_origin(source, component)
    groups = names_of_prompts("groups", groups, len(corrupted))
    templates = names_of_prompts("templates", templates, len(corrupted))
    steps, seed = whole_number("steps", steps), whole_number("seed", seed)
    if reference is not None:
        reference = batch_for(model, reference, "reference")
    if method == "screen":
        from interp.patching.screen import screen

        return screen(
            model, clean, corrupted, metric, component=component, positions=positions,
            source=source, reference=reference, top_k=top_k, groups=groups, templates=templates,
            seed=seed, budget=budget, progress=progress,
        ).verified  # fmt: skip
    origin = clean
    if source == "resample":
        origin, positions = _resampled(clean, positions, seed)
    alignment = align(origin, corrupted, positions, everywhere=source in ("zero", "mean"))
    if component == "pattern" and positions not in ("all", "each") and source != "zero":
        raise UserError("a pattern's keys are positions: patch it at equal lengths, not at spans")
    if units is not None:
        if method != "exact":
            raise UserError(f"method {method!r} gives all units at once: leave `units` out")
        units = pairs_of_numbers("units", units)
        check_units(model, units, component)
    mean = mean_values(model, reference or clean, component) if source == "mean" else None
    run = _Patching(
        model, metric, component, method, steps, units, mean, source == "zero",
        decide_budget(budget, corrupted.tokens.device), progress,
    )  # fmt: skip
    values, bare, clean_metric = run.over(clean, origin, corrupted, alignment)
    return _result(
        run, values, bare, clean_metric, alignment, source=source, groups=groups,
        templates=templates, seed=seed,
    )  # fmt: skip


def _resampled(
    clean: TokenBatch, positions: Positions | str, seed: int
) -> tuple[TokenBatch, Positions | str]:
    """The clean prompts in another order, and their spans in the same."""
    order = derangement(len(clean), seed)
    if isinstance(positions, Mapping):
        positions = {
            name: ([there[index] for index in order], here)
            for name, (there, here) in positions.items()
        }
    return clean.take(order), positions


@dataclass(frozen=True)
class _Patching:
    """The arguments that stay the same for every chunk of prompts; ``units`` None for all."""

    model: Any
    metric: Metric
    component: str
    method: str
    steps: int
    units: Sequence[Unit] | None
    mean: Tensor | None
    zero: bool
    budget: Budget
    progress: bool

    def over(
        self, clean: TokenBatch, origin: TokenBatch, corrupted: TokenBatch, alignment: Alignment
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Effects [prompt layer unit place], metric of the corrupted and of the clean run."""
        model, n_places = self.model, len(alignment.places)
        n_layers, n_units = model.cfg.n_layers, count_units(model, self.component)
        dtype = result_dtype(model)
        values = torch.full((len(corrupted), n_layers, n_units, n_places), torch.nan, dtype=dtype)
        bare, clean_metric = torch.empty(2, len(corrupted), dtype=dtype)
        # Chunks of prompts hold the other run's values in memory only while they are needed.
        chunks = chunk_prompts(alignment.at, self._demand(n_units), [self.metric], self.budget)
        shown = self.progress and len(chunks) > 1

        def run_chunk(chunk: list[int]) -> None:
            prompts = torch.as_tensor(chunk, device=corrupted.tokens.device)
            part, source = corrupted.take(chunk), origin.take(chunk)
            own = _part_of(alignment, prompts, corrupted, part, origin, source)
            (metric,) = take_metrics([self.metric], prompts)
            with torch.no_grad():
                edit = patching_edit(
                    model, source, own, self.component, mean=self.mean, zero=self.zero
                )
                rows = prompts.cpu()
                bare[rows] = _metric_of(model, part, metric).to("cpu", dtype)
                clean_metric[rows] = _metric_of(model, clean.take(chunk), metric).to("cpu", dtype)
            values[rows] = self._values(part, edit, own, metric, not shown)

        with progress_bar(total=len(corrupted), description=self.method, shown=shown) as bar:
            for chunk, _ in halving(chunks, run_chunk, divisible=can_take([self.metric])):
                bar.update(len(chunk))
        if alignment.axis == "position":
            # Before the first difference a patch is no patch; NaN is left to padding.
            start = corrupted.width - n_places
            same = (corrupted.mask[:, start:] & ~alignment.places.any(dim=2).T).cpu()
            values = values.masked_fill(same[:, None, None, :], 0.0)
        return values, bare, clean_metric

    def _demand(self, n_units: int) -> Demand:
        """One chunk's."""
        if self.method != "exact":
            return graph_demand(self.model, self.component)
        kept = ("z",) if self.component == "z" else ()
        return row_demand(self.model, n_units, *kept, edits=[self.component])

    def _values(
        self,
        batch: TokenBatch,
        edit: ActivationEdit,
        alignment: Alignment,
        metric: Metric,
        last: bool,
    ) -> Float[Tensor, "prompt layer unit place"]:
        options = {"budget": self.budget, "progress": self.progress and last}
        model, places = self.model, alignment.places
        n_layers, n_units = model.cfg.n_layers, count_units(model, self.component)
        if self.method == "exact":
            units = self.units
            if units is None:
                units = [(layer, unit) for layer in range(n_layers) for unit in range(n_units)]
            shape = (len(batch), n_layers, n_units, len(places))
            values = torch.full(shape, torch.nan, dtype=result_dtype(model))
            # The empty set is the unedited run that the edited ones begin with.
            swept = sweep_places(
                model, batch, edit, places, [[], *([unit] for unit in units)], [metric],
                description=self.component, **options,
            )[0]  # fmt: skip
            for index, (layer, unit) in enumerate(units, start=1):
                values[:, layer, unit] = swept[:, index] - swept[:, 0]
            return values
        if self.method == "attribution":
            columns = attribute_columns(model, batch, edit, [metric], **options)[0]
        elif self.method == "ig":
            columns = integrate_columns(model, batch, edit, metric, steps=self.steps, **options)
        else:
            return atp_star_columns(model, batch, edit, places, metric, **options)
        return sum_over_places(columns, places)


def sum_over_places(
    columns: Float[Tensor, "prompt layer unit pos"], places: Tensor
) -> Float[Tensor, "prompt layer unit place"]:
    """First-order effects add up over positions; NaN where a place is empty."""
    masks = places.to(device=columns.device, dtype=columns.dtype)
    summed = torch.einsum("plut,spt->plus", columns, masks)
    empty = (~places.any(dim=2)).T.to(columns.device)[:, None, None, :]
    return summed.masked_fill(empty, torch.nan)


def _part_of(
    alignment: Alignment,
    prompts: Tensor,
    corrupted: TokenBatch,
    part: TokenBatch,
    origin: TokenBatch,
    source: TokenBatch,
) -> Alignment:
    """The alignment of some prompts, whose batches are cut to the width that they need."""
    drop = corrupted.width - part.width
    columns = alignment.columns[prompts, drop:]
    # Columns are counted from the end, where all prompts of a batch line up.
    columns = (columns - origin.width + source.width).clamp(min=0)
    return Alignment(alignment.places[:, prompts, drop:], columns, alignment.axis, alignment.labels)


@torch.no_grad()
def _metric_of(model: Any, batch: TokenBatch, metric: Metric) -> Float[Tensor, " prompt"]:
    return apply_metric(metric, unedited_logits(model, batch))


def _result(
    run: _Patching,
    values: Float[Tensor, "prompt layer unit place"],
    corrupted: Tensor,
    clean: Tensor,
    alignment: Alignment,
    *,
    source: str,
    groups: Sequence[str],
    templates: Sequence[str],
    seed: int,
) -> PatchingResult:
    axes, labels = ["prompt", "layer"], {}
    axis = axis_of(run.component)
    if axis is None:
        values = values.squeeze(2)
    else:
        axes.append(axis)
    if alignment.axis is None:
        values = values.squeeze(-1)
    else:
        axes.append(alignment.axis)
        labels[alignment.axis] = alignment.labels
    return PatchingResult(
        values=values, axes=tuple(axes), corrupted=corrupted, clean=clean,
        component=run.component, method=run.method, metric=metric_name(run.metric), source=source,
        labels=labels, groups=tuple(groups), templates=tuple(templates), seed=seed,
        resolution=sweep_resolution(run.model),
    )  # fmt: skip


@checked
@torch.no_grad()
def patch_heads(
    model: Any,
    clean: Int[Tensor, "prompt pos"],
    corrupted: Int[Tensor, "corrupted_prompt corrupted_pos"],
    metric: Callable[[Tensor], Tensor],
    *,
    component: str = "z",
    mask: Tensor | None = None,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt layer head"]:
    """Run ``corrupted`` with one head's value from ``clean`` at every position, for every head.

    The convention of TransformerLens' ``get_act_patch_attn_head_out_all_pos``, with the value of
    each prompt kept: the metric itself, not a difference.

    Args:
        clean, corrupted: token ids [prompt pos] of equal lengths, prompt by prompt.
        metric: last real position's logits Float[prompt d_vocab] → Float[prompt].
        component: z, q, k, v or pattern. For k and v the heads are key-value heads.
        mask: [prompt pos], True on real tokens, if prompts are padded (left or right).

    Returns:
        Float[prompt layer head]; a prompt pair without any difference gets the unpatched metric.
    """
    check_hooked(model)
    check_component(component, model)
    if axis_of(component) is None:
        raise UserError(f"{component!r} has no heads: use interp.patching.patch for it")
    clean, corrupted = token_tensor("clean", clean), token_tensor("corrupted", corrupted)
    if clean.shape != corrupted.shape:
        raise UserError(
            f"clean {tuple(clean.shape)} and corrupted {tuple(corrupted.shape)} differ in shape"
        )
    source = batch_for(model, TokenBatch.from_padded(clean, mask), "clean")
    batch = batch_for(model, TokenBatch.from_padded(corrupted, mask), "corrupted")
    check_metrics([metric], len(batch))
    edit = patching_edit(model, source, align(source, batch, "all"), component)
    return sweep_heads(model, batch, edit, [metric], budget=budget, progress=progress)[0]
