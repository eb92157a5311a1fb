"""Norms, attention and MLPs of a model in training, in fewer operators.

Most of what a training step of a small model starts is not the experts': a norm in six pieces, a
rotary embedding in ten, and their gradients in more. ``fuse_modules`` gives the modules whose code
is known (``interp.forward.known_code``) a class of their own with another ``forward``:

* a norm is one operator, or five on a CPU (``interp.forward.norms``);
* queries, keys and values are one operator with all their experts (``interp.moelora.fused_group``),
  and so are an MLP's two inner projections;
* queries and keys are rotated together, by three operators.

Before that, at the first training step, each module runs both ways on random inputs, with random
up-projections: where a value or a gradient differs by more than rounding it stays as it is, and the
log says so. And each call goes the plain way again in evaluation, for a module
or projection that has hooks or whose forward was replaced, in torch.compile, under autocast in
another type, and for every module while ``MoELoRALinear.fused`` is False. Hooks on the modules
themselves, gradient checkpointing, accelerate and saving see what they always saw. Copies, pickled
or deep, have the plain classes.
"""

import functools
import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.forward.fused_block import rotated
from interp.forward.known_code import is_known_attention, is_known_block, is_known_mlp, is_norm
from interp.forward.norms import rms_norm
from interp.models.placement import is_dispatched
from interp.moelora.fused import FUSED_TYPES, Gating, Weights
from interp.moelora.fused_check import computes_the_same
from interp.moelora.fused_group import Frozen, Routing, projected_together
from interp.moelora.layer import MoELoRALinear, adapted_layers
from interp.moelora.plain_projection import is_plain_projection, is_watched
from interp.moelora.recorder import Routed

logger = logging.getLogger(__name__)

_PLAIN = "_class_before"
"""The attribute of a module's class that holds the class it had before."""


def fuse_modules(model: nn.Module) -> None:
    """Let the modules of an adapted model that are known run in fewer operators in training.

    Nothing changes where an adapted projection asks for its formula to be written out
    (``MoELoRALinear.fused``). A second call tries what has the plain class by then.
    """
    layers = adapted_layers(model)
    if not layers or not all(layer.fused for layer in layers):
        return
    for name, module in _known_modules(model):
        plain, fused = type(module), _fused_class(type(module))
        if computes_the_same(module, plain, fused):
            module.__class__ = fused
        else:
            logger.info("%s trains as it is: fewer operators gave other numbers", name)


def unfuse_modules(model: nn.Module) -> None:
    """Give all modules the classes again that they had."""
    for module in model.modules():
        module.__class__ = getattr(type(module), _PLAIN, type(module))


def plain_class(module: nn.Module) -> type[nn.Module]:
    """A module's class as it is without ``fuse_modules``."""
    return getattr(type(module), _PLAIN, type(module))


def _known_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, block in model.named_modules():
        if is_known_block(block) and not is_dispatched(block):
            for part, module in block.named_children():
                if plain_class(module) is type(module):
                    yield f"{name}.{part}", module


