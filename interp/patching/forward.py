"""Exact partial forward passes: the shared beginning once, the lower layers once.

In a causal model nothing that happens at a column changes the columns before it, and nothing
that happens in a layer changes the layers below it. ``record_run`` runs a batch once and keeps
the keys and values of the first ``start`` columns and every layer's input for the others;
``resume`` then runs only the layers from ``layer`` on, over the columns from ``start`` on, for
any selection of its prompts as rows. The numbers are those of the full run.

The lower blocks pass their input through rather than being left out, so that the model's own
code still makes masks and positions; this works for every architecture that TransformerLens'
bridge wraps around a Hugging Face model.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from interp.errors import UserError
from interp.patching.batch import TokenBatch

HookFunction = Callable[[Tensor, Any], Tensor | None]
Hook = tuple[str, HookFunction]


class _PrefixLayer(DynamicLayer):
    """Keys and values of the shared beginning; lends them out and keeps nothing new."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.beginning = (keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = self.beginning
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


@dataclass(frozen=True)
class RecordedRun:
    """One run of a batch, kept so that parts of it can be run again.

    Attributes:
        batch: the prompts.
        start: the first column that is not in the shared beginning.
        keys_values: per layer the keys and values of the columns before ``start``.
        resid_pre: Float[layer prompt tail d_model], every layer's input from ``start`` on.
        z: Float[layer prompt tail head d_head], the heads' outputs, or None if not asked for.
        logits: Float[prompt d_vocab] of the last column.
    """

    batch: TokenBatch
    start: int
    keys_values: tuple[tuple[Tensor, Tensor], ...]
    resid_pre: Float[Tensor, "layer prompt tail d_model"]
    z: Float[Tensor, "layer prompt tail head d_head"] | None
    logits: Float[Tensor, "prompt d_vocab"]

    def prefix(self, rows: Int[Tensor, " row"]) -> Cache | None:
        """The shared beginning as a cache for these rows; None where there is none."""
        if not self.keys_values:
            return None
        return Cache(layers=[_PrefixLayer(k[rows], v[rows]) for k, v in self.keys_values])


def device_of(model: Any) -> torch.device:
    """Where the model is: inputs go there."""
    return next(iter(model.original_model.parameters())).device


@contextmanager
def hooked(model: Any, hooks: Sequence[Hook]) -> Iterator[None]:
    """Hooks on the model's hook points; they come off whatever happens.

    Raises:
        UserError: a hook point that the model does not have.
    """
    points = model.hook_dict
    with ExitStack() as stack:
        for name, _ in hooks:
            if name not in points:
                raise UserError(f"the model has no hook point {name!r}")
        stack.enter_context(model.hooks(fwd_hooks=list(hooks)))
        yield


def run_columns(
    model: Any,
    batch: TokenBatch,
    rows: Int[Tensor, " row"],
    *,
    start: int = 0,
    cache: Cache | None = None,
    keep: int = 1,
) -> Float[Tensor, "row keep d_vocab"]:
    """Run columns ``start`` on of some prompts; returns the last ``keep`` columns' logits."""
    hf_model = model.original_model
    arguments: dict[str, Any] = {
        "input_ids": batch.tokens[rows, start:],
        "attention_mask": batch.mask[rows].long(),
    }
    accepted = inspect.signature(hf_model.forward).parameters
    if "position_ids" in accepted:
        arguments["position_ids"] = batch.positions[rows, start:]
    if cache is not None:
        arguments["past_key_values"] = cache
    arguments["use_cache"] = cache is not None
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = keep
    return hf_model(**arguments).logits[:, -keep:]


def tail_logits(
    model: Any, batch: TokenBatch, *, keep: int = 1
) -> Float[Tensor, "prompt keep d_vocab"]:
    """The logits of the last ``keep`` columns of a whole batch."""
    rows = torch.arange(len(batch), device=batch.tokens.device)
    return run_columns(model, batch, rows, keep=keep)


