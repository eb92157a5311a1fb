"""The norm of Llama-like models in few operators, forward and backward.

``x / sqrt(mean(x²) + eps) * weight`` takes transformers' modules six operators forward and a dozen
backward. On a GPU torch has one kernel for each direction; on a CPU it takes the formula apart, and
so five operators each are written out here. With ``n = x / sqrt(mean(x²) + eps)`` and ``g`` the
gradient times the weight, the gradient of x is ``(g - n mean(g n)) / sqrt(mean(x²) + eps)``.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from interp.forward.known_code import is_norm
from interp.forward.widen import NARROW


def rms_norm(x: Float[Tensor, "*batch width"], norm: Any) -> Float[Tensor, "*batch width"]:
    """What such a norm gives, in its own type."""
    weight, eps = norm.weight, norm.variance_epsilon
    trained = torch.is_grad_enabled() and weight.requires_grad
    if x.device.type != "cpu" or trained:
        return F.rms_norm(x, weight.shape, weight, eps)
    if x.dtype in NARROW or (torch.is_grad_enabled() and x.requires_grad):
        return cast(Tensor, _Norm.apply(x, weight, eps))
    return torch.mul(x, inverse_rms(x, eps)).mul_(weight)


def inverse_rms(x: Float[Tensor, "*batch width"], eps: float) -> Float[Tensor, "*batch 1"]:
    """``1 / sqrt(mean(x²) + eps)`` over the last axis, in three operators."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    added = torch.tensor(eps, dtype=x.dtype, device=x.device)
    return torch.addcmul(added, length, length, value=1 / x.shape[-1]).rsqrt_()


class _Norm(torch.autograd.Function):
    """In float32 whatever the type, and rounded once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float() if x.dtype in NARROW else x
        scale = inverse_rms(wide, eps)
        normed = wide * scale
        ctx.save_for_backward(normed, scale, weight)
        return (normed * weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        normed, scale, weight = ctx.saved_tensors
        scaled = gradient * weight if normed.dtype == gradient.dtype else gradient.float() * weight
        along = (scaled * normed).mean(dim=-1, keepdim=True)
        found = scaled.addcmul_(normed, along, value=-1).mul_(scale)
        return found.to(gradient.dtype), None, None


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
