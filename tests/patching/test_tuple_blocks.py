"""Models whose blocks return tuples: parts of them are left out of a run all the same."""

from typing import Any

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM

from interp.models import from_hf
from interp.models.model_check import check_of
from interp.patching import LogitDifference, TokenBatch, patch_paths
from tests.models.test_native_attention import NAMES, TOKENIZER, gptj

pytestmark = pytest.mark.bridge_only

CLEAN, CORRUPTED = [5, 20, 21, 22, 16, 30], [5, 20, 21, 23, 16, 30]
ANSWER, WRONG = 40, 44


def falcon() -> Any:
    """One key for all heads, attention and MLP side by side, and a sum in place."""
    torch.manual_seed(0)
    config = FalconConfig(
        **NAMES, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2
    )
    config._attn_implementation = "eager"
    return FalconForCausalLM(config).eval()


PARTS = {  # final norm, and the output projection's weight [d_model d_model] of a layer
    "gptj": (
        gptj,
        lambda model: model.transformer.ln_f,
        lambda model, layer: model.transformer.h[layer].attn.out_proj.weight,
    ),
    "falcon": (
        falcon,
        lambda model: model.transformer.ln_f,
        lambda model, layer: model.transformer.h[layer].self_attention.dense.weight,
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_direct_path_is_what_a_head_adds_to_the_last_residual(name: str) -> None:
    """Effect of head h: logits of norm(r + W_O's columns of h · Δz_h), less those of norm(r)."""
    make, final_norm, out_weight = PARTS[name]
    plain, values = make(), []
    for ids in (CLEAN, CORRUPTED):
        seen: dict[Any, torch.Tensor] = {}

        def keep(key: Any, into: dict[Any, torch.Tensor] = seen) -> Any:
            return lambda module, args: into.update({key: args[0].clone()})

        handles = [final_norm(plain).register_forward_pre_hook(keep("residual"))]
        for layer in range(2):
            block = plain.transformer.h[layer]
            attention = block.attn.out_proj if name == "gptj" else block.self_attention.dense
            handles.append(attention.register_forward_pre_hook(keep(layer)))
        with torch.no_grad():
            plain(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        values.append(seen)
    clean, corrupted = values

    def metric(residual: torch.Tensor) -> float:
        logits = plain.lm_head(final_norm(plain)(residual))[0, -1]
        return float(logits[ANSWER] - logits[WRONG])

    right = torch.zeros(2, 4)
    with torch.no_grad():
        bare = metric(corrupted["residual"])
        for layer in range(2):
            change = (clean[layer] - corrupted[layer]).unflatten(-1, (4, 8))
            weight = out_weight(plain, layer).unflatten(1, (4, 8))
            for head in range(4):
                write = change[:, :, head] @ weight[:, head].T
                right[layer, head] = metric(corrupted["residual"] + write) - bare
    assert float(right.abs().max()) > 0.05

    model = from_hf(make(), TOKENIZER)
    assert set(check_of(model).tuple_outputs) == {2}
    found = patch_paths(
        model,
        TokenBatch.from_lists([CLEAN]),
        TokenBatch.from_lists([CORRUPTED]),
        LogitDifference(torch.tensor([ANSWER]), torch.tensor([WRONG])),
        progress=False,
    )
    torch.testing.assert_close(found.values[0], right, rtol=0, atol=1e-5)
