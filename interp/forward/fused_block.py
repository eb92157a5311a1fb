"""A Llama-like block in half the operators, for runs whose inside nobody looks at.

A sweep of a small model, and of any model in a type that is widened, spends much of its time on
passes over activations, one for every operator. Here a block takes about half of them: a norm is
one or two passes, queries and keys are rotated together, the scale of the scores is a factor of
their product, and the residual stream is added to by the products that write to it.

``fused_forward`` gives such a forward for blocks whose code is the one that it stands for: the
modules' forwards, compared with those of transformers' Llama, Mistral, Qwen2 and Qwen3. The trial
of the plain modules (``interp.forward.trial``) compares the numbers with the hooked model's.

Without gradients only. Norms alone (``fuse_norm``) are replaced in other architectures too.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from interp.forward.shared_prefix import SharedPrefix, few_queries, running_prefix
from interp.forward.widen import NARROW, SLICE
from interp.models.placement import is_dispatched
from interp.quantized import is_quantized

_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


def _code(function: Callable[..., Any]) -> tuple[Any, ...]:
    """What a function does, without its docstring."""
    code = inspect.unwrap(function).__code__
    consts = [item for item in code.co_consts if not (isinstance(item, str) and "\n" in item)]
    return code.co_code, code.co_names, code.co_varnames, tuple(map(str, consts))


_NORM = _code(llama.LlamaRMSNorm.forward)
_BLOCK = _code(llama.LlamaDecoderLayer.forward)
_MLP = _code(llama.LlamaMLP.forward)
_ATTENTION = [
    _code(attention.forward)
    for attention in (
        *(llama.LlamaAttention, mistral.MistralAttention),
        *(qwen2.Qwen2Attention, qwen3.Qwen3Attention),
    )
]
_ROTARY = [_code(llama.apply_rotary_pos_emb), _code(llama.rotate_half)]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is ``x / sqrt(mean(x²) + eps) * weight`` over the last axis."""
    return _code(type(module).forward) == _NORM


def rms_norm(x: Float[Tensor, "*batch width"], norm: Any) -> Float[Tensor, "*batch width"]:
    """What such a norm gives, in its own type.

    On a GPU in one operator; on a CPU, where torch takes the formula apart, in few passes.
    """
    weight, eps = norm.weight, norm.variance_epsilon
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return F.rms_norm(x, weight.shape, weight, eps)
    return torch.mul(x, inverse_rms(x, eps)).mul_(weight)


