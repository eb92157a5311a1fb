"""What is attached to a quantized model does what ``constrain`` does on the hooked one."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

import interp
from interp.attached import attach
from interp.models import HookedModel
from tests.attached.test_equality import SPANS, UNDER, greedy, real_logits

pytestmark = pytest.mark.bridge_only


def test_it_equals_the_hooked_model(
    kind: str, load: Callable[..., Any], quantized: HookedModel, plain_tokenizer: Any
) -> None:
    """LLM.int8() finds outliers by a threshold: rounding decides about them."""
    plain = load(kind)
    free = real_logits(plain)
    with interp.constrain(quantized, UNDER, at=SPANS):
        expected = real_logits(quantized.original_model)
        said = greedy(quantized.original_model)
    with attach(plain, plain_tokenizer, UNDER, at=SPANS):
        found, answers = real_logits(plain), greedy(plain)
    close = 1e-4 if kind in ("nf4", "double") else 0.05 * float((expected - free).abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=close)
    assert float((found - free).abs().max()) > 0.05
    if kind in ("nf4", "double"):
        assert torch.equal(answers, said)


def test_it_acts_on_weights_that_are_packed_anew(
    load: Callable[..., Any], plain_tokenizer: Any
) -> None:
    """As transformers runs 4-bit weights where the CPU has bfloat16 instructions."""
    functional: Any = importlib.import_module("bitsandbytes.functional")
    exact, plain = load("nf4"), load("nf4")
    for module in plain.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = functional.has_avx512bf16()
    free = real_logits(exact)
    with attach(exact, plain_tokenizer, UNDER, at=SPANS):
        expected = real_logits(exact)
    first = real_logits(plain)
    with attach(plain, plain_tokenizer, UNDER, at=SPANS):
        found = real_logits(plain)
    effect = float((expected - free).abs().max())
    torch.testing.assert_close(found - first, expected - free, rtol=0, atol=0.1 * effect)
    assert torch.equal(real_logits(plain), first)
