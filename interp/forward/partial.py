"""Exact partial forward passes: the shared prefix runs once, and so do the lower layers.

In a causal model an edit at one position changes no earlier position, and an edit in one layer
changes no layer below it. ``record_run`` runs a batch once and keeps all keys and values, and every
layer's input from position ``start`` on; ``resume`` then runs only the layers from ``layer`` on,
over those positions, for any selection of its prompts as rows. The numbers are those of the full
run.

Where possible, both run the model's own modules without hook points (``interp.forward.unhooked``),
which share the prefix among rows; otherwise they run the hooked model, whose lower blocks then pass
their input through, so that the model's own code still makes masks and positions. An effect is a
difference of two runs: a recorded run and those resumed from it always use the same modules, so
that equal rounding cancels. ``unedited_logits`` uses those modules too.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from interp.arguments import listed, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import RUN_TOKENS, TokenBatch
from interp.forward.finite import check_finite
from interp.forward.hook_points import as_units, check_component, count_units, hook_name
from interp.forward.layer_range import run_layers
from interp.forward.out_of_memory import over_parts
from interp.forward.pass_tokens import pass_tokens
from interp.forward.prompts import batch_for, call_positions, check_limits
from interp.forward.prompts import device_of as device_of
from interp.forward.recorded_run import RecordedRun as RecordedRun
from interp.forward.trial import trusted_unhooked_model
from interp.forward.unhooked import Hook, HookFunction, has_hooks, hook_points_used
from interp.models.call import call_model, first_shared_keys
from interp.models.hooked_model import HookedModel
from interp.models.limits import changes_rotary
from interp.models.model_check import check_of, require
from interp.models.versions import writes_resid_mid
from interp.moved import old_names
from interp.precision import dtype_of


@checked
@contextmanager
def hooked(model: HookedModel, hooks: Sequence[Hook]) -> Iterator[None]:
    """Hooks on the model's hook points, removed on exit.

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
    """Raise UserError for hook points of this model whose edits would not act as they should."""
    require(model, "logits")
    for name, _ in hooks:
        if name.endswith((".hook_attn_scores", ".hook_pattern")):
            require(model, "attention")
        elif name.endswith(".attn.hook_z"):
            require(model, "output")


@checked
def last_logits(
    model: HookedModel, batch: TokenBatch, *, keep: int = 1
) -> Float[Tensor, "prompt keep d_vocab"]:
    """The logits at the last ``keep`` positions of a whole batch.

    Raises:
        UserError: logits that are not finite; the message names the layer and the hook.
    """
    batch, keep = batch_for(model, batch), whole_number("keep", keep, least=1)
    check_batch(model, batch)

    if hook_points_used(model):  # hooks may count rows: then who set them cuts the batch
        return finite_logits(model, batch, keep=keep)

    def run_part(part: TokenBatch, rows: range) -> Tensor:
        return finite_logits(model, part, keep=keep)

    return torch.cat(list(over_parts(batch, run_part, batch_tokens=batch.tokens.numel())))


def finite_logits(
    model: HookedModel, batch: TokenBatch, *, keep: int = 1
) -> Float[Tensor, "prompt keep d_vocab"]:
    """The logits at the last ``keep`` positions of a batch that was checked, in one pass.

    Raises:
        UserError: logits that are not finite; the message names the layer and the hook.
    """
    run = partial(call_positions, model.original_model, batch, batch.every_row, keep=keep)
    return check_finite(run(), model, run)


