"""Exact partial forward passes: the shared beginning once, the lower layers once.

In a causal model nothing that happens at a column changes the columns before it, and nothing
that happens in a layer changes the layers below it. ``record_run`` runs a batch once and keeps
all keys and values, and every layer's input for the columns from ``start`` on; ``resume`` then
runs only the layers from ``layer`` on, over those columns, for any selection of its prompts as
rows. The numbers are those of the full run.

Where they can, both run the model's plain modules (``interp.forward.unhooked``), which share the
beginning among rows; otherwise the hooked model, whose lower blocks pass their input through
rather than being left out, so that the model's own code still makes masks and positions. An effect
is a difference of two runs: a recorded run and those resumed from it always go the same way, so
that what rounds alike in both cancels. ``unedited_logits`` goes that way too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from interp.arguments import listed, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.call import call_columns
from interp.forward.finite import check_finite
from interp.forward.hook_points import as_units, check_component, count_units, hook_name
from interp.forward.layer_range import run_layers
from interp.forward.out_of_memory import over_parts
from interp.forward.prompts import batch_for
from interp.forward.prompts import device_of as device_of
from interp.forward.recorded_run import RecordedRun as RecordedRun
from interp.forward.trial import trusted_unhooked_model
from interp.forward.unhooked import Hook, HookFunction, has_hooks, hook_points_used
from interp.models.call import first_shared_keys
from interp.models.hooked_model import HookedModel
from interp.models.model_check import check_of, require
from interp.models.versions import writes_resid_mid
from interp.precision import dtype_of


@checked
@contextmanager
def hooked(model: HookedModel, hooks: Sequence[Hook]) -> Iterator[None]:
    """Hooks on the model's hook points; they come off whatever happens.

    Raises:
        UserError: a hook point that the model does not have.
    """
    points = model.hook_dict
    for name, _ in hooks:
        if name not in points:
            raise UserError(f"the model has no hook point {name!r}")
    require_hooks(model, hooks)
    with model.hooks(fwd_hooks=list(hooks)):
        yield


def require_hooks(model: HookedModel, hooks: Sequence[Hook]) -> None:
    """Raise UserError for hook points that this model shows but does not read as it should."""
    require(model, "logits")
    for name, _ in hooks:
        if name.endswith((".hook_attn_scores", ".hook_pattern")):
            require(model, "attention")
        elif name.endswith(".attn.hook_z"):
            require(model, "output")


@checked
def tail_logits(
    model: HookedModel, batch: TokenBatch, *, keep: int = 1
) -> Float[Tensor, "prompt keep d_vocab"]:
    """The logits of the last ``keep`` columns of a whole batch.

    Raises:
        UserError: logits that are not finite; the message names the layer and the hook.
    """
    batch, keep = batch_for(model, batch), whole_number("keep", keep, least=1)
    _require_batch(model, batch)

    def of_part(part: TokenBatch, some: range) -> Tensor:
        rows = torch.arange(len(part), device=part.tokens.device)

        def run() -> Tensor:
            return call_columns(model.original_model, part, rows, keep=keep)

        return check_finite(run(), model, run)

    if hook_points_used(model):  # hooks may count rows: then who set them cuts the batch
        return of_part(batch, range(len(batch)))
    return torch.cat(list(over_parts(batch, of_part, batch_tokens=batch.tokens.numel())))


def unedited_logits(model: HookedModel, batch: TokenBatch) -> Float[Tensor, "prompt d_vocab"]:
    """The last column's logits, in chunks of prompts, from the modules that sweeps run.

    What an edited run is compared with; ``tail_logits`` is always the hooked model's.

    Raises:
        UserError: logits that are not finite; the message names the layer and the hook.
    """
    plain = trusted_unhooked_model(model, batch.width)

    def of_part(part: TokenBatch, some: range) -> Tensor:
        if plain is None:
            return tail_logits(model, part)[:, -1]
        rows = torch.arange(len(part), device=part.tokens.device)
        return _checked(plain.run(part, rows), model, part, rows)

    return torch.cat(list(over_parts(batch, of_part)))


@checked
def record_run(
    model: HookedModel,
    batch: TokenBatch,
    *,
    start: int = 0,
    keep: Sequence[str] = ("z",),
    plain: bool = True,
    edits: Sequence[str] = (),
    logits_to_keep: int | None = None,
) -> RecordedRun:
    """Run a batch once and keep what ``resume`` needs, and the values of some components.

    Args:
        start: the first column that will be run again. While hooks of somebody else stand on the
            model it is 0 whatever is asked: such hooks may count positions. Read ``run.start``.
        keep: components whose values are kept, from ``start`` on.
        plain: whether transformers' own modules may run in place of the hooked ones.
        edits: hook points, of any layer, that runs resumed from this one will edit or read.
        logits_to_keep: give the logits of so many last columns, [prompt keep d_vocab], here and in
            runs resumed from this one; the plain modules are then not used.

    Raises:
        UserError: a start beyond the prompts, an unknown component, logits that are not finite.
    """
    batch, start = batch_for(model, batch), whole_number("start", start, least=0)
    if not start < batch.width:
        raise UserError(f"the run starts at column {start}, the prompts have {batch.width}")
    for component in listed("keep", keep, "components"):
        check_component(component, model)
    n_layers = model.cfg.n_layers
    rows = torch.arange(len(batch), device=batch.tokens.device)
    _require_batch(model, batch)
    whole = has_hooks(model) or not check_of(model).has("continuation")
    start = 0 if whole else start
    resid: list[Tensor] = [torch.empty(0)] * n_layers
    values: dict[str, list[Tensor]] = {name: [torch.empty(0)] * n_layers for name in keep}

    def keep_in(into: list[Tensor], layer: int) -> HookFunction:
        def hook_function(value: Tensor, hook: object) -> None:
            # Looked at after the run: an open constraint may run prompts of its own within it.
            into[layer] = value.detach()

        return hook_function

    hooks: list[Hook] = []
    for layer in range(n_layers):
        hooks.append((hook_name("resid_pre", layer), keep_in(resid, layer)))
        for name, into in values.items():
            hooks.append((hook_name(name, layer), keep_in(into, layer)))
    require_hooks(model, hooks)
    plain = plain and logits_to_keep is None
    modules = trusted_unhooked_model(model, batch.width) if plain else None
    if modules is not None and not (modules.supports(hooks) and all(map(modules.has, edits))):
        modules = None
    run = partial(call_columns, model.original_model) if modules is None else modules.run
    cache = None if whole else _fill(run, batch, start)
    if modules is not None:
        logits = modules.run(batch, rows, start=start, cache=cache, hooks=hooks)
    else:
        with hooked(model, hooks):
            logits = call_columns(
                model.original_model,
                batch,
                rows,
                start=start,
                cache=cache,
                keep=logits_to_keep or 1,
            )
        logits = logits[:, -1] if logits_to_keep is None else logits

    def stacked(component: str, layers: list[Tensor]) -> Tensor:
        columns = batch.width - start
        return _stacked([_units_of(v, component, model, columns) for v in layers], component)

    return RecordedRun(
        batch=batch,
        start=start,
        keys_values=() if cache is None else tuple(_keys_values(cache)),
        resid_pre=stacked("resid_pre", resid).squeeze(3),
        values={name: stacked(name, into) for name, into in values.items()},
        logits=_checked(logits, model, batch, rows),
        plain=modules,
        whole=whole,
    )


def _units_of(value: Tensor, component: str, model: HookedModel, columns: int) -> Tensor:
    """A hook point's value by column and unit. Raises UserError for any other shape."""
    found = as_units(value, component).detach()
    if found.shape[1:3] != (columns, count_units(model, component)):
        raise UserError(
            f"this model shows {component!r} as {list(value.shape)} and not by prompt, position "
            "and unit: it cannot be patched"
        )
    return found