def inverse_rms(x: Float[Tensor, "*batch width"], eps: float) -> Float[Tensor, "*batch 1"]:
    """``1 / sqrt(mean(x²) + eps)`` over the last axis, in three operators."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    added = _scalar(eps, x.dtype, x.device)
    return torch.addcmul(added, length, length, value=1 / x.shape[-1]).rsqrt_()


@lru_cache(maxsize=64)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, ""]:
    with torch.inference_mode(mode=False):
        return torch.full((), value, dtype=dtype, device=device)


def fuse_norm(module: nn.Module) -> None:
    """Let one module object compute its norm as above, in float32 and float64.

    transformers computes a narrow type's norm in float32 and rounds in between.
    """
    plain = module.forward

    def forward(hidden_states: Tensor) -> Tensor:
        weight: Any = module.weight
        same = hidden_states.dtype == weight.dtype and weight.dtype not in NARROW
        return rms_norm(hidden_states, module) if same else plain(hidden_states)

    if is_norm(module) and "forward" not in module.__dict__:
        module.__dict__["forward"] = forward


def fused_forward(block: nn.Module) -> Callable[..., Tensor] | None:
    """A forward for a block without hooks; None if its code is not the one known here."""
    children = block._modules
    if set(children) != _PARTS or _code(type(block).forward) != _BLOCK:
        return None
    if is_dispatched(block):  # accelerate moves what the modules are given
        return None
    parts: Any = block
    attention, mlp = parts.self_attn, parts.mlp
    forward = inspect.unwrap(type(attention).forward)
    rotary = [forward.__globals__.get(n) for n in ("apply_rotary_pos_emb", "rotate_half")]
    known = (
        _code(forward) in _ATTENTION
        and all(callable(function) for function in rotary)
        and list(map(_code, rotary)) == _ROTARY  # type: ignore[arg-type]
        and _code(type(mlp).forward) == _MLP
        and is_norm(parts.input_layernorm)
        and is_norm(parts.post_attention_layernorm)
        and all(
            is_norm(getattr(attention, n)) for n in ("q_norm", "k_norm") if n in attention._modules
        )
    )
    return _FusedBlock(block) if known else None


class _FusedBlock:
    """The forward of one block. Its argument names are those of transformers' blocks.

    Keys and values of earlier positions are those of the running prefix; nothing is cached.
    """

    def __init__(self, block: Any) -> None:
        self.before_attention, self.before_mlp = (
            block.input_layernorm,
            block.post_attention_layernorm,
        )
        self.attention, self.mlp = block.self_attn, block.mlp
        self.layer: int = self.attention.layer_idx
        self.d_head: int = self.attention.head_dim

    def __call__(
        self,
        hidden_states: Float[Tensor, "row pos d_model"],
        attention_mask: Tensor | None = None,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> Float[Tensor, "row pos d_model"]:
        x = self.before_attention(hidden_states)
        heads = self._attend(x, attention_mask, *position_embeddings)
        residual = _add_product(hidden_states, heads, self.attention.o_proj)
        x = self.before_mlp(residual)
        gate, up = _products(x, (self.mlp.gate_proj, self.mlp.up_proj))
        inner = self.mlp.act_fn(gate).mul_(up)
        return _add_product(residual, inner, self.mlp.down_proj, in_place=True)

    def _attend(
        self, x: Tensor, mask: Tensor | None, cos: Tensor, sin: Tensor
    ) -> Float[Tensor, "row pos heads_d"]:
        prefix, attention = running_prefix(), self.attention
        prefix.layers_run.add(self.layer)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        both, v = _products(x, projections, joined=2)
        both, v = (part.unflatten(-1, (-1, self.d_head)) for part in (both, v))
        if "q_norm" in attention._modules:
            q, k = both.tensor_split([both.shape[2] - v.shape[2]], dim=2)
            both = torch.cat([attention.q_norm(q), attention.k_norm(k)], dim=2)
        n_keys = x.shape[1] + prefix.width
        few = few_queries(x, x.shape[1], n_keys)
        attend = self._attend_stepwise if few else self._attend_fused
        return attend(prefix, (both, v), (cos, sin), mask).flatten(2)

    def _attend_fused(
        self,
        prefix: SharedPrefix,
        heads: tuple[Tensor, Tensor],
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Float[Tensor, "row pos head d_head"]:
        both, v = heads
        n_heads = both.shape[2] - v.shape[2]
        both = rotated(both, angles, order=(0, 1, 2, 3)).transpose(1, 2)
        keys = prefix.prepend(self.layer, both[:, n_heads:], 0)
        values = prefix.prepend(self.layer, v.transpose(1, 2), 1)
        out = F.scaled_dot_product_attention(
            both[:, :n_heads],
            keys,
            values,
            attn_mask=mask,
            scale=float(self.attention.scaling),
            enable_gqa=n_heads != keys.shape[1],
        )
        return out.transpose(1, 2)

    def _attend_stepwise(
        self,
        prefix: SharedPrefix,
        heads: tuple[Tensor, Tensor],
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Float[Tensor, "row pos head d_head"]:
        """The queries of a key head and the keys side by side: products for a whole group."""
        both, v = heads
        rows, n_queries, n_groups, d_head = v.shape
        q, k = both.tensor_split([both.shape[2] - n_groups], dim=2)
        grouped = torch.cat([q.unflatten(2, (n_groups, -1)), k[:, :, :, None]], dim=3)
        both = rotated(grouped, angles, order=(2, 0, 3, 1, 4))  # [group row head pos d_head]
        keys = prefix.prepend_grouped(self.layer, both[:, :, -1], 0).flatten(0, 1)
        values = prefix.prepend_grouped(self.layer, v.permute(2, 0, 1, 3), 1).flatten(0, 1)
        queries = both[:, :, :-1].flatten(2, 3).flatten(0, 1)
        scale = float(self.attention.scaling)
        scores = torch.baddbmm(
            keys.new_empty(()), queries, keys.transpose(1, 2), beta=0, alpha=scale
        )
        shape = (n_groups, rows, -1, n_queries, scores.shape[-1])
        if mask is not None:
            scores.view(shape).add_(mask[None])
        out = torch.bmm(scores.softmax(dim=-1), values)
        by_head = out.view(n_groups, rows, -1, n_queries, d_head).permute(1, 3, 0, 2, 4)
        return by_head.flatten(2, 3)


def rotated(
    heads: Float[Tensor, "row pos *head d_head"],
    angles: tuple[Tensor, Tensor],
    *,
    order: tuple[int, ...],
) -> Tensor:
    """Rotary embedding of the heads, in halves, in memory of another order of the axes.

    Args:
        angles: cosines and sines [row pos d_head].
        order: of the axes in memory; the result has its axes in this order too.
    """
    between = (1,) * (heads.ndim - 3)
    cos, sin = (angle.view(*angle.shape[:2], *between, angle.shape[2]) for angle in angles)
    out = heads.new_empty([heads.shape[axis] for axis in order])
    shown = out.permute([order.index(axis) for axis in range(len(order))])
    torch.mul(heads, cos, out=shown)
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    shown[..., :half].addcmul_(second, sin[..., :half], value=-1)
    shown[..., half:].addcmul_(first, sin[..., half:])
    return out


def _add_product(
    residual: Float[Tensor, "row pos d_model"],
    x: Tensor,
    projection: Any,
    *,
    in_place: bool = False,
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream with a projection's output added, by the product where it is plain.

    Args:
        in_place: whether the residual may be written to.
    """
    weight = projection.weight
    fits = weight.dtype == residual.dtype or weight.numel() <= SLICE
    if _is_plain(projection) and projection.bias is None and fits:
        flat, wide = residual.flatten(0, 1), weight.to(residual.dtype).T
        add = flat.addmm_ if in_place else flat.addmm
        return add(x.flatten(0, 1), wide).view_as(residual)
    return projection(x).add_(residual)


