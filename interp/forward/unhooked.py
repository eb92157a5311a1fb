"""The model without its hook points, for runs whose inside nobody looks at.

A sweep runs the same layers thousands of times and reads one number at the end. ``UnhookedModel``
is a second set of module objects around the *same* parameters, in which every TransformerLens
component is replaced by the transformers module that it wraps, so that the model's own code runs
with a fused attention kernel and a prefix that rows share (``shared_prefix``). The hooked model
does not change, and no memory is taken. TransformerLens 3 wraps no transformers modules: there
everything runs on the hooked model.

It offers what sweeps need: start at a layer, take a layer's head outputs as given, edit at the
hook points that have a place in the modules, skip what the last position does not need. Anything
else (see ``supports``) is left to the hooked model. ``unhooked_model`` gives none where the two
could differ: hooks on the hooked model, weights processed by TransformerLens, an attention that the
implementation here does not know.

Weights in bfloat16 or float16, and quantized ones, stay as they are, and are widened while they are
used: the modules of such a model compute in float32 (``widen``).
"""

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.fused_block import fused_forward
from interp.forward.layer_range import override_forward, run_layers
from interp.forward.norms import fuse_norm
from interp.forward.shared_prefix import (
    SharedPrefix,
    Step,
    implementation,
    prefix_cache,
    use_prefix,
)
from interp.forward.widen import tensor_cores, widen
from interp.models.call import call_model
from interp.models.hooked_model import HookedModel
from interp.models.model_check import check_of
from interp.models.placement import own_weights
from interp.models.transformers_modules import TransformersModules, is_component
from interp.models.versions import wraps_transformers
from interp.modules import modules
from interp.precision import coarsest_dtype, dtype_of, wide_dtype, widened
from interp.quantized import is_quantized

logger = logging.getLogger(__name__)

HookFunction = Callable[[Tensor, Any], Tensor | None]
Hook = tuple[str, HookFunction]

_ATTENTION_HOOK = re.compile(r"blocks\.(\d+)\.attn\.hook_(attn_scores|pattern)")
_HEADS_HOOK = re.compile(r"hook_(z|q|k|v)$")


