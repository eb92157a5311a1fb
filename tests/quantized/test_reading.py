"""Packed weights as numbers: by hand, and as bitsandbytes multiplies with them."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from interp.errors import UserError
from interp.forward.widen import widen
from interp.precision import coarsest_dtype, dtype_of
from interp.quantized import (
    can_read,
    is_packed,
    is_quantized,
    kind_of,
    place_of,
    quantization_of,
    quantized_modules,
    shared_parameter,
    unrounded,
    weight_of,
)

pytestmark = pytest.mark.bridge_only  # bitsandbytes is in the lock of version 4 only

NAMES = {
    "nf4": "bitsandbytes nf4",
    "double": "bitsandbytes nf4",
    "bfloat16": "bitsandbytes fp4",
    "int8": "bitsandbytes int8",
}


LEVELS = torch.tensor(
    [
        *(-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0),
        *(0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1),
    ]
)
"""Of NF4, as the largest number of a block is 1 (QLoRA, appendix E)."""


def projection(load: Callable[..., Any], kind: str) -> Any:
    return load(kind).model.layers[0].mlp.up_proj


def test_a_row_of_int8_is_its_largest_value_in_127_steps() -> None:
    layers: Any = importlib.import_module("bitsandbytes.nn")
    module: Any = layers.Linear8bitLt(4, 2, bias=False, has_fp16_weights=False)
    rows = torch.tensor([[127.0, 0.0, 1.0, -3.0], [0.5, -0.25, 0.0, 0.125]])
    module.weight = layers.Int8Params(rows, requires_grad=False).to("cpu")
    # The second row's step is 0.5 / 127: −63.5 rounds to the even −64, 31.75 to 32.
    by_hand = torch.tensor([[127.0, 0.0, 1.0, -3.0], [127.0, -64.0, 0.0, 32.0]])
    by_hand[1] *= 0.5 / 127
    torch.testing.assert_close(weight_of(module, needed_by="the test"), by_hand)
    module.eval()(torch.randn(1, 4, dtype=torch.float16))  # moves numbers and scales elsewhere
    torch.testing.assert_close(weight_of(module, needed_by="the test"), by_hand)


def test_nf4_has_sixteen_levels_in_a_block(load: Callable[..., Any], plain_folder: Any) -> None:
    module = projection(load, "nf4")
    weight = weight_of(module, needed_by="the test")
    assert weight.shape == (module.out_features, module.in_features)
    block = weight.flatten()[:64]
    assert len(block.unique()) <= 16
    distance = (block[:, None] / block.abs().max() - LEVELS).abs().min(dim=1).values
    assert float(distance.max()) < 1e-4


def test_the_product_is_that_of_the_plain_weight(kind: str, load: Callable[..., Any]) -> None:
    module = projection(load, kind)
    x = torch.randn(3, 5, module.in_features)
    weight = weight_of(module, needed_by="the test").float()
    expected = nn.functional.linear(x, weight)
    close = {"bfloat16": 2e-2, "int8": 3e-2}.get(kind, 1e-5)
    with torch.no_grad():
        found = module(x)
        assert float((found - expected).abs().max()) < close * float(expected.abs().max())
        with unrounded(module):
            torch.testing.assert_close(module(x), expected, rtol=1e-2 if kind == "bfloat16" else 0,
                                       atol=1e-4)  # fmt: skip
        assert torch.equal(module(x), found)  # the context leaves nothing behind


def test_a_widened_projection_neither_rounds_nor_keeps_its_weight(
    kind: str, load: Callable[..., Any]
) -> None:
    module = projection(load, kind)
    weight = weight_of(module, needed_by="the test").float()
    packed = module.weight
    widen(module)
    x = torch.randn(2, 7, module.in_features, requires_grad=True)
    found = module(x)
    torch.testing.assert_close(found, nn.functional.linear(x, weight))
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * found.detach() @ weight)
    assert module.weight is packed


def test_what_is_quantized_and_how(kind: str, quantized: Any) -> None:
    hf_model = quantized.original_model
    assert quantization_of(hf_model) == NAMES[kind]
    found = dict(quantized_modules(hf_model))
    assert len(found) == 7 * quantized.cfg.n_layers
    assert not any("lm_head" in name or "norm" in name for name in found)
    assert dtype_of(quantized) == torch.float32
    rounded = {"bfloat16": torch.bfloat16, "int8": torch.int8}
    assert coarsest_dtype(quantized) == rounded.get(kind, torch.float32)
    assert quantization_of(nn.Linear(3, 4)) is None


def test_packed_numbers_may_call_themselves_bfloat16(load: Callable[..., Any]) -> None:
    """FSDP wants one type for all weights; then four packed numbers are said to be a bfloat16."""
    hf_model = load("nf4", bnb_4bit_quant_storage=torch.bfloat16)
    module = hf_model.model.layers[0].mlp.up_proj
    assert module.weight.dtype == torch.bfloat16
    assert is_packed(module.weight)
    usual = weight_of(projection(load, "nf4"), needed_by="the test")
    assert torch.equal(weight_of(module, needed_by="the test"), usual)


def test_an_adapter_is_in_the_compute_type(kind: str, load: Callable[..., Any]) -> None:
    expected = torch.bfloat16 if kind == "bfloat16" else torch.float32
    assert place_of(projection(load, kind)) == (torch.device("cpu"), expected)
    assert place_of(nn.Linear(3, 4).half())[1] == torch.float16


def test_a_shared_parameter_is_the_same_memory(kind: str, load: Callable[..., Any]) -> None:
    weight = projection(load, kind).weight
    twin = shared_parameter(weight)
    assert type(twin) is type(weight)
    assert twin is not weight
    assert twin.data_ptr() == weight.data_ptr()
    assert twin.__dict__.keys() == weight.__dict__.keys()
    plain = nn.Parameter(torch.randn(2, 2))
    assert shared_parameter(plain).data_ptr() == plain.data_ptr()
    assert not shared_parameter(plain).requires_grad


class GptqLike(nn.Module):
    """As such kernels are: packed integers under another name, and no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 4
        self.register_buffer("qweight", torch.zeros(1, 4, dtype=torch.int32))


def test_a_kind_that_cannot_be_read_names_the_method() -> None:
    module = GptqLike()
    assert is_quantized(module)
    assert not can_read(module)
    with pytest.raises(UserError, match=r"^path patching reads the weights .* of GptqLike cannot"):
        weight_of(module, needed_by="path patching")
    with pytest.raises(NotImplementedError, match="GptqLike"):
        widen(module)
    assert kind_of(module) == "GptqLike"


def test_what_is_plain_is_left_alone() -> None:
    """Neither masks nor counters are packed weights."""
    module = nn.BatchNorm1d(3)
    module.register_buffer("bias_mask", torch.ones(2, 2, dtype=torch.bool))
    assert not is_quantized(module)
    linear = nn.Linear(3, 4)
    assert not is_quantized(linear)
    assert weight_of(linear, needed_by="the test") is linear.weight
    assert is_quantized(nn.Linear(3, 4).to(torch.float8_e4m3fn))
