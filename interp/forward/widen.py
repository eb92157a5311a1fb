"""Modules that compute in float32 although their weights are kept in fewer bits.

A weight in bfloat16 or float16 is a float32 number that happens to have few bits. Most of the
rounding of a forward pass in bfloat16 is that of its *activations*, after every operation. With
activations in float32 and each weight widened for the moment of its use, memory for weights stays
what it is, and the numbers are those of the float32 model of the same weights. On a CPU without
instructions for bfloat16 it is also several times faster: widening a matrix costs a pass over it,
the product in bfloat16 has to be emulated.

Quantized projections are widened likewise: their weights are dequantized for the moment of their
use, and neither their inputs nor their products are rounded (`interp.quantized`).
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.models.placement import own_weights, run_aligned
from interp.quantized import can_read, is_quantized, kind_of, weight_of

NARROW = (torch.bfloat16, torch.float16)
SLICE = 2**24
"""Weights of a large projection that are widened at a time, and of the largest table that is
widened whole: 64 MiB."""

Forward = Callable[..., Any]
WeightOf = Callable[[], Tensor]


def is_narrow(module: nn.Module) -> bool:
    """Whether a module has weights of its own, of fewer bits than float32."""
    return any(getattr(weight, "dtype", None) in NARROW for weight in module._parameters.values())


def widen(module: nn.Module) -> None:
    """Let one module object compute in float32; its matrices stay the very ones it has.

    Vectors (norms, biases) are widened once, as copies of this object's own.

    Raises:
        NotImplementedError: a quantized projection whose weights cannot be read.
    """
    if is_quantized(module):
        _widen_quantized(module)
        return
    if not is_narrow(module):
        return
    parameters = dict(module._parameters)
    for name, weight in parameters.items():
        if weight is not None and weight.ndim < 2 and weight.dtype in NARROW:
            parameters[name] = nn.Parameter(weight.detach().float(), requires_grad=False)
    module.__dict__["_parameters"] = parameters
    if not is_narrow(module):
        return
    forward = _bare_forward(module)
    if type(module) is nn.Linear:
        as_made: WeightOf = lambda: module.weight  # noqa: E731
        wide: Forward = lambda input: wide_linear(  # noqa: E731
            input, as_made, module.bias, module
        )
    elif type(module) is Conv1D:
        turned: WeightOf = lambda: module.weight.T  # noqa: E731
        wide = lambda x: wide_linear(x, turned, module.bias, module)  # noqa: E731
    elif isinstance(module, nn.Embedding) and module.weight.numel() > SLICE:
        # Rows are looked up first: not the whole vocabulary is widened for a few tokens.
        wide = lambda *args, **kwargs: forward(*args, **kwargs).float()  # noqa: E731
    else:
        wide = _with_wide_weights(module)
    # Outermost: weights that are fetched are there before they are widened.
    module.__dict__["forward"] = run_aligned(module, functools.wraps(forward)(wide))


def _bare_forward(module: nn.Module) -> Forward:
    """The module's forward, without accelerate's hook around it."""
    return (
        module.forward
        if "_hf_hook" not in module.__dict__
        else type(module).forward.__get__(module)
    )


def _widen_quantized(module: nn.Module) -> None:
    if not can_read(module):
        raise NotImplementedError(f"weights of {kind_of(module)}, which cannot be read")
    weight = partial(weight_of, module, needed_by="a sweep in float32")
    given: Any = module.bias
    bias = None if given is None else given.detach().float()
    wide: Forward = lambda x: wide_linear(x, weight, bias)  # noqa: E731
    module.__dict__["forward"] = run_aligned(module, functools.wraps(_bare_forward(module))(wide))


def wide_linear(
    x: Tensor, weight: WeightOf, bias: Tensor | None, module: nn.Module | None = None
) -> Tensor:
    """``torch.nn.functional.linear`` in float32; the weight that ``weight()`` gives may be narrow.

    A pass with gradients asks for the weight again on the way back, and keeps none; if ``module``,
    whose weight it is, is offloaded, it is fetched again too. Gradients are those of ``x``: weights
    are frozen.
    """
    x = x.float()
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, _WideProduct.apply(x, weight, bias, module))
    return _product(x, weight(), bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # TransformerLens gives an unembedding a bias that is no parameter of it.
    bias = None if bias is None else bias.float()
    step = max(1, SLICE // weight.shape[1])
    if len(weight) <= step:
        return nn.functional.linear(x, weight.float(), bias)
    parts = [nn.functional.linear(x, some.float()) for some in weight.split(step)]
    out = torch.cat(parts, dim=-1)
    return out if bias is None else out + bias


class _WideProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: WeightOf, bias: Tensor | None, module: nn.Module | None
    ) -> Tensor:
        ctx.weight, ctx.module = weight, module
        return _product(x, weight(), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        with nullcontext() if ctx.module is None else own_weights(ctx.module):
            return grad_outputs[0] @ ctx.weight().float(), None, None, None


def _with_wide_weights(module: nn.Module) -> Forward:
    """The module's own forward, in which every weight is widened while it runs."""
    narrow_forward = _bare_forward(module)
    narrow = module._parameters

    def forward(*args: Any, **kwargs: Any) -> Any:
        wide = {
            name: weight.float() if weight is not None and weight.dtype in NARROW else weight
            for name, weight in narrow.items()
        }
        module.__dict__["_parameters"] = wide
        try:
            return narrow_forward(*args, **kwargs)
        finally:
            module.__dict__["_parameters"] = narrow

    return forward


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """On a GPU, products of float32 may keep ten bits of each factor while the context is open.

    Weights widened from bfloat16 lose nothing by it, activations keep eight times finer steps than
    bfloat16's, and a product takes a fraction of the time of one in full float32.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