def record_run(
    model: Any, batch: TokenBatch, *, start: int = 0, keep_z: bool = True
) -> RecordedRun:
    """Run a batch once and keep what ``resume`` needs (see the module's text)."""
    if not 0 <= start < batch.width:
        raise UserError(f"the run starts at column {start}, the prompts have {batch.width}")
    n_layers = model.cfg.n_layers
    rows = torch.arange(len(batch), device=batch.tokens.device)
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()
    cache: Cache | None = None
    if start:
        cache = DynamicCache()
        beginning = TokenBatch.__new__(
            TokenBatch
        )  # its rows may be padding only: not a valid batch
        object.__setattr__(beginning, "tokens", batch.tokens[:, :start])
        object.__setattr__(beginning, "mask", batch.mask[:, :start])
        run_columns(model, beginning, rows, cache=cache)
        keys_values = tuple((layer.keys, layer.values) for layer in cache.layers)  # type: ignore[attr-defined]
    resid: list[Tensor] = [torch.empty(0)] * n_layers
    z: list[Tensor] = [torch.empty(0)] * n_layers

    def keep(into: list[Tensor], layer: int) -> HookFunction:
        def hook_function(value: Tensor, hook: object) -> None:
            into[layer] = value.detach()

        return hook_function

    hooks: list[Hook] = [
        (f"blocks.{layer}.hook_resid_pre", keep(resid, layer)) for layer in range(n_layers)
    ]
    if keep_z:
        hooks += [(f"blocks.{layer}.attn.hook_z", keep(z, layer)) for layer in range(n_layers)]
    with hooked(model, hooks):
        logits = run_columns(model, batch, rows, start=start, cache=cache)[:, -1]
    return RecordedRun(
        batch=batch,
        start=start,
        keys_values=keys_values,
        resid_pre=torch.stack(resid),
        z=torch.stack(z) if keep_z else None,
        logits=check_finite(logits, resid),
    )


def check_finite(logits: Tensor, resid: Sequence[Tensor]) -> Tensor:
    """The logits, if they are finite; otherwise the first layer whose input is not is named."""
    if bool(torch.isfinite(logits).all()):
        return logits
    bad = [layer for layer, value in enumerate(resid) if not bool(torch.isfinite(value).all())]
    where = f"the input of layer {bad[0]} is" if bad else "the logits are"
    raise UserError(
        f"the model gives NaN or infinity: {where} not finite; check its weights and dtype"
    )


@contextmanager
def _own_attribute(module: Any, name: str, value: Any) -> Iterator[None]:
    before = module.__dict__.get(name)
    module.__dict__[name] = value
    try:
        yield
    finally:
        if before is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before


@contextmanager
def _entering(model: Any, layer: int, residual: Tensor) -> Iterator[None]:
    """Blocks below ``layer`` pass their input through; block ``layer`` gets ``residual``."""

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": residual}
        return (residual, *args[1:]), kwargs

    def pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states

    blocks = list(model.blocks)
    with ExitStack() as stack:
        for block in blocks[:layer]:
            # Past the bridge's own __setattr__, which hands attributes on to the wrapped block.
            stack.enter_context(_own_attribute(block, "forward", pass_through))
        handle = blocks[layer].register_forward_pre_hook(enter, with_kwargs=True)
        stack.callback(handle.remove)
        yield


def resume(
    model: Any,
    run: RecordedRun,
    *,
    layer: int,
    rows: Int[Tensor, " row"],
    hooks: Sequence[Hook] = (),
    residual: Tensor | None = None,
) -> Float[Tensor, "row d_vocab"]:
    """Run again from ``layer`` on, over the columns from ``run.start`` on.

    Args:
        rows: which prompt of the run each row of the new batch is; prompts may repeat.
        hooks: (hook point, function) pairs; they see tensors [row tail …].
        residual: the input of ``layer`` [row tail d_model]; the recorded one if None.

    Returns:
        the last column's logits [row d_vocab].
    """
    entering = run.resid_pre[layer][rows] if residual is None else residual
    with _entering(model, layer, entering), hooked(model, hooks):
        logits = run_columns(model, run.batch, rows, start=run.start, cache=run.prefix(rows))
    return logits[:, -1]
