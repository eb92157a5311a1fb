"""OLMo clips queries, keys and values in place: they are kept as the hook points show them."""

from typing import Any

import pytest
import torch
from transformers import OlmoConfig, OlmoForCausalLM

from interp.errors import UserError
from interp.forward.hook_points import hook_name
from interp.forward.partial import record_run
from interp.models import HookedModel, from_hf
from interp.patching import patch
from tests.patching.prompts import CLEAN, CORRUPTED, METRIC


@pytest.fixture(scope="module")
def olmo(plain_tokenizer: Any) -> HookedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        **{"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "clip_qkv": 0.2},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0},
    }
    config = OlmoConfig(**sizes, initializer_range=0.3)
    return from_hf(OlmoForCausalLM(config).eval(), plain_tokenizer, spec="tiny-olmo")


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_values_are_kept_as_they_were_shown(component: str, olmo: HookedModel) -> None:
    run = record_run(olmo, CLEAN, keep=(component,))
    shown: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor, hook: Any, layer: int) -> None:
        shown[layer] = value.detach().clone()

    hooks = [
        (hook_name(component, layer), lambda value, hook, layer=layer: keep(value, hook, layer))
        for layer in range(2)
    ]
    with torch.no_grad(), olmo.hooks(fwd_hooks=hooks):
        olmo(CLEAN.tokens)
    expected = torch.stack([shown[0], shown[1]])
    assert float(expected.abs().max()) > 0.2  # some would be clipped
    torch.testing.assert_close(run.values[component], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["attribution", "ig"])
def test_their_gradients_are_refused(method: Any, olmo: HookedModel) -> None:
    with pytest.raises(UserError, match=r"changes 'q' in place.*use method 'exact'"):
        patch(olmo, CLEAN, CORRUPTED, METRIC, component="q", method=method, progress=False)
