"""Path patching: one head's output reaches chosen receivers only (Wang et al., arXiv 2211.00593).

A sender head's output comes from the clean run. What it writes reaches the receivers — the query,
key or value inputs of later heads, or the final logits — while every other head keeps its output
of the corrupted run; everything after the receivers is recomputed.

``mlps="frozen"``: the write goes straight to the receivers along the residual stream, past MLPs
(the edge between two heads, or a head's *direct effect* on the logits). ``mlps="recomputed"``:
MLPs on the way respond to it, as in the paper.

Effect = metric(patched) − metric(corrupted run). FAITH's own variant, in which later positions are
recomputed as well, is ``sweep_heads(..., freeze=True)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import check_choice, pairs_of_numbers
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Prompts, in_batches
from interp.forward.hook_points import as_units, check_component, from_units, hook_name
from interp.forward.memory import Budget
from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, HookFunction, RecordedRun, record_run, resume
from interp.forward.transfer import repeated_rows
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require
from interp.patching.alignment import align
from interp.patching.checks import checked_together
from interp.patching.chunks import DemandAt, first_position, row_demand, run_chunks
from interp.patching.edits import ActivationEdit, rows_of_units
from interp.patching.metrics import Metric, apply_metric, take_metrics
from interp.patching.patch_inputs import PatchInputs
from interp.patching.patch_source import patching_edit
from interp.patching.result import PatchEffects
from interp.patching.sweep import Unit, check_units, freeze_hooks
from interp.precision import widened
from interp.progress import progress_bar

Into = Literal["q", "k", "v"]
KNOWN_MLPS = ("frozen", "recomputed")
RECORDED = ("z", "attn_out", "resid_post")


@checked
@keeping_unhooked()
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

    Raises:
        UserError: unknown names, heads that the model does not have, no receivers, prompts of
            unequal lengths, or a metric that is not one finite value per prompt.
    """
    shared: dict[str, Any] = {"groups": groups, "templates": templates, "seed": seed}
    shared |= {"budget": budget, "progress": progress}
    inputs = PatchInputs(model, clean, corrupted, metric, **shared)
    receivers = None if receivers is None else pairs_of_numbers("receivers", receivers)
    senders = None if senders is None else pairs_of_numbers("senders", senders)
    check_choice("mlps", mlps, KNOWN_MLPS)
    check_choice("into", into, get_args(Into))
    check_component(into, model)
    require(model, "residual")
    for what, units, component in (("receivers", receivers, into), ("senders", senders, "z")):
        check_units(model, units or [], component)
        if units is not None and not units:
            others = "the logits" if what == "receivers" else "all heads"
            raise UserError(f"there are no {what}: name heads, or leave `{what}` out for {others}")
    # One edit and the clean run that it comes from; the rows run on hooks.
    demand = row_demand(model, model.cfg.n_heads, *RECORDED, edits=["z", "z"])
    paths = _Paths(inputs, receivers, into, mlps == "recomputed", demand)
    values, runs = paths.effects(senders)
    return inputs.result(
        values,
        axes=("prompt", "layer", "head"),
        component="z",
        method=f"path, MLPs {mlps}",
        source="run",
        metadata={"receivers": "logits" if receivers is None else f"{into} of {list(receivers)}"},
        **runs,
    )


@dataclass(frozen=True)
class _Paths:
    """Where the paths lead, for all chunks of prompts."""

    inputs: PatchInputs
    receivers: Sequence[Unit] | None
    into: str
    recompute: bool
    demand: DemandAt

    def effects(
        self, senders: Sequence[Unit] | None
    ) -> tuple[Float[Tensor, "prompt layer head"], dict[str, Tensor]]:
        """Effects, and by name the metric of the corrupted and of the clean runs."""
        inputs, model = self.inputs, self.inputs.model
        clean, corrupted = inputs.clean, inputs.corrupted
        n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
        if senders is None:
            senders = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
        top = max((layer for layer, _ in self.receivers or ()), default=n_layers)
        senders = [unit for unit in senders if unit[0] < top]
        by_layer = {
            layer: [head for at, head in senders if at == layer]
            for layer in sorted({layer for layer, _ in senders})
        }
        values = inputs.empty(n_layers, n_heads)
        runs = {"corrupted": inputs.empty(), "clean": inputs.empty()}

        def run_chunk(chunk: list[int]) -> None:
            index = inputs.index(chunk)
            part, source, rows = corrupted.take(chunk), clean.take(chunk), torch.tensor(chunk)
            (metric,) = take_metrics([inputs.metric], index)
            edit = patching_edit(model, source, align(source, part, "all"), component="z")
            start, points = first_position(edit.changed), [hook_name(self.into, 0)]
            run = record_run(model, part, start=start, keep=RECORDED, edits=points)
            runs["corrupted"][rows] = inputs.unedited_metric(part, metric, logits=run.logits)
            runs["clean"][rows] = inputs.unedited_metric(source, metric)
            path, begun = _ChunkPaths(self, run, edit, metric), bar.n

            def found() -> Float[Tensor, "prompt sender"]:
                bar.n, effects = begun, []
                for layer, heads in by_layer.items():
                    effects.append(path.effects(layer, heads))
                    bar.update(len(chunk) * len(heads))
                return torch.cat(effects, dim=1)

            if by_layer:
                layers, heads = torch.tensor(
                    [(layer, head) for layer, heads in by_layer.items() for head in heads]
                ).T
                effects = checked_together(found).to("cpu", values.dtype)
                values[rows[:, None], layers, heads] = effects

        total = len(corrupted) * len(senders)
        options: dict[str, Any] = {"metrics": [inputs.metric], "budget": inputs.budget}
        changed = align(clean, corrupted, "all").at
        with (
            torch.no_grad(),
            progress_bar(total=total, description="paths", shown=inputs.progress) as bar,
        ):
            for _ in run_chunks(run_chunk, changed, self.demand, bar=bar, **options):
                pass
        return values, runs


