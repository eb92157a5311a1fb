"""4-bit weights that bitsandbytes has packed anew for a CPU with bfloat16 instructions.

On other CPUs its function for that is called here; only its product cannot be tried there.
"""

import copy
import importlib
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from interp.errors import UserError
from interp.models.fingerprint import fingerprint_of_model
from interp.quantized import (
    check_unpacking,
    keep_precision,
    quantized_modules,
    restore_packing,
    weight_of,
)

pytestmark = pytest.mark.bridge_only

VARIANTS = {
    "nf4": {"quant_type": "nf4", "compress_statistics": False},
    "double": {"quant_type": "nf4", "compress_statistics": True},
    "fp4": {"quant_type": "fp4", "compress_statistics": False},
}


def functional() -> Any:
    return importlib.import_module("bitsandbytes.functional")


def projection(d_out: int = 96, d_in: int = 128, **options: Any) -> Any:
    layers: Any = importlib.import_module("bitsandbytes.nn")
    made = layers.Linear4bit(d_in, d_out, bias=False, compute_dtype=torch.float32, **options)
    weight = torch.randn(d_out, d_in)
    made.weight = layers.Params4bit(weight, requires_grad=False, module=made, **options).to("cpu")
    return made.eval()


def repack(module: Any) -> None:
    """As the first pass on a CPU with bfloat16 instructions does, on any."""
    weight = module.weight
    if not getattr(weight.quant_state, "packing_format_for_cpu", False):
        pack = functional()._convert_weight_packed_for_cpu
        weight.data, weight.quant_state = pack(weight.data, weight.quant_state)


def of_rounded_scales(module: Any) -> torch.Tensor:
    """The weight before it is packed anew, with scales as bfloat16 has them, by hand."""
    exact = functional().dequantize_4bit(module.weight.data, module.weight.quant_state)
    blocks = exact.reshape(-1, 64)
    state = module.weight.quant_state
    scales = state.absmax
    if state.nested:
        scales = functional().dequantize_blockwise(scales, state.state2) + state.offset
    rounded = scales.bfloat16().float()
    return (blocks / scales[:, None] * rounded[:, None]).reshape(exact.shape)


@pytest.fixture(params=list(VARIANTS))
def module(request: pytest.FixtureRequest) -> Any:
    return projection(**VARIANTS[request.param])


def test_a_repacked_weight_is_read_as_it_is(module: Any) -> None:
    expected = of_rounded_scales(module)
    exact = weight_of(module, needed_by="the test")
    repack(module)
    found = weight_of(module, needed_by="the test")
    torch.testing.assert_close(found, expected)
    assert 1e-4 < float((found - exact).abs().max()) < 1e-2 * float(exact.abs().max())


@torch.no_grad()
def test_its_product_is_that_of_what_is_read(module: Any) -> None:
    """Where the CPU has such a product; elsewhere nothing is packed anew."""
    x = torch.randn(3, 128)
    found = module(x)
    expected = x @ weight_of(module, needed_by="the test").T
    repacked = bool(functional().has_avx512bf16())
    assert bool(getattr(module.weight.quant_state, "packing_format_for_cpu", False)) is repacked
    torch.testing.assert_close(found, expected, rtol=0, atol=0.3 if repacked else 1e-4)
    assert float(expected.abs().max()) > 10


@torch.no_grad()
def test_packing_is_restored_and_can_be_used_and_repeated(
    module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = copy.deepcopy(module.weight.data)
    repack(module)
    expected = weight_of(module, needed_by="the test")
    for _ in range(2):
        repack(module)
        with caplog.at_level(logging.WARNING):
            restore_packing(module)
        assert torch.equal(module.weight.data, before)
        assert torch.equal(weight_of(module, needed_by="the test"), expected)
        module.support_avx512bf16_for_cpu = False
        x = torch.randn(3, 128)
        torch.testing.assert_close(module(x), x @ expected.T, rtol=0, atol=1e-4)
    assert len(caplog.records) == 2
    restore_packing(module)  # nothing left to do, and nothing to say
    assert len(caplog.records) == 2


@torch.no_grad()
def test_what_is_saved_of_a_restored_weight_is_right(module: Any) -> None:
    repack(module)
    expected = weight_of(module, needed_by="the test")
    restore_packing(module)
    state = module.state_dict()
    again = projection(**VARIANTS["nf4"] | {"quant_type": module.weight.quant_type})
    levels = state["weight"]
    assert levels.dtype == torch.uint8
    again.weight.data = levels
    again.weight.quant_state = copy.copy(module.weight.quant_state)
    again.weight.quant_state.absmax = state["weight.absmax"]
    assert torch.equal(weight_of(again, needed_by="the test"), expected)


@pytest.mark.parametrize("kind", ["nf4", "double"])
@torch.no_grad()
def test_a_fingerprint_leaves_a_model_that_has_run_as_it_was(
    kind: str, load: Callable[..., Any]
) -> None:
    """bitsandbytes' own ``state_dict`` puts the scales of such a model into another order."""
    hf_model = load(kind)
    tokens = torch.randint(2, 300, (2, 7))
    exact = hf_model(input_ids=tokens).logits
    for _, one in quantized_modules(hf_model):
        repack(one)
    with_rounded = {
        name: weight_of(one, needed_by="the test") for name, one in quantized_modules(hf_model)
    }
    first = fingerprint_of_model(hf_model)
    assert fingerprint_of_model(hf_model) == first
    for name, one in quantized_modules(hf_model):
        assert torch.equal(weight_of(one, needed_by="the test"), with_rounded[name])
    keep_precision(hf_model)
    found = hf_model(input_ids=tokens).logits
    torch.testing.assert_close(found, exact, rtol=0, atol=0.2)


def test_rows_of_broken_blocks_are_right_or_refused() -> None:
    """With AVX-512 bitsandbytes takes scales of other blocks for them; nobody may go on with it."""
    module = projection(64, 96, **VARIANTS["nf4"])
    levels = torch.stack((module.weight.data >> 4, module.weight.data & 15), dim=-1).flatten()
    state = module.weight.quant_state
    by_hand = (state.code[levels.long()].reshape(-1, 64) * state.absmax[:, None]).reshape(64, 96)
    right = torch.allclose(functional().dequantize_4bit(module.weight.data, state), by_hand)
    holder = nn.ModuleDict({"inner": module})
    if right:
        check_unpacking(holder)
        assert torch.equal(weight_of(module, needed_by="the test"), by_hand)
        return
    with pytest.raises(UserError, match="unpacks the 4-bit weights of inner wrongly") as caught:
        keep_precision(holder)
    assert "\n" not in str(caught.value)


def test_a_wrong_unpacking_is_refused_on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    odd, whole = projection(64, 96, **VARIANTS["double"]), projection(**VARIANTS["nf4"])
    unpack = functional().dequantize_4bit

    def wrong(data: torch.Tensor, state: Any) -> torch.Tensor:
        return unpack(data, state).roll(1, 0)

    monkeypatch.setattr(functional(), "dequantize_4bit", wrong)
    with pytest.raises(UserError, match="rows of 96 numbers are not whole blocks of 64"):
        check_unpacking(nn.ModuleDict({"odd": odd}))
    check_unpacking(nn.ModuleDict({"whole": whole}))  # is not looked at: it costs a pass


def test_importing_peft_says_nothing_of_a_kernel() -> None:
    """In a new process: bitsandbytes warns when it is first imported, on such a CPU."""
    code = "import interp.moelora, sys; assert 'bitsandbytes' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
