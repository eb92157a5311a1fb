"""The same operations in fewer passes over memory, for modules that nobody looks into.

* A gated MLP writes its activation, and the product with the other half, over its own projection:
  nothing else reads it, and fresh memory of that size is slow to get.
* An RMS norm written out in six operations reads its input once for the squares, and once more.
* A rotary embedding that turns halves of a head writes no turned copy.

A module is replaced only if the new forward gives the values of its own on a trial input; a norm
that scales by one plus its weight (Gemma's) does not, and stays.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

GATED_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
ROTARY = "apply_rotary_pos_emb"
"""What transformers' attention modules call, by its name among their file's functions."""
TRIAL_COLUMNS = 4
TRIAL_WIDTH = 8

Forward = Callable[[Tensor], Tensor]


def lighten(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace the forward of one module if it is of a known kind; its parameters stay its own.

    Args:
        dtype: what the module computes in; by default the type of its weights. In lower precision
            than float32 only what rounds in the same places is replaced.
    """
    if set(module._modules) == GATED_MLP:
        activation: Any = module._modules["act_fn"]
        if type(activation) is nn.SiLU or type(activation).__name__ == "SiLUActivation":
            _replace(module, _gated_mlp(module), width=getattr(module.gate_proj, "in_features", 0))
    elif type(module).__name__.endswith("RMSNorm"):
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if isinstance(weight, Tensor) and weight.dtype == torch.float32 and epsilon is not None:
            _replace(module, _rms_norm(weight, epsilon), width=weight.numel())
    elif ROTARY in getattr(type(module).forward, "__globals__", {}):
        _turn_in_place(module, dtype)


def _replace(module: nn.Module, forward: Forward, width: int) -> None:
    parameter = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(1, TRIAL_COLUMNS, width, generator=generator).to(parameter)
    with torch.no_grad():
        own, new = module(trial), forward(trial)
    if isinstance(own, Tensor) and own.shape == new.shape and torch.allclose(own, new, rtol=1e-5):
        module.__dict__["forward"] = forward


def _gated_mlp(module: Any) -> Forward:
    own = module.forward

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # the backward pass reads what would be written over
            return own(x)
        gate = nn.functional.silu(module.gate_proj(x), inplace=True)
        return module.down_proj(gate.mul_(module.up_proj(x)))

    return forward


def _rms_norm(weight: Tensor, epsilon: float) -> Forward:
    width = weight.numel()

    def forward(hidden_states: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return nn.functional.rms_norm(hidden_states, weight.shape, weight, epsilon)
        length = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True)
        scale = length.square_().div_(width).add_(epsilon).rsqrt_()
        return (hidden_states * scale).mul_(weight)

    return forward


def _turn_in_place(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let one attention module call ``turn_halves`` in place of its file's rotary embedding.

    The module gets its own forward with another function under that name; the file, and with it
    every other module, keeps the one it has.
    """
    forward = type(module).forward
    parameter = next(module.parameters(), None)
    if parameter is None or (dtype or parameter.dtype) != torch.float32 or forward.__closure__:
        return  # in lower precision the order of rounding matters
    own = forward.__globals__[ROTARY]
    if ROTARY not in forward.__code__.co_names or not _turns_halves(own):
        return
    names = {**forward.__globals__, ROTARY: turn_halves}
    turning = FunctionType(forward.__code__, names, argdefs=forward.__defaults__)
    turning.__kwdefaults__ = forward.__kwdefaults__
    module.__dict__["forward"] = MethodType(turning, module)


def turn_halves(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotary embedding of [row head pos d_head], the first half of a head paired with the second.

    As transformers' ``apply_rotary_pos_emb``; angles are [row pos width], and what a head has
    beyond that width stays as it is.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _turned(q, cos, sin), _turned(k, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([_turned(x[..., :width], cos, sin), x[..., width:]], dim=-1)
    half = width // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


def _turns_halves(rotary: Callable[..., Any]) -> bool:
    """Whether a function gives what ``turn_halves`` gives, on a trial."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, TRIAL_COLUMNS, TRIAL_WIDTH, generator=generator)

    given = draw(1, 4), draw(1, 2), draw(1), draw(1)
    try:
        own, new = rotary(*given), turn_halves(*given)
        pairs = list(zip(own, new, strict=True))
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)
