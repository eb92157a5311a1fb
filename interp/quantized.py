"""Projections with quantized weights: which they are, and their weights as plain numbers.

A quantized projection keeps its weight packed: two 4-bit numbers in a byte, or 8-bit numbers with a
scale for each row. Its own forward unpacks them. ``.weight`` must not be read past that: its
entries are no weights, and often its shape is another one.

What is read here:

* bitsandbytes 4-bit (``Linear4bit``; NF4 and FP4, QLoRA, arXiv 2305.14314): blocks of 64 numbers
  with a scale each. The product is taken in the layer's ``compute_dtype``.
* bitsandbytes 8-bit (``Linear8bitLt``; LLM.int8(), arXiv 2208.07339): rows with a scale each. The
  product rounds its *inputs* to 8 bits too, except for the columns in which any token of the batch
  is large. So a token's output depends, within that rounding, on the other tokens of its batch.
* torchao: tensors that know how to dequantize themselves.

Any other kind (GPTQ, AWQ, HQQ, FP8, …) runs through its own forward, and its weights cannot be
read. None of these packages is imported here: whoever has such a model has imported it.
"""

import copy
import importlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UserError
from interp.modules import named_modules

_PACKED_NAMES = ("weight", "qweight", "W_q", "weight_packed", "packed_weight")
"""Under which the known formats keep the numbers of a projection."""


def is_packed(weight: Any) -> bool:
    """Whether a tensor holds packed numbers, with which no arithmetic is possible.

    Integers, and floating-point numbers of one byte, which need a scale; the type of a packed
    tensor may say bfloat16 too (``bnb_4bit_quant_storage``, torchao).
    """
    if not isinstance(weight, Tensor):
        return False
    kind = type(weight)
    if kind.__name__ == "Params4bit":
        return bool(getattr(weight, "bnb_quantized", True))
    if kind.__module__.startswith("torchao."):
        return True
    return not weight.is_floating_point() or weight.dtype.itemsize < 2


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a projection whose weight is packed."""
    for tensors in (module._parameters, module._buffers):
        if tensors:  # most modules of a model have none
            for name in _PACKED_NAMES:
                if name in tensors and is_packed(tensors[name]):
                    return True
    return False


def quantized_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The names and the modules of all projections with packed weights."""
    return ((name, module) for name, module in named_modules(model) if is_quantized(module))


def kind_of(module: nn.Module) -> str:
    """What a projection's quantization is called, such as ``bitsandbytes nf4``."""
    weight = module._parameters.get("weight")
    if type(weight).__name__ == "Params4bit":
        return f"bitsandbytes {getattr(weight, 'quant_type', '4-bit')}"
    if type(weight).__name__ == "Int8Params":
        return "bitsandbytes int8"
    if type(weight).__module__.startswith("torchao."):
        return f"torchao {type(weight).__name__}"
    return type(module).__name__


def quantization_of(model: nn.Module) -> str | None:
    """What all quantizations in a model are called; None if nothing is quantized."""
    kinds = sorted({kind_of(module) for _, module in quantized_modules(model)})
    return ", ".join(kinds) or None


def can_read(module: nn.Module) -> bool:
    """Whether `weight_of` knows how a projection's weight is packed."""
    weight = module._parameters.get("weight")
    known = type(weight).__name__ in ("Params4bit", "Int8Params")
    return not is_quantized(module) or known or type(weight).__module__.startswith("torchao.")


def weight_of(module: nn.Module, *, needed_by: str) -> Float[Tensor, "d_out d_in"]:
    """The weight of a linear projection as plain numbers, whether it is quantized or not.

    A quantized one is computed anew at each call, in the type that its own product has it in;
    float32 for LLM.int8().

    Args:
        needed_by: which method reads the weight, for the message, such as ``path patching``.

    Raises:
        UserError: a kind of quantization whose weights cannot be read.
    """
    weight: Any = module._parameters.get("weight")
    if not is_quantized(module):
        return cast(Tensor, module.weight)
    if type(weight).__name__ == "Params4bit":
        return _of_4bit(module, weight)
    if type(weight).__name__ == "Int8Params":
        return _of_8bit(module, weight)
    if type(weight).__module__.startswith("torchao."):
        return weight.dequantize()
    raise UserError(
        f"{needed_by} reads the weights of the model, and those of {kind_of(module)} cannot be "
        "read: load the model without quantization, or in 4 or 8 bits by bitsandbytes"
    )


