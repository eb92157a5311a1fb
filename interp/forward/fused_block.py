"""A Llama-like block in half the operators, for runs whose inside nobody looks at.

A sweep of a small model, and of any model in a type that is widened, spends much of its time on
passes over activations, one for every operator. Here a block takes about half of them: a norm is
one or two passes, queries and keys are rotated together, the scale of the scores is a factor of
their product, and the residual stream is added to by the products that write to it.

``fused_forward`` gives such a forward for blocks whose code is the one that it stands for
(``interp.forward.known_code``). The trial of the plain modules (``interp.forward.trial``) compares
the numbers with the hooked model's. Norms alone are replaced in other architectures too.

Without gradients only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.forward.known_code import is_known_block
from interp.forward.shared_prefix import SharedPrefix, few_queries, running_prefix
from interp.forward.widen import NARROW, SLICE
from interp.models.placement import is_dispatched
from interp.quantized import is_quantized


def fused_forward(block: nn.Module) -> Callable[..., Tensor] | None:
    """A forward for a block without hooks; None if its code is not the one known here."""
    # accelerate moves what the modules of a dispatched one are given
    return _FusedBlock(block) if is_known_block(block) and not is_dispatched(block) else None


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
    transposed: bool = False,
) -> Tensor:
    """Rotary embedding of the heads, in halves, in memory of another order of the axes.

    Args:
        angles: cosines and sines [row pos d_head].
        order: of the axes in memory; the result has its axes in this order too.
        transposed: multiply by the transposed matrix, as a gradient is.
    """
    between = (1,) * (heads.ndim - 3)
    cos, sin = (angle.view(*angle.shape[:2], *between, angle.shape[2]) for angle in angles)
    out = heads.new_empty([heads.shape[axis] for axis in order])
    shown = out.permute([order.index(axis) for axis in range(len(order))])
    torch.mul(heads, cos, out=shown)
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    sines, sign = (sin[..., :half], sin[..., half:]), -1
    if transposed:
        sines, sign = sines[::-1], 1
    shown[..., :half].addcmul_(second, sines[0], value=sign)
    shown[..., half:].addcmul_(first, sines[1], value=-sign)
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