def _is_plain(projection: Any) -> bool:
    """Whether a projection is torch's own, as it was made or as ``widen`` left it."""
    if type(projection) is not nn.Linear or is_quantized(projection):
        return False
    # Only ``widen`` replaces a linear module's forward, and only that of a narrow one.
    return (projection.weight.dtype in NARROW) == ("forward" in projection.__dict__)


def _products(
    x: Float[Tensor, "row pos d_model"], projections: Sequence[Any], *, joined: int = 1
) -> Sequence[Float[Tensor, "row pos d_out"]]:
    """What projections of one input give, the first ``joined`` of them side by side.

    Narrow weights are widened together and multiplied with in one product, where all of them are
    no larger than what ``widen`` widens at a time. Wide ones stay where they are: their products
    are written side by side.
    """
    widths = [projection.out_features for projection in projections]
    sizes = [sum(widths[:joined]), *widths[joined:]]
    biases = [projection.bias for projection in projections]
    alike = len({bias is None for bias in biases}) == 1 and all(map(_is_plain, projections))
    weights = [projection.weight for projection in projections]
    if alike and {weight.dtype for weight in weights} <= {*NARROW} and x.dtype == torch.float32:
        if sum(weight.numel() for weight in weights) <= SLICE:
            bias = None if biases[0] is None else torch.cat(biases).float()
            return F.linear(x, torch.cat(weights).float(), bias).split(sizes, dim=-1)
    elif alike and all(weight.dtype == x.dtype for weight in weights):
        flat = x.flatten(0, 1)
        side = flat.new_empty(len(flat), sizes[0])
        for part, projection in zip(side.split(widths[:joined], dim=1), projections, strict=False):
            if projection.bias is None:
                torch.mm(flat, projection.weight.T, out=part)
            else:
                torch.addmm(projection.bias, flat, projection.weight.T, out=part)
        others = [projection(x) for projection in projections[joined:]]
        return [side.view(*x.shape[:2], -1), *others]
    found = [projection(x) for projection in projections]
    side = found[0] if joined == 1 else torch.cat(found[:joined], dim=-1)
    return [side, *found[joined:]]
