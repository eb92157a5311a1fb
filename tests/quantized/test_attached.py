"""What is attached to a quantized model does what ``constrain`` does on the hooked one."""

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