@functools.lru_cache
def _fused_class(plain: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward has fewer operators; unwrapped, it is the plain one."""
    probe: Any = object.__new__(plain)
    probe.__dict__["_modules"] = {}
    kinds = {is_norm: _norm, is_known_attention: _attention, is_known_mlp: _gated_mlp}
    (forward,) = (forward for known, forward in kinds.items() if known(probe))

    def reduce(self: Any, protocol: Any) -> Any:
        _, _, *state = object.__reduce_ex__(self, protocol)
        return _empty, (plain,), *state

    names = {
        "forward": functools.wraps(plain.forward)(forward),
        "__reduce_ex__": reduce,
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        _PLAIN: plain,
    }
    return type(plain.__name__, (plain,), names)


def _empty(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _plainly(module: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(type(module), _PLAIN).forward(module, *args, **kwargs)


def _may_fuse(module: nn.Module, x: Any) -> bool:
    """Whether this call is one of training, with nothing that watches the modules within.

    Gradients may be off: the first pass of reentrant checkpointing gives the second one's values.
    """
    return (
        module.training
        and MoELoRALinear.fused
        and type(x) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not _has_any_global_hook()
    )


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    x, weight = hidden_states, self.weight
    if _may_fuse(self, x) and x.dtype == weight.dtype and not weight.requires_grad:
        return rms_norm(x, self)
    return _plainly(self, hidden_states)


def _gated_mlp(self: Any, x: Tensor) -> Tensor:
    if not _may_fuse(self, x):
        return _plainly(self, x)
    found = _together(x, (self.gate_proj, self.up_proj))
    if found is None:
        return _plainly(self, x)
    gate, up = found
    return self.down_proj(self.act_fn(gate) * up)


def _attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    x = hidden_states
    plainly = functools.partial(
        _plainly, self, x, position_embeddings, attention_mask, past_key_values, **kwargs
    )
    if not _may_fuse(self, x) or not _is_of_type(position_embeddings, x):
        return plainly()
    projections = self.q_proj, self.k_proj, self.v_proj
    found = _together(x, projections, joined=2)
    if found is None:
        q, k, v = (project(x) for project in projections)
        found = torch.cat([q, k], dim=-1), v
    both, v = (part.unflatten(-1, (-1, self.head_dim)) for part in found)
    counts = [both.shape[2] - v.shape[2], v.shape[2]]
    if "q_norm" in self._modules:
        q, k = both.split(counts, dim=2)
        both = torch.cat([self.q_norm(q), self.k_norm(k)], dim=2)
    both = cast(Tensor, _Rotation.apply(both, *position_embeddings)).transpose(1, 2)
    q, k = both.split(counts, dim=1)
    v = v.transpose(1, 2)
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, self.layer_idx)
    code = inspect.unwrap(type(self).forward)
    if "sliding_window" in code.__code__.co_names or "sliding_window" in code.__code__.co_consts:
        window = getattr(self, "sliding_window", getattr(self.config, "sliding_window", None))
        kwargs["sliding_window"] = window
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        self.config._attn_implementation, code.__globals__["eager_attention_forward"]
    )
    dropout = self.attention_dropout if self.training else 0.0
    out, pattern = attend(
        self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
    )
    return self.o_proj(out.reshape(*x.shape[:-1], -1).contiguous()), pattern


def _is_of_type(angles: Any, x: Tensor) -> bool:
    """Whether cosines and sines are those of Llama, in the type in which all is computed."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != x.dtype:
        return False
    return angles is not None and all(part.ndim == 3 and part.dtype == x.dtype for part in angles)


class _Rotation(torch.autograd.Function):
    """The rotary embedding of queries and keys [batch pos head d_head], in three operators."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(heads, (cos, sin), order=(0, 1, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        found = rotated(gradient, ctx.saved_tensors, order=(0, 1, 2, 3), transposed=True)
        return found, None, None


def _together(
    x: Float[Tensor, "*token d_in"], modules: Sequence[nn.Module], *, joined: int = 1
) -> Sequence[Tensor] | None:
    """The outputs of projections of one input, the first ``joined`` side by side.

    None if one of them is no plain projection, or their experts differ in number or settings.
    """
    parts = [_Part.of(module, x) for module in modules]
    if not all(parts):
        return None
    known = cast("list[_Part]", parts)
    kinds = {part.kind for part in known if part.layer is not None}
    if len(kinds) > 1:
        return None
    gating, cast_input = next(iter(kinds))[:2] if kinds else (None, True)
    frozen = [part.frozen for part in known]
    outputs, routings = projected_together(x, frozen, gating, joined=joined, cast_input=cast_input)
    adapted = [(index, part) for index, part in enumerate(known) if part.layer is not None]
    for (index, part), routing in zip(adapted, routings, strict=True):
        at = max(0, index - joined + 1)
        outputs[at] = part.keep(routing, outputs[at])
    return outputs


class _Part:
    """One projection among those of one input.

    Attributes:
        frozen: its weights.
        layer: the adapted projection; None if it has no experts.
        kind: what all adapted projections of the input must have in common.
    """

    def __init__(self, base: Any, layer: MoELoRALinear | None = None, adapter: str = "") -> None:
        self.layer, self.adapter = layer, adapter
        self.kind: tuple[Any, ...] = ()
        weights = None
        if layer is not None:
            weights = Weights(
                layer.moelora_router[adapter], layer.moelora_A[adapter], layer.moelora_B[adapter]
            )
            experts = layer.experts[adapter]
            cast_input = getattr(layer, "cast_input_dtype_enabled", True)
            types = [weight.dtype for weight in weights]
            config = experts.config
            gating = Gating(config.top_k, config.renormalize, config.scaling, config.r)
            self.kind = (gating, cast_input, experts.count, *types)
        self.frozen = Frozen(base.weight, base.bias, weights)

    @classmethod
    def of(cls, module: Any, x: Tensor) -> "_Part | None":
        """None for a module that has to run itself."""
        if type(module) is nn.Linear:
            return cls(module) if is_plain_projection(module, x) else None
        if type(module) is not MoELoRALinear or is_watched(module):
            return None
        names = () if module.disable_adapters else module.adapters_in_use
        ready = module.hooks is None and module.fused and len(names) < 2
        if not ready or not is_plain_projection(module.base_layer, x):
            return None
        if not names:
            return cls(module.base_layer)
        config = module.experts[names[0]].config
        if config.lora_dropout or config.router_noise:
            return None
        if module.moelora_A[names[0]].dtype not in FUSED_TYPES:
            return None
        return cls(module.base_layer, module, names[0])

    def keep(self, routing: Routing, output: Tensor) -> Tensor:
        """Record what the experts did; the output, with late gradients hung on it."""
        layer = self.layer
        assert layer is not None
        experts = layer.experts[self.adapter]
        values = routing.joint, routing.logits, routing.hidden
        routed = Routed(
            (layer.name, self.adapter), experts.config, experts.count, routing.chosen, routing.up,
            *values,
        )  # fmt: skip
        return layer.recorder.keep(routed, output)