def unedited_logits(model: HookedModel, batch: TokenBatch) -> Float[Tensor, "prompt d_vocab"]:
    """The last position's logits, in chunks of prompts, from the modules that sweeps run.

    Edited runs are compared with these; ``last_logits`` always runs the hooked model.

    Raises:
        UserError: logits that are not finite; the message names the layer and the hook.
    """
    plain = trusted_unhooked_model(model, batch.width)
    check_limits(model.original_model, batch)

    def run_part(part: TokenBatch, rows: range) -> Tensor:
        if plain is None:
            return last_logits(model, part)[:, -1]
        return _check_logits(plain.run(part, part.every_row), model, part)

    tokens = pass_tokens(model, batch.width, least=RUN_TOKENS)
    return torch.cat(list(over_parts(batch, run_part, batch_tokens=tokens)))


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
        start: the first position that will be run again. Where the model has hooks set by others,
            which may count positions, or prompts so long that their beginning alone would have
            another rotary embedding, it is 0 whatever is given. Read ``run.start``.
        keep: components whose values are kept, from ``start`` on.
        plain: whether transformers' own modules may run in place of the hooked ones.
        edits: hook points, of any layer, that runs resumed from this one will edit or read.
        logits_to_keep: give the logits of this many last positions, [prompt keep d_vocab], here and
            in runs resumed from this one; these run the hooked model.

    Raises:
        UserError: a start beyond the prompts, an unknown component, logits that are not finite.
    """
    batch, start = batch_for(model, batch), whole_number("start", start, least=0)
    if not start < batch.width:
        raise UserError(f"the run starts at position {start}, the prompts have {batch.width}")
    for component in listed("keep", keep, "components"):
        check_component(component, model)
    check_batch(model, batch)
    all_positions = (
        has_hooks(model)
        or not check_of(model).has("continuation")
        or changes_rotary(model.original_model, batch.longest)
    )
    start = 0 if all_positions else start
    hooks, seen = _storing_hooks(model, dict.fromkeys(("resid_pre", *keep)))
    modules = trusted_unhooked_model(model, batch.width) if plain and not logits_to_keep else None
    if modules is not None and not (modules.supports(hooks) and all(map(modules.has, edits))):
        modules = None
    hf_model = model.original_model
    fill: Any = partial(call_positions, hf_model) if modules is None else modules.run
    cache = None if all_positions else _fill(fill, batch, start)
    if modules is not None:
        logits = modules.run(batch, batch.every_row, start=start, cache=cache, hooks=hooks)
    else:
        tokens, n_kept = batch.tokens[:, start:], logits_to_keep or 1
        with hooked(model, hooks):
            logits = call_model(hf_model, tokens, batch.mask, cache=cache, keep=n_kept)
        logits = logits[:, -1] if logits_to_keep is None else logits
    cached: Any = () if cache is None else cache.layers
    n_positions, device = batch.width - start, batch.tokens.device
    kept = {
        name: _stack_layers(layers, name, model, n_positions=n_positions, device=device)
        for name, layers in seen.items()
    }
    return RecordedRun(
        batch=batch,
        start=start,
        keys_values=tuple((layer.keys, layer.values) for layer in cached),
        resid_pre=kept["resid_pre"].squeeze(3),
        values={name: kept[name] for name in keep},
        logits=_check_logits(logits, model, batch),
        plain=modules,
        all_positions=all_positions,
    )


def _storing_hooks(
    model: HookedModel, components: Iterable[str]
) -> tuple[list[Hook], dict[str, list[Tensor]]]:
    """Hooks that store the values of components, by component and layer, in what is returned."""
    seen = {name: [torch.empty(0)] * model.cfg.n_layers for name in components}

    def store(value: Tensor, hook: object, *, name: str, layer: int) -> None:
        # Looked at after the run: an open constraint may run prompts of its own within it.
        # OLMo clips queries, keys and values in place behind it.
        kept = value.detach()
        seen[name][layer] = kept.clone() if name in ("q", "k", "v") else kept

    hooks: list[Hook] = [
        (hook_name(name, layer), partial(store, name=name, layer=layer))
        for layer in range(model.cfg.n_layers)
        for name in seen
    ]
    require_hooks(model, hooks)
    return hooks, seen


def _stack_layers(
    values: Sequence[Tensor],
    component: str,
    model: HookedModel,
    *,
    n_positions: int,
    device: torch.device,
) -> Float[Tensor, "layer prompt pos unit width"]:
    """The layers' values of a hook point, by position and unit, together on one device.

    Raises:
        UserError: values of another shape, or of shapes that differ between layers.
    """
    units = [as_units(value, component) for value in values]  # each on its layer's device
    for value, by_unit in zip(values, units, strict=True):
        if by_unit.shape[1:3] != (n_positions, count_units(model, component)):
            raise UserError(
                f"this model shows {component!r} as {list(value.shape)} and not by prompt, "
                "position and unit: it cannot be patched"
            )
    for layer, by_unit in enumerate(units):
        if by_unit.shape != units[0].shape:
            raise UserError(
                f"layers differ in {component!r}: it is {list(units[0].shape)} in layer 0 and "
                f"{list(by_unit.shape)} in layer {layer}, so that the layers cannot be patched "
                "together"
            )
    return torch.stack([by_unit.to(device) for by_unit in units])


def check_batch(model: HookedModel, batch: TokenBatch) -> None:
    """Raise UserError if the model cannot run the batch, or not as transformers does."""
    require(model, "logits")
    if not bool(batch.mask.all()):
        require(model, "padding")
    check_limits(model.original_model, batch)


def _check_logits(logits: Tensor, model: HookedModel, batch: TokenBatch) -> Tensor:
    again = partial(call_positions, model.original_model, batch, batch.every_row)
    return check_finite(logits, model, again)


def _fill(run: Callable[..., object], batch: TokenBatch, end: int) -> Cache:
    """A cache of the positions before ``end``; the rest of the run goes on filling it.

    The tokens that all prompts begin with (a chat's preamble) run once.
    """
    cache, rows = DynamicCache(), batch.every_row
    common = common_prefix_length(batch, end)
    if common:
        run(batch, rows[:1], end=common, cache=cache)
        for layer in cache.layers:
            for name in ("keys", "values"):
                first = getattr(layer, name)
                setattr(layer, name, first.expand(len(batch), *first.shape[1:]))
    if common < end:
        run(batch, rows, start=common, end=end, cache=cache)
    return cache


def common_prefix_length(batch: TokenBatch, end: int) -> int:
    """How many of the positions before ``end`` hold the same real tokens in every prompt.

    0 for a single prompt, which shares its positions with no other.
    """
    if len(batch) == 1:
        return 0
    tokens, mask = batch.tokens[:, :end], batch.mask[:, :end]
    same = (tokens == tokens[:1]).all(dim=0) & mask.all(dim=0)
    return int(same.long().cumprod(dim=0).sum())


def into_the_stream(model: HookedModel, hooks: Sequence[Hook]) -> list[Hook]:
    """Hooks under which an edit of ``resid_mid`` reaches the layer's output past the MLP as well.

    On the bridge that hook point is the input of the MLP's norm: only the MLP reads what a hook
    returns there, and the residual stream stays as it was.
    """
    if writes_resid_mid(model):
        return list(hooks)
    added: list[Hook] = []
    kept: list[Hook] = []
    for name, function in hooks:
        if name.endswith(".hook_resid_mid"):
            function, add_change = _split_edit(function)
            added.append((name.replace("resid_mid", "resid_post"), add_change))
        kept.append((name, function))
    return [*added, *kept]


def _split_edit(function: HookFunction) -> tuple[HookFunction, HookFunction]:
    """A hook that notes by how much it changes its value, and one that adds this elsewhere."""
    changes: list[Tensor] = []

    def edit(value: Tensor, hook: Any) -> Tensor | None:
        new = function(value, hook)
        if new is not None and new is not value:
            changes.append(new - value)
        return new

    def add_change(value: Tensor, hook: Any) -> Tensor:
        while changes:
            value = value + changes.pop()
        return value

    return edit, add_change


@checked
def resume(
    model: HookedModel,
    run: RecordedRun,
    *,
    layer: int,
    rows: Int[Tensor, " row"],
    hooks: Sequence[Hook] = (),
    residual: Tensor | None = None,
    z: Float[Tensor, "row pos head d_head"] | None = None,
    stop: int | None = None,
    tokens: Int[Tensor, "row token"] | None = None,
) -> Float[Tensor, "row *keep d_vocab"]:
    """Run again from ``layer`` on, over the positions from ``run.start`` on.

    Args:
        layer: the first layer that runs; ``n_layers`` for the final norm and unembedding only.
        rows: which prompt of the run each row of the new batch is; prompts may repeat.
        hooks: (hook point, function) pairs; they see tensors [row pos …].
        residual: the input of ``layer`` [row pos d_model]; the recorded one if None.
        z: the head outputs of ``layer``; its attention then does not run.
        stop: layers from here on pass through (for runs in which only hooks read something).
        tokens: the logits of these tokens only, in each row; by default of all.

    Returns:
        the last position's logits [row d_vocab], or [row token]; [row keep d_vocab] for a run that
        was recorded with ``logits_to_keep``.
    """
    require_hooks(model, hooks)
    hooks = into_the_stream(model, hooks)
    layer_input = run.resid_pre[layer][rows] if residual is None else residual
    if run.plain is not None and run.plain.supports(hooks):
        logits = run.plain.resume(
            run.batch,
            run.prefix,
            rows,
            start=run.start,
            layer=layer,
            residual=layer_input,
            z=z,
            hooks=hooks,
            stop=stop,
            tokens=tokens if run.plain.can_narrow else None,
        )
        return logits if tokens is None or run.plain.can_narrow else logits.gather(1, tokens)
    if z is not None:
        hooks = [(hook_name("z", layer), lambda value, hook: z.to(value)), *hooks]
    dtype, keep = dtype_of(model), 1 if run.logits.ndim == 2 else run.logits.shape[1]
    shared = first_shared_keys(model.original_model.config)
    below = None if shared is None else (shared, run.resid_pre[shared][rows].to(dtype))
    layers = skipping_layers(model, layer, layer_input.to(dtype), stop=stop, below=below)
    forward = partial(call_positions, model.original_model, run.batch, rows, start=run.start)
    with layers, hooked(model, hooks):
        logits = forward(cache=run.prefix_cache(rows, dtype), keep=keep)
    if run.logits.ndim == 3:
        return logits
    return logits[:, -1] if tokens is None else logits[:, -1].gather(1, tokens)


def skipping_layers(
    model: HookedModel,
    layer: int,
    residual: Tensor,
    *,
    stop: int | None = None,
    below: tuple[int, Tensor] | None = None,
) -> AbstractContextManager[None]:
    """`interp.forward.layer_range.run_layers` for a model's own blocks."""
    blocks, lengths = list(model.blocks), check_of(model).tuple_outputs
    return run_layers(blocks, layer, residual, stop=stop, tuple_outputs=lengths, below=below)


__getattr__ = old_names(__name__)
