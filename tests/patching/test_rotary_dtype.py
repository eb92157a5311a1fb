"""Rotary embeddings in float32 beside weights in half precision, as OLMo has them."""

import pytest
import torch

from interp.models import from_hf
from interp.patching import last_logits, patch
from tests.zoo.registry import ZOO
from tests.zoo.specimen import CLEAN, CORRUPTED, batch, metric
from tests.zoo.words import make_tokenizer


@pytest.mark.bridge_only
@pytest.mark.parametrize("name", ["OLMo", "OLMo 2"])
def test_queries_have_the_type_of_the_values(name: str) -> None:
    tokenizer, given = make_tokenizer(), (batch(CLEAN), batch(CORRUPTED), metric())
    model = from_hf(ZOO[name].make().bfloat16(), tokenizer)
    same_weights = from_hf(ZOO[name].make().bfloat16().float(), tokenizer)
    with torch.no_grad():
        expected = ZOO[name].make().bfloat16()(input_ids=torch.tensor([CLEAN])).logits[0, -1]
    logits = last_logits(model, batch(CLEAN))[0].float()
    assert torch.allclose(logits, expected.float(), atol=0.05 * float(expected.abs().max()))
    for component in ("z", "q"):
        found = patch(model, *given, component=component, progress=False).values
        wide = patch(same_weights, *given, component=component, progress=False).values
        assert float(wide.abs().max()) > 0.01
        assert float((found - wide).abs().max()) < 0.05 * float(wide.abs().max())