@dataclass(frozen=True)
class _ChunkPaths:
    """The paths in one chunk of prompts."""

    paths: _Paths
    run: RecordedRun
    edit: ActivationEdit
    metric: Metric

    def effects(self, layer: int, heads: Sequence[int]) -> Float[Tensor, "prompt head"]:
        """For sender heads of one layer."""
        run, budget, n_prompts = self.run, self.paths.inputs.budget, len(self.run.batch)
        width, device = run.batch.width, run.batch.tokens.device
        demand = self.paths.demand(width - run.start, width)
        unpatched = apply_metric(self.metric, run.logits)

        def run_heads(some: list[int]) -> Tensor:
            rows, n_heads = repeated_rows(n_prompts, len(some), device), run.z.shape[3]
            acting = rows_of_units([[head] for head in some], n_heads, n_prompts, device=device)
            where: dict[str, Any] = {"rows": rows, "units": acting, "start": run.start}
            logits = self._logits(layer, rows, self.edit.merged(run.z[layer, rows], layer, **where))
            return torch.stack(
                [
                    apply_metric(self.metric, of_head) - unpatched
                    for of_head in logits.split(n_prompts)
                ],
                dim=1,
            )

        batches = in_batches(heads, demand.rows_within(budget, n_prompts) // n_prompts)
        parts = halving(
            batches,
            run_heads,
            what="one head",
            learn=lambda n_heads: demand.learn(budget, n_heads * n_prompts),
        )
        return torch.cat([part for _, part in parts], dim=1)

    def _frozen(self, layers: range, rows: Tensor) -> list[Hook]:
        """Hooks that hold all heads of some layers at their outputs, at every position."""
        return freeze_hooks(self.run, torch.ones_like(self.edit.at), layers=layers, rows=rows)

    def _logits(self, layer: int, rows: Tensor, z: Tensor) -> Float[Tensor, "row d_vocab"]:
        model, run, receivers = self.paths.inputs.model, self.run, self.paths.receivers
        n_layers = model.cfg.n_layers
        if receivers is None:
            if self.paths.recompute:
                hooks = self._frozen(range(layer + 1, n_layers), rows)
                return resume(model, run, layer=layer, rows=rows, z=z, hooks=hooks)
            end = run.values["resid_post"][-1, rows].squeeze(2)
            residual = widened(end) + self._write(layer, rows, z)
            return resume(model, run, layer=n_layers, rows=rows, residual=residual)
        layers = sorted({at for at, _ in receivers if at > layer})
        inputs = self._receiver_inputs(layer, rows, z=z, layers=layers)
        hooks = [
            self._receive(at, inputs[at], [head for where, head in receivers if where == at])
            for at in layers
        ]
        return resume(model, run, layer=layers[0], rows=rows, hooks=hooks)

    def _write(self, layer: int, rows: Tensor, z: Tensor) -> Float[Tensor, "row pos d_model"]:
        """What the sender's change adds to the residual stream, through any norm on the way."""
        read: dict[int, Tensor] = {}
        hooks, model = [_reader("attn_out", layer, read, rows.device)], self.paths.inputs.model
        resume(model, self.run, layer=layer, rows=rows, z=z, hooks=hooks, stop=layer + 1)
        unpatched = self.run.values["attn_out"][layer, rows].squeeze(2)
        return widened(read[layer]) - widened(unpatched)

    def _receiver_inputs(
        self, layer: int, rows: Tensor, *, z: Tensor, layers: Sequence[int]
    ) -> dict[int, Tensor]:
        """By receiver layer, its q, k or v with the sender's write in its input."""
        model, run, into = self.paths.inputs.model, self.run, self.paths.into
        read: dict[int, Tensor] = {}
        if self.paths.recompute:
            hooks = self._frozen(range(layer + 1, layers[-1] + 1), rows)
            hooks += [_reader(into, at, read, rows.device) for at in layers]
            resume(model, run, layer=layer, rows=rows, z=z, hooks=hooks, stop=layers[-1] + 1)
            return read
        write = self._write(layer, rows, z)
        for at in layers:
            residual = widened(run.resid_pre[at, rows]) + write
            hooks = [_reader(into, at, read, rows.device)]
            resume(model, run, layer=at, rows=rows, residual=residual, hooks=hooks, stop=at + 1)
        return read

    def _receive(self, layer: int, new: Tensor, units: Sequence[int]) -> Hook:
        """The hook that gives some units of a layer their new values."""
        into = self.paths.into

        def write(value: Tensor, hook: object) -> Tensor:
            by_unit = as_units(value, into)
            acting = rows_of_units([units], by_unit.shape[2], 1, device=value.device)
            return from_units(torch.where(acting[0, :, None], new.to(by_unit), by_unit), into)

        return hook_name(into, layer), write


def _reader(component: str, layer: int, into: dict[int, Tensor], device: torch.device) -> Hook:
    def read(value: Tensor, hook: object) -> None:
        into[layer] = value.detach().to(device, copy=True)

    function: HookFunction = read
    return hook_name(component, layer), function