class UnhookedModel:
    """A hooked model's parameters in transformers' own modules. Made by ``unhooked_model``.

    Attributes:
        dtype: what it computes in.
        wide: whether that is wider than what the hooked model computes in.
        fused: whether blocks and norms may run in fewer operators (``fused_block``, ``norms``).
    """

    def __init__(self, model: HookedModel, *, wide: bool = True, fused: bool = True) -> None:
        dtype, coarsest = dtype_of(model), coarsest_dtype(model)
        self.dtype = wide_dtype(dtype) if wide else dtype
        self.wide = wide and wide_dtype(coarsest) != coarsest
        self._unhooked = TransformersModules(model, attn_implementation=implementation())
        self._tuple_outputs = check_of(model).unhooked_tuple_outputs
        self._points = model.hook_dict
        self._components = _components_of_hook_points(model)
        self.n_layers: int = model.cfg.n_layers
        self.n_heads: int = model.cfg.n_heads
        self.n_kv_heads: int = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
        self.hf_model: Any = self._unhooked.root
        self.blocks = [self._module_of(block) for block in model.blocks]
        self.attention = [self._module_of(block.attn) for block in model.blocks]
        if not all(calls_attention_interface(attention) for attention in self.attention):
            raise NotImplementedError(f"attention by {type(self.attention[0]).__name__}")
        self.out_projection = [self._module_of(block.attn.o) for block in model.blocks]
        last = model.blocks[-1]
        query = self._unhooked.of(getattr(last.attn, "q", None))
        d_query = model.cfg.n_heads * model.cfg.d_head
        if not isinstance(query, nn.Linear) or query.out_features != d_query:
            query = None  # a joint projection gives keys and values too
        mlp = self._unhooked.of(getattr(last, "mlp", None))
        self._narrowed = [
            module for module in (query, self.out_projection[-1], mlp) if module is not None
        ]
        if self.wide:
            for module in self._unhooked.modules():
                widen(module)
        self.fused = fused
        if fused:
            for module in self._unhooked.modules():
                fuse_norm(module)
        self._fused_blocks = [fused_forward(block) if fused else None for block in self.blocks]

    def _module_of(self, component: Any) -> nn.Module:
        found = self._unhooked.of(component)
        if found is None:
            raise NotImplementedError(f"{type(component).__name__} wraps no module")
        return found

    @property
    def can_narrow(self) -> bool:
        """Whether the logits of a few tokens can be computed alone."""
        unembedding = self.hf_model.get_output_embeddings()
        return type(unembedding) is nn.Linear and not is_quantized(unembedding)

    def supports(self, hooks: Sequence[Hook]) -> bool:
        """Whether every hook point named has a place in the plain modules."""
        return all(self.has(name) for name, _ in hooks)

    def has(self, name: str) -> bool:
        """Whether a hook point has a place in the plain modules."""
        return bool(_ATTENTION_HOOK.fullmatch(name)) or self._place(name) is not None

    def _place(self, name: str) -> tuple[nn.Module, bool] | None:
        """The module of a hook point, and whether the hook point is at its input."""
        component, is_input = self._components.get(id(self._points.get(name)), (None, False))
        module = self._unhooked.of(component)
        return None if module is None else (module, is_input)

    def resume(
        self,
        batch: TokenBatch,
        keys_values: tuple[tuple[Tensor, Tensor], ...],
        rows: Int[Tensor, " row"],
        *,
        start: int,
        layer: int,
        residual: Float[Tensor, "row pos d_model"],
        z: Float[Tensor, "row pos head d_head"] | None = None,
        hooks: Sequence[Hook] = (),
        stop: int | None = None,
        tokens: Int[Tensor, "row token"] | None = None,
    ) -> Float[Tensor, "row d_vocab"]:
        """``interp.forward.partial.resume`` on these modules."""
        with ExitStack() as stack:
            enter = stack.enter_context
            # First what the layer is given, then the hooks, which may edit it.
            residual, outputs = residual.to(self.dtype), self._tuple_outputs
            enter(run_layers(self.blocks, layer, residual, stop=stop, tuple_outputs=outputs))
            if z is not None:
                attention, project = self.attention[layer], self.out_projection[layer]
                given = z.to(self.dtype).flatten(-2)
                enter(override_forward(attention, lambda *args, **kwargs: (project(given), None)))
            # A hook in the last layer may look at any of its positions.
            watched = any(name.startswith(f"blocks.{self.n_layers - 1}.") for name, _ in hooks)
            last_only = None if watched else self.n_layers - 1
            enter(self._running(keys_values, rows, hooks, last_only=last_only))
            for module in () if watched else self._narrowed:
                enter(override_forward(module, _at_last_position(module)))
            for index, fused in self._unwatched_layers(hooks, layer + (z is not None), stop):
                enter(override_forward(self.blocks[index], fused))
            if tokens is not None:
                unembedding = self.hf_model.get_output_embeddings()
                enter(override_forward(unembedding, _only_tokens(unembedding, tokens)))
            return call_model(
                self.hf_model,
                batch.tokens[rows, start:],
                batch.mask[rows],
                cache=prefix_cache(keys_values),
            )[:, -1]

    def _unwatched_layers(
        self, hooks: Sequence[Hook], first: int, stop: int | None
    ) -> Iterator[tuple[int, Callable[..., Tensor]]]:
        """Layers from ``first`` on that can run whole and fused, not the last; their forwards."""
        watched = {name.split(".")[1] for name, _ in hooks if name.startswith("blocks.")}
        end = min(self.n_layers - 1, self.n_layers if stop is None else stop)
        for index in range(first, end) if not torch.is_grad_enabled() else ():
            fused = self._fused_blocks[index]
            if fused is not None and str(index) not in watched:
                yield index, fused

    def run(
        self,
        batch: TokenBatch,
        rows: Int[Tensor, " row"],
        *,
        start: int = 0,
        end: int | None = None,
        cache: Cache | None = None,
        hooks: Sequence[Hook] = (),
    ) -> Float[Tensor, "row d_vocab"]:
        """Run positions [start, end) of some prompts, and return the last position's logits.

        Args:
            cache: holds the positions before ``start``, and is filled with these.
        """
        tokens, mask = batch.tokens[rows, start:end], batch.mask[rows, :end]
        with self._running((), rows, hooks):
            return call_model(self.hf_model, tokens, mask, cache=cache)[:, -1]

    @contextmanager
    def _running(
        self,
        keys_values: tuple[tuple[Tensor, Tensor], ...],
        rows: Int[Tensor, " row"],
        hooks: Sequence[Hook],
        *,
        last_only: int | None = None,
    ) -> Iterator[None]:
        """While open, the modules run with these hooks, on rows that share a prefix."""
        steps: dict[str, dict[int, list[Step]]] = {"attn_scores": {}, "pattern": {}}
        with ExitStack() as stack:
            if self.wide:  # a model in float32 itself is not to be rounded
                stack.enter_context(tensor_cores(rows.device))
            for name, function in hooks:
                at = _ATTENTION_HOOK.fullmatch(name)
                if at:
                    step = _step(function, self._points[name])
                    steps[at[2]].setdefault(int(at[1]), []).append(step)
                else:
                    stack.enter_context(self._hooked(name, function))
            prefix = SharedPrefix(
                keys_values, rows, steps["attn_scores"], steps["pattern"], last_only=last_only
            )
            with use_prefix(prefix):
                yield
            if left_out := ({*prefix.scores, *prefix.patterns} - prefix.layers_run):
                raise UserError(
                    f"the attention of layer {min(left_out)} did not run its hooks: nothing can be "
                    "read or written at its pattern"
                )

    @contextmanager
    def _hooked(self, name: str, function: HookFunction) -> Iterator[None]:
        place = self._place(name)
        assert place is not None
        module, is_input = place
        heads = _HEADS_HOOK.search(name)
        n = 0 if heads is None else (self.n_kv_heads if heads[1] in "kv" else self.n_heads)
        point = self._points[name]

        def edit(value: Tensor) -> Tensor:
            shown = value.unflatten(-1, (n, -1)) if n else value
            new = function(shown, point)
            return value if new is None else (new.flatten(-2) if n else new)

        def edit_input(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

        def edit_output(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(output[0]), *output[1:])
            return edit(output)

        if is_input:
            handle = module.register_forward_pre_hook(edit_input, with_kwargs=True)
        else:
            handle = module.register_forward_hook(edit_output)
        with handle:
            yield


def _at_last_position(module: nn.Module) -> Callable[..., Any]:
    """The module's forward at the last position only; nothing reads the others."""
    whole = module.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden_states.ndim != 3:
            return whole(hidden_states, *args, **kwargs)
        last = whole(hidden_states[:, -1:], *args, **kwargs)
        if not isinstance(last, Tensor):
            return whole(hidden_states, *args, **kwargs)
        return nn.functional.pad(last, (0, 0, hidden_states.shape[1] - 1, 0))

    return forward


def _only_tokens(unembedding: Any, tokens: Int[Tensor, "row token"]) -> Callable[[Tensor], Tensor]:
    """The unembedding for a few tokens in each row, in the order given; in float32 at least."""
    with own_weights(unembedding):
        at = tokens.to(unembedding.weight.device)
        weight, bias = widened(unembedding.weight[at]), getattr(unembedding, "bias", None)
        bias = None if bias is None else widened(bias.to(at.device)[at])[:, None]

    def forward(hidden_states: Tensor) -> Tensor:
        last = widened(hidden_states[:, -1:]).to(weight.device)
        # No product: in batches of two it is slow on a GPU.
        logits = (last * weight).sum(dim=-1)[:, None]
        return logits if bias is None else logits + bias

    return forward


def _step(function: HookFunction, point: Any) -> Step:
    def step(value: Tensor) -> Tensor:
        new = function(value, point)
        return value if new is None else new

    return step


def _components_of_hook_points(model: HookedModel) -> dict[int, tuple[Any, bool]]:
    """By the identity of a hook point: its component, and whether it is at the input."""
    found: dict[int, tuple[Any, bool]] = {}
    for component in filter(is_component, modules(model)):
        for name, is_input in (("hook_in", True), ("hook_out", False)):
            point = component.__dict__.get("_modules", {}).get(name)
            if point is not None:
                found[id(point)] = (component, is_input)
    return found


def calls_attention_interface(attention: nn.Module) -> bool:
    """Whether a transformers attention module runs the implementation that its config names.

    Older ones compute attention themselves, whatever is named.
    """
    forward = inspect.unwrap(type(attention).forward)
    return "ALL_ATTENTION_FUNCTIONS" in forward.__code__.co_names


_LIBRARIES = ("interp.", "transformer_lens.", "accelerate.", "torch.", "peft.", "transformers.")
"""Hooks on modules from these packages belong to the model; all others were set by others."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(model: HookedModel) -> bool:
    """Whether the model has hooks set by others: on its hook points, or on any of its modules."""
    return hook_points_used(model) or any(
        not str(getattr(hook, "__module__", "")).startswith(_LIBRARIES)
        for module in modules(model)
        for kind in _HOOKS
        if getattr(module, kind)
        for hook in getattr(module, kind).values()
    )


def hook_points_used(model: HookedModel) -> bool:
    """Whether the model's hook points have hooks."""
    return any(
        point.fwd_hooks or point.bwd_hooks or any(getattr(point, kind) for kind in _HOOKS)
        for point in model.hook_dict.values()
    )


def may_be_unhooked(model: HookedModel) -> bool:
    """Whether nothing that is visible without running it keeps a model from running unhooked."""
    processed = getattr(model, "compatibility_mode", False)
    return wraps_transformers(model) and not has_hooks(model) and not processed


def unhooked_model(
    model: HookedModel, *, wide: bool = True, fused: bool = True
) -> UnhookedModel | None:
    """The unhooked model around a hooked model's parameters; None where the two could differ.

    Args:
        wide: compute in float32 where the weights have fewer bits.
        fused: run blocks and norms in fewer operators where their code is known.
    """
    return make_unhooked(model, wide=wide, fused=fused) if may_be_unhooked(model) else None


def make_unhooked(model: HookedModel, *, wide: bool, fused: bool) -> UnhookedModel | None:
    """``unhooked_model`` of a model that `may_be_unhooked`."""
    if len(check_of(model).unhooked_tuple_outputs) != model.cfg.n_layers:
        return None  # its self-check could not run transformers' own modules
    try:
        return UnhookedModel(model, wide=wide, fused=fused)
    except (NotImplementedError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        logger.info("sweeps run on the hooked model: %s", error)
        return None