def _of_4bit(module: Any, weight: Any) -> Float[Tensor, "d_out d_in"]:
    functional = importlib.import_module("bitsandbytes.functional")
    state = copy.copy(getattr(weight, "quant_state", None) or module.quant_state)
    state.dtype = getattr(module, "compute_dtype", None) or state.dtype  # as the product has them
    return functional.dequantize_4bit(weight.data, state)


def _of_8bit(module: Any, weight: Any) -> Float[Tensor, "d_out d_in"]:
    # The first forward moves the numbers and the rows' scales from the weight into the state.
    numbers = weight.CB if weight.CB is not None else module.state.CB
    scale = weight.SCB if weight.SCB is not None else module.state.SCB
    numbers = weight.data if numbers is None else numbers
    return numbers.float() * (scale.float() / 127)[:, None]


def computing_dtype(module: nn.Module) -> torch.dtype | None:
    """The type to which a quantized projection rounds its input; None if to no other than it has.

    ``int8`` for LLM.int8(), ``bfloat16`` for a 4-bit layer that computes in it.
    """
    if not is_quantized(module):
        return None
    weight = module._parameters.get("weight")
    # The second is torchao's, of weights whose inputs are quantized too.
    if type(weight).__name__ == "Int8Params" or getattr(weight, "act_quant_kwargs", None):
        return torch.int8
    found = getattr(module, "compute_dtype", None)
    return found if isinstance(found, torch.dtype) else None


def place_of(module: Any) -> tuple[torch.device, torch.dtype]:
    """A projection's device, and the type that an adapter beside it computes in.

    That is its weight's, or its compute type if it is quantized and has one, else float32.
    """
    tensors = {**module._buffers, **module._parameters}
    weight = next(tensors[name] for name in _PACKED_NAMES if tensors.get(name) is not None)
    if not is_quantized(module):
        return weight.device, weight.dtype
    rounded = computing_dtype(module)
    if rounded is not None and rounded.is_floating_point:
        return weight.device, rounded
    unrounded_type = type(weight).__module__.startswith("torchao.") and rounded is None
    return weight.device, weight.dtype if unrounded_type else torch.float32


def shared_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """A frozen parameter on the same memory; a packed one keeps what says how it is packed."""
    if type(parameter).__name__ not in ("Params4bit", "Int8Params"):
        return nn.Parameter(parameter.detach(), requires_grad=False)
    twin: Any = torch.Tensor._make_subclass(type(parameter), parameter.data, False)
    twin.__dict__.update(parameter.__dict__)
    return twin


def shared_states(model: nn.Module) -> Iterator[Any]:
    """What the packed weights of a model are unpacked by, and modules keep beside them."""
    for _, module in quantized_modules(model):
        for name in ("quant_state", "state"):
            if (state := module.__dict__.get(name)) is not None:
                yield state


def keep_precision(model: nn.Module) -> None:
    """Let bitsandbytes compute in the layers' own compute type, with gradients, on any CPU.

    On a CPU with bfloat16 instructions the first pass without gradients would pack 4-bit weights
    anew, for a kernel that always computes in bfloat16, rounds the scales to it, and gives no
    gradients from then on. LLM.int8() logs the type of its input at every product; it is said once.
    """
    for _, module in quantized_modules(model):
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.__dict__["support_avx512bf16_for_cpu"] = False
            state = getattr(module._parameters["weight"], "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                module.state_dict()  # saving unpacks, in place
    log = logging.getLogger("bitsandbytes.autograd._functions")
    if not any(isinstance(known, _Once) for known in log.filters):
        log.addFilter(_Once())


class _Once(logging.Filter):
    """Lets a message pass the first time only."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.getMessage() not in self._seen
        self._seen.add(record.getMessage())
        return new


@contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """While open, quantized projections do not round their inputs: only weights are quantized.

    Where two ways through a model are compared, the 8-bit rounding of what goes into every
    projection would otherwise hide all but the largest differences. Without gradients.
    """
    with ExitStack() as stack:
        for _, module in quantized_modules(model):
            if computing_dtype(module) not in (None, torch.float32) and can_read(module):
                stack.callback(module.register_forward_hook(_product_anew).remove)
        yield


def _product_anew(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """A forward hook: the product of the input as it is, in place of the module's own."""
    x = args[0]
    weight = weight_of(module, needed_by="the self-check").to(x.dtype)
    bias = module.bias
    return nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