def _require_batch(model: HookedModel, batch: TokenBatch) -> None:
    """Raise UserError if the model cannot run the batch as transformers does."""
    require(model, "logits")
    if not bool(batch.mask.all()):
        require(model, "padding")


def _keys_values(cache: Any) -> Iterator[tuple[Tensor, Tensor]]:
    return ((layer.keys, layer.values) for layer in cache.layers)


def _stacked(values: Sequence[Tensor], component: str) -> Tensor:
    """The layers' values in one tensor. Raises UserError where they differ in shape."""
    shapes = [list(value.shape) for value in values]
    other = next((layer for layer, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise UserError(
            f"layers differ in {component!r}: it is {shapes[0]} in layer 0 and {shapes[other]} in "
            f"layer {other}, so that the layers cannot be patched together"
        )
    return torch.stack(list(values))


def _checked(logits: Tensor, model: HookedModel, batch: TokenBatch, rows: Tensor) -> Tensor:
    return check_finite(logits, model, lambda: call_columns(model.original_model, batch, rows))


def _fill(run: Callable[..., object], batch: TokenBatch, end: int) -> Cache:
    """A cache of the first columns, none for an end of 0; the rest of the run goes on filling it.

    What all prompts begin with (a chat's preamble) runs once.
    """
    cache, device = DynamicCache(), batch.tokens.device
    common = common_columns(batch, end)
    if common:
        one = torch.zeros(1, dtype=torch.long, device=device)
        run(batch, one, end=common, cache=cache)
        for layer in cache.layers:
            for name in ("keys", "values"):
                of_one = getattr(layer, name)
                setattr(layer, name, of_one.expand(len(batch), *of_one.shape[1:]))
    if common < end:
        run(batch, torch.arange(len(batch), device=device), start=common, end=end, cache=cache)
    return cache


def common_columns(batch: TokenBatch, end: int) -> int:
    """How many of the columns before ``end`` hold the same real tokens in every prompt, from 0 on.

    None for a single prompt, which shares its columns with nobody.
    """
    if len(batch) == 1:
        return 0
    tokens, mask = batch.tokens[:, :end], batch.mask[:, :end]
    same = (tokens == tokens[:1]).all(dim=0) & mask.all(dim=0)
    return int(same.long().cumprod(dim=0).sum())


def into_the_stream(model: HookedModel, hooks: Sequence[Hook]) -> list[Hook]:
    """Hooks under which an edit of ``resid_mid`` reaches the layer's output past the MLP as well.

    On the bridge that hook point is the input of the MLP's norm: what a hook returns there is read
    by the MLP alone, and the residual stream goes on as it was.
    """
    if writes_resid_mid(model):
        return list(hooks)
    added: list[Hook] = []
    kept: list[Hook] = []
    for name, function in hooks:
        if not name.endswith(".hook_resid_mid"):
            kept.append((name, function))
            continue
        change: list[Tensor] = []
        kept.append((name, _noting_the_change(function, change)))
        added.append((name.replace("resid_mid", "resid_post"), _adding_the_change(change)))
    return [*added, *kept]


def _noting_the_change(function: HookFunction, change: list[Tensor]) -> HookFunction:
    def hook_function(value: Tensor, hook: Any) -> Tensor | None:
        new = function(value, hook)
        if new is not None and new is not value:
            change.append(new - value)
        return new

    return hook_function


def _adding_the_change(change: list[Tensor]) -> HookFunction:
    def hook_function(value: Tensor, hook: Any) -> Tensor:
        while change:
            value = value + change.pop()
        return value

    return hook_function


@checked
def resume(
    model: HookedModel,
    run: RecordedRun,
    *,
    layer: int,
    rows: Int[Tensor, " row"],
    hooks: Sequence[Hook] = (),
    residual: Tensor | None = None,
    z: Float[Tensor, "row tail head d_head"] | None = None,
    stop: int | None = None,
    tokens: Int[Tensor, "row token"] | None = None,
) -> Float[Tensor, "row *keep d_vocab"]:
    """Run again from ``layer`` on, over the columns from ``run.start`` on.

    Args:
        layer: the first layer that runs; ``n_layers`` for the final norm and unembedding only.
        rows: which prompt of the run each row of the new batch is; prompts may repeat.
        hooks: (hook point, function) pairs; they see tensors [row tail …].
        residual: the input of ``layer`` [row tail d_model]; the recorded one if None.
        z: the head outputs of ``layer``, taken as they are: its attention does not run.
        stop: layers from here on pass through (for runs in which only hooks read something).
        tokens: the logits of these tokens only, in each row; by default of all.

    Returns:
        the last column's logits [row d_vocab], or [row token]; [row keep d_vocab] for a run that
        was recorded with ``logits_to_keep``.
    """
    require_hooks(model, hooks)
    hooks = into_the_stream(model, hooks)
    entered = run.resid_pre[layer][rows] if residual is None else residual
    if run.plain is not None and run.plain.supports(hooks):
        logits = run.plain.resume(
            run.batch,
            run.beginning,
            rows,
            start=run.start,
            layer=layer,
            residual=entered,
            z=z,
            hooks=hooks,
            stop=stop,
            tokens=tokens if run.plain.can_narrow else None,
        )
        return logits if tokens is None or run.plain.can_narrow else logits.gather(1, tokens)
    if z is not None:
        hooks = [(hook_name("z", layer), lambda value, hook: z.to(value.dtype)), *hooks]
    own, returned, last_only = dtype_of(model), check_of(model).tuple_outputs, run.logits.ndim == 2
    cache = run.prefix(rows, own)
    shared = first_shared_keys(model.original_model.config)
    below = None if shared is None else (shared, run.resid_pre[shared][rows].to(own))
    with (
        run_layers(list(model.blocks), layer, entered.to(own), stop, returned, below),
        hooked(model, hooks),
    ):
        logits = call_columns(
            model.original_model,
            run.batch,
            rows,
            start=run.start,
            cache=cache,
            keep=1 if last_only else run.logits.shape[1],
        )
    if not last_only:
        return logits
    return logits[:, -1] if tokens is None else logits[:, -1].gather(1, tokens)
