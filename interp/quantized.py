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
    state = copy.copy(_state_of(module))
    dtype = getattr(module, "compute_dtype", None) or state.dtype  # as the product has them
    if _is_repacked(state):
        return _values_of_4bit(_levels_of_repacked(weight.data, state), state).to(dtype)
    state.dtype = dtype
    return functional.dequantize_4bit(weight.data, state)


def _state_of(module: Any) -> Any:
    """What a 4-bit projection's weight is unpacked by."""
    return getattr(module.weight, "quant_state", None) or module.quant_state


def _modules_of_4bit(model: nn.Module) -> Iterator[tuple[str, Any, Any]]:
    """The name, the module and the state of all 4-bit projections of bitsandbytes."""
    for name, module in quantized_modules(model):
        if type(module._parameters.get("weight")).__name__ == "Params4bit":
            yield name, module, _state_of(module)


def _is_repacked(state: Any) -> bool:
    """Whether bitsandbytes has packed a weight anew for a CPU with bfloat16 instructions."""
    return bool(getattr(state, "packing_format_for_cpu", False))


_ROWS = 32
"""That are interleaved in a repacked weight."""


def _levels(data: Tensor) -> Tensor:
    """The 4-bit numbers of a weight as bitsandbytes stores it, the high half of a byte first."""
    numbers = data.reshape(-1).view(torch.uint8)
    return torch.stack((numbers >> 4, numbers & 15), dim=1).flatten()


def _levels_of_repacked(data: Tensor, state: Any) -> Tensor:
    """The same numbers, of a repacked weight.

    There a group of 32 rows lies column by column, in runs of 64 numbers, two columns of each row
    side by side; a byte holds a number of the first half of a run (low) and one of the second.
    """
    d_out, d_in = state.shape
    numbers = data.reshape(-1, _ROWS)
    runs = torch.cat((numbers & 15, numbers >> 4), dim=1)
    pairs = runs.reshape(d_out // _ROWS, d_in // 2, _ROWS, 2)
    return pairs.transpose(1, 2).flatten()


def _scales_of_4bit(state: Any) -> Tensor:
    """The scale of each block, in the order of the numbers, whether scales are quantized or not."""
    if _is_repacked(state):
        return state.absmax.T.reshape(-1).float()
    if not state.nested:
        return state.absmax.float()
    functional = importlib.import_module("bitsandbytes.functional")
    return functional.dequantize_blockwise(state.absmax, state.state2).float() + state.offset


def _values_of_4bit(levels: Tensor, state: Any) -> Float[Tensor, "d_out d_in"]:
    """Each number's level times its block's scale: what dequantizing means, in plain torch."""
    scales = _scales_of_4bit(state).repeat_interleave(state.blocksize)[: len(levels)]
    return (state.code.float()[levels.long()] * scales).reshape(state.shape)


def restore_packing(model: nn.Module) -> None:
    """Bring 4-bit weights back into bitsandbytes' usual layout, where it has left that, in place.

    On a CPU with bfloat16 instructions a projection's first pass without gradients packs its weight
    anew, with scales rounded to bfloat16. bitsandbytes' own way back, which any ``state_dict()``
    takes, leaves the scales of a weight without double quantization in the wrong order (seen with
    0.50.2), so that the model and what is saved of it are wrong from then on. Here the numbers and
    the rounded scales stay as they are; scales are not quantized any more.
    """
    found = _modules_of_4bit(model)
    repacked = [(module, state) for _, module, state in found if _is_repacked(state)]
    for module, state in repacked:
        pairs = _levels_of_repacked(module.weight.data, state).reshape(-1, 2)
        data = ((pairs[:, 0] << 4) | pairs[:, 1]).reshape(state.original_qshape)
        module.weight.data = data.view(getattr(state, "original_storage_type", None) or torch.uint8)
        state.absmax, state.nested = _scales_of_4bit(state), False
        state.dtype, state.packing_format_for_cpu = state.original_dtype, False
    if repacked:
        logging.getLogger(__name__).warning(
            "bitsandbytes rounded the scales of the 4-bit weights to bfloat16 when the model first "
            "ran on this CPU: for exact ones, and the fingerprint of before, load the model anew"
        )


def check_unpacking(model: nn.Module) -> None:
    """Raise UserError where this CPU's bitsandbytes unpacks 4-bit weights wrongly.

    With AVX-512 it does for rows that do not consist of whole blocks (seen with 0.50.2; rows of 96
    and blocks of 64, say): such a model would run, and answer with other weights.
    """
    seen: set[tuple[int, ...]] = set()
    for name, module, state in _modules_of_4bit(model):
        weight = module.weight
        whole = weight.device.type != "cpu" or state.shape[-1] % state.blocksize == 0
        if whole or _is_repacked(state) or tuple(state.shape) in seen:
            continue
        seen.add(tuple(state.shape))
        expected = _values_of_4bit(_levels(weight.data), state)
        if not torch.allclose(_of_4bit(module, weight).float(), expected, 1e-2, 1e-6):
            raise UserError(
                f"bitsandbytes on this CPU unpacks the 4-bit weights of {name} wrongly, since its "
                f"rows of {state.shape[-1]} numbers are not whole blocks of {state.blocksize}: "
                "load the model in 8 bits, without quantization, or on a GPU"
            )


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
    gradients from then on (see `restore_packing`). LLM.int8() logs the type of its input at every
    product; it is said once.

    Raises:
        UserError: a model whose weights this CPU's bitsandbytes unpacks wrongly.
    """
    restore_packing(model)
    for _, module in quantized_modules(model):
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.__dict__["support_avx512bf16_for_cpu"] = False
    check_unpacking(model)
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
