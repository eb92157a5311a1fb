"""Does a module compute the same with another class? Values and gradients, on random inputs."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from interp.forward.known_code import is_known_attention
from interp.forward.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""How far apart two tensors may be, of their length; in other types the classes stay."""
_TENSOR_CORES = 5e-3
"""The same in float32 where products on a GPU keep ten bits of each factor."""
_CANNOT = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError)
_N_TOKENS = 8


def computes_the_same(module: nn.Module, plain: type[nn.Module], other: type[nn.Module]) -> bool:
    """Whether a module gives equal numbers with both classes; it has ``plain`` afterwards.

    The inputs are of the width and type of its weights, and its up-projections are random ones. The
    random numbers that follow are those that would have followed anyway.
    """
    weight = next(iter(module.parameters()), None)
    if weight is None or weight.dtype not in _TOLERANCE or weight.device.type == "meta":
        return False
    devices = [weight.device] if weight.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            found, expected = (_numbers(module, kind) for kind in (other, plain))
    except _CANNOT as error:
        if is_out_of_memory(error):
            raise
        logger.info("%s cannot run with another class: %s", plain.__name__, error)
        return False
    finally:
        module.__class__ = plain
    allowed = _tolerance(weight)
    return len(found) == len(expected) and all(
        _close(*pair, allowed) for pair in zip(found, expected, strict=True)
    )


def _tolerance(weight: Tensor) -> float:
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    if dtype == torch.float32 and kind == "cuda":
        exact = torch.get_float32_matmul_precision() == "highest"
        return _TOLERANCE[dtype] if exact else _TENSOR_CORES
    return max(_TOLERANCE.get(dtype, 0.0), _TOLERANCE[weight.dtype])


def _close(found: Tensor | None, expected: Tensor | None, allowed: float) -> bool:
    if found is None or expected is None:
        return found is expected
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    difference = (found.float() - expected.float()).norm()
    return bool(difference <= allowed * expected.float().norm())  # never true of NaN


def _numbers(module: nn.Module, kind: type[nn.Module]) -> list[Tensor | None]:
    """The output, and the gradients of input and trained weights, from the same random numbers."""
    module.__class__ = kind
    torch.manual_seed(0)
    weight = next(module.parameters())
    x = torch.randn(1, _N_TOKENS, _width(module), dtype=weight.dtype, device=weight.device)
    x.requires_grad_()
    trained = {
        name: _like(name, value) for name, value in module.named_parameters() if value.requires_grad
    }
    kwargs: dict[str, Any] = {}
    if is_known_attention(module):
        half = torch.rand(1, _N_TOKENS, _d_head(module) // 2, device=x.device) * 6
        angles = torch.cat([half, half], dim=-1)
        kwargs = {
            "position_embeddings": (angles.cos().to(x.dtype), angles.sin().to(x.dtype)),
            "attention_mask": None,
        }
    output = functional_call(module, trained, (x,), kwargs)
    output = output[0] if isinstance(output, tuple) else output
    torch.manual_seed(1)
    wanted = [x, *trained.values()]
    gradients = torch.autograd.grad(output, wanted, torch.randn_like(output), allow_unused=True)
    return [output.detach(), *gradients]


def _like(name: str, value: Tensor) -> Tensor:
    """A trained weight, or a random one in place of up-projections, which begin as zero."""
    new = torch.randn_like(value) * 0.1 if "moelora_B" in name else value.detach().clone()
    return new.requires_grad_()


def _width(module: Any) -> int:
    """The size of what a norm, attention or an MLP takes."""
    for name in ("q_proj", "gate_proj"):
        if name in module._modules:
            return int(module._modules[name].in_features)
    return int(module.weight.shape[-1])


def _d_head(module: Any) -> int:
    return int(module.head_dim)
