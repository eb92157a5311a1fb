"""Path patching: one head's output reaches chosen receivers only (Wang et al., arXiv 2211.00593).

A sender head's output comes from the clean run. What it writes reaches the receivers — the query,
key or value inputs of later heads, or the final logits — while every other head keeps its output
of the corrupted run; what the receivers then do is run on as usual.

``mlps="frozen"``: the write goes straight to the receivers along the residual stream, past MLPs
(the edge between two heads, or a head's *direct effect* on the logits). ``mlps="recomputed"``:
MLPs on the way answer to it, as in the paper.

Effect = metric(patched) − metric(corrupted run). FAITH's own variant, in which later positions are
recomputed as well, is ``sweep_heads(..., freeze=True)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import pairs_of_numbers, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Prompts, in_batches
from interp.forward.hook_points import as_units, check_component, from_units, hook_name
from interp.forward.memory import Budget, decide_budget
from interp.forward.out_of_memory import halving
from interp.forward.partial import (
    Hook,
    HookFunction,
    RecordedRun,
    record_run,
    resume,
    unedited_logits,
)
from interp.forward.prompts import names_of_prompts, pairs_for
from interp.forward.trial import sweep_resolution
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require
from interp.patching.alignment import align
from interp.patching.chunks import Demand, chunk_prompts, first_column, row_demand
from interp.patching.edits import ActivationEdit
from interp.patching.metrics import Metric, apply_metric, can_take, metric_name, take_metrics
from interp.patching.patch_source import patching_edit
from interp.patching.result import PatchEffects
from interp.patching.sweep import Unit, check_units, freeze_hooks
from interp.precision import result_dtype, widened
from interp.progress import progress_bar

Into = Literal["q", "k", "v"]
KNOWN_MLPS = ("frozen", "recomputed")
RECORDED = ("z", "attn_out", "resid_post")


@checked
def patch_paths(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    receivers: Sequence[Unit] | None = None,
    into: str = "q",
    senders: Sequence[Unit] | None = None,
    mlps: str = "frozen",
    groups: Sequence[str] = (),
    templates: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> PatchEffects:
    """Effect of every sender head through the paths to the receivers.

    Args:
        clean, corrupted: pairs of prompts of equal lengths.
        receivers: (layer, head), all reached at once, or None for the logits. With ``into`` k or v
            and grouped queries a receiver is (layer, key-value head).
        into: which input of the receivers: q, k or v.
        senders: only these (layer, head); the others are NaN, as are senders that are not below
            the last receiver.
        mlps: frozen or recomputed.

    Returns:
        effects with the axes prompt, layer, head (of the sender).
    """
    clean, corrupted = pairs_for(model, clean, corrupted)
    receivers = None if receivers is None else pairs_of_numbers("receivers", receivers)
    senders = None if senders is None else pairs_of_numbers("senders", senders)
    _check_paths(model, receivers, into, senders, mlps)
    groups = names_of_prompts("groups", groups, len(corrupted))
    templates = names_of_prompts("templates", templates, len(corrupted))
    seed = whole_number("seed", seed)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    top = n_layers if receivers is None else max(layer for layer, _ in receivers)
    every = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    chosen = every if senders is None else senders
    chosen = [unit for unit in chosen if unit[0] < top]
    dtype = result_dtype(model)
    values = torch.full((len(corrupted), n_layers, n_heads), torch.nan, dtype=dtype)
    bare, clean_metric = torch.empty(2, len(corrupted), dtype=dtype)
    decided = decide_budget(budget, corrupted.tokens.device)
    # One edit and the clean run that it comes from; the rows run on hooks.
    demand = row_demand(model, n_heads, *RECORDED, edits=["z", "z"])
    chunks = chunk_prompts(align(clean, corrupted, "all").at, demand, [metric], decided)
    with (
        torch.no_grad(),
        progress_bar(
            total=len(corrupted) * len(chosen), description="paths", shown=progress
        ) as bar,
    ):

        def run_chunk(chunk: list[int]) -> None:
            index = torch.as_tensor(chunk, device=corrupted.tokens.device)
            part, source = corrupted.take(chunk), clean.take(chunk)
            (own_metric,) = take_metrics([metric], index)
            edit = patching_edit(model, source, align(source, part, "all"), "z")
            start = first_column(edit.changed)
            run = record_run(model, part, start=start, keep=RECORDED, edits=[hook_name(into, 0)])
            rows = index.cpu()
            bare[rows] = apply_metric(own_metric, run.logits).to("cpu", dtype)
            last = unedited_logits(model, source)
            clean_metric[rows] = apply_metric(own_metric, last).to("cpu", dtype)
            paths = _Paths(model, run, edit, receivers, into, mlps == "recomputed", demand, decided)
            for layer in sorted({layer for layer, _ in chosen}):
                heads = [head for at, head in chosen if at == layer]
                values[rows[:, None], layer, heads] = paths.effects(layer, heads, own_metric)
                bar.update(len(chunk) * len(heads))

        for _ in halving(chunks, run_chunk, divisible=can_take([metric]), bar=bar):
            pass
    return PatchEffects(
        values=values,
        axes=("prompt", "layer", "head"),
        corrupted=bare,
        clean=clean_metric,
        component="z",
        method=f"path, MLPs {mlps}",
        metric=metric_name(metric),
        source="run",
        groups=tuple(groups),
        templates=tuple(templates),
        seed=seed,
        resolution=sweep_resolution(model),
        metadata={"receivers": "logits" if receivers is None else f"{into} of {list(receivers)}"},
    )


def _check_paths(
    model: HookedModel,
    receivers: Sequence[Unit] | None,
    into: str,
    senders: Sequence[Unit] | None,
    mlps: str,
) -> None:
    if mlps not in KNOWN_MLPS:
        raise UserError(f"unknown mlps {mlps!r}; known: {', '.join(KNOWN_MLPS)}")
    if into not in get_args(Into):
        raise UserError(f"unknown input {into!r} of a head; known: {', '.join(get_args(Into))}")
    check_component(into, model)
    require(model, "residual")
    check_units(model, receivers or [], into)
    check_units(model, senders or [])
    if receivers is not None and not receivers:
        raise UserError("there are no receivers: name heads, or leave `receivers` out for logits")
    if senders is not None and not senders:
        raise UserError("there are no senders: name heads, or leave `senders` out for all")


@dataclass(frozen=True)
class _Paths:
    """One chunk of prompts, and where the paths lead."""

    model: HookedModel
    run: RecordedRun
    edit: ActivationEdit
    receivers: Sequence[Unit] | None
    into: str
    recompute: bool
    demand: Demand
    budget: Budget

    def effects(
        self, layer: int, heads: Sequence[int], metric: Metric
    ) -> Float[Tensor, "prompt head"]:
        """For sender heads of one layer."""
        run, n_prompts = self.run, len(self.run.batch)
        width, device = run.batch.width, run.batch.tokens.device
        fitting = self.demand.rows_within(self.budget, n_prompts, width - run.start, width)
        bare = apply_metric(metric, run.logits)

        def run_heads(some: list[int]) -> list[Tensor]:
            rows = torch.arange(n_prompts, device=device).repeat(len(some))
            acting = torch.zeros(len(rows), self.model.cfg.n_heads, dtype=torch.bool, device=device)
            sender = torch.as_tensor(some, device=device).repeat_interleave(n_prompts)
            acting[torch.arange(len(rows), device=device), sender] = True
            z = self.edit.merged(run.z[layer, rows], layer, rows, acting, run.start)
            return [
                apply_metric(metric, of_head) - bare
                for of_head in self._logits(layer, rows, z).split(n_prompts)
            ]

        batches = in_batches(heads, fitting // n_prompts)

        def learn(n_heads: int) -> None:
            self.demand.learn(self.budget, n_heads * n_prompts, width - run.start, width)

        parts = [part for _, part in halving(batches, run_heads, what="one head", learn=learn)]
        found = [one for part in parts for one in part]
        return torch.stack(found, dim=1).to("cpu", result_dtype(self.model))

    @property
    def everywhere(self) -> Bool[Tensor, "prompt pos"]:
        """All columns."""
        return torch.ones_like(self.edit.at)

    def _logits(self, layer: int, rows: Tensor, z: Tensor) -> Float[Tensor, "row d_vocab"]:
        model, run, n_layers = self.model, self.run, self.model.cfg.n_layers
        if self.receivers is None:
            if self.recompute:
                hooks = freeze_hooks(run, self.everywhere, range(layer + 1, n_layers), rows)
                return resume(model, run, layer=layer, rows=rows, z=z, hooks=hooks)
            end = run.values["resid_post"][-1, rows].squeeze(2)
            residual = widened(end) + self._write(layer, rows, z)
            return resume(model, run, layer=n_layers, rows=rows, residual=residual)
        layers = sorted({at for at, _ in self.receivers if at > layer})
        arriving = self._arriving(layer, layers, rows, z)
        hooks = [
            self._receive(at, arriving[at], [head for where, head in self.receivers if where == at])
            for at in layers
        ]
        return resume(model, run, layer=layers[0], rows=rows, hooks=hooks)

    def _write(self, layer: int, rows: Tensor, z: Tensor) -> Float[Tensor, "row tail d_model"]:
        """What the sender's change adds to the residual stream, through any norm on the way."""
        read: dict[int, Tensor] = {}
        hooks = [_reader("attn_out", layer, read)]
        resume(self.model, self.run, layer=layer, rows=rows, z=z, hooks=hooks, stop=layer + 1)
        own = self.run.values["attn_out"][layer, rows].squeeze(2)
        return widened(read[layer]) - widened(own)

    def _arriving(
        self, layer: int, layers: Sequence[int], rows: Tensor, z: Tensor
    ) -> dict[int, Tensor]:
        """By receiver layer, its q, k or v as it is once the sender's write has arrived."""
        model, run = self.model, self.run
        read: dict[int, Tensor] = {}
        if self.recompute:
            hooks = freeze_hooks(run, self.everywhere, range(layer + 1, layers[-1] + 1), rows)
            hooks += [_reader(self.into, at, read) for at in layers]
            resume(model, run, layer=layer, rows=rows, z=z, hooks=hooks, stop=layers[-1] + 1)
            return read
        write = self._write(layer, rows, z)
        for at in layers:
            residual = widened(run.resid_pre[at, rows]) + write
            hooks = [_reader(self.into, at, read)]
            resume(model, run, layer=at, rows=rows, residual=residual, hooks=hooks, stop=at + 1)
        return read

    def _receive(self, layer: int, arriving: Tensor, units: Sequence[int]) -> Hook:
        def write(value: Tensor, hook: object) -> Tensor:
            shown = as_units(value, self.into).clone()
            shown[:, :, list(units)] = arriving[:, :, list(units)]
            return from_units(shown, self.into)

        return hook_name(self.into, layer), write


def _reader(component: str, layer: int, into: dict[int, Tensor]) -> Hook:
    def read(value: Tensor, hook: object) -> None:
        into[layer] = value.detach().clone()

    function: HookFunction = read
    return hook_name(component, layer), function
