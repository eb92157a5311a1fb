"""Rotary embeddings that depend on the length of the prompt: refused where prompts would differ."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from interp.errors import UserError
from interp.forward.partial import record_run
from interp.models import HookedModel, from_hf
from interp.models.limits import positions_of_model
from interp.patching import LogitDifference, TokenBatch, patch

LIMIT = 16
SIZES: dict[str, Any] = {
    **{"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
}


def longrope() -> Any:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0, 4.0, 5.0, 6.0]}
    config = Phi3Config(
        **SIZES,
        max_position_embeddings=64,
        original_max_position_embeddings=LIMIT,
        rope_parameters={
            **{"rope_type": "longrope", "rope_theta": 10000.0, **factors},
            "original_max_position_embeddings": LIMIT,
        },
    )
    return Phi3ForCausalLM(config)


def dynamic() -> Any:
    parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config = LlamaConfig(**SIZES, max_position_embeddings=LIMIT, rope_parameters=parameters)
    return LlamaForCausalLM(config)


@pytest.fixture
def hooked(plain_tokenizer: Any) -> Callable[[Callable[[], Any]], HookedModel]:
    def make(of: Callable[[], Any]) -> HookedModel:
        torch.manual_seed(0)
        return from_hf(of().eval(), plain_tokenizer, spec="tiny")

    return make


def prompts(*lengths: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(1)
    return TokenBatch.from_lists(
        [torch.randint(1, 60, (length,), generator=generator).tolist() for length in lengths]
    )


def alone(model: HookedModel, batch: TokenBatch) -> torch.Tensor:
    """The last logits of each prompt, by transformers, without any padding."""
    rows = [tokens[mask] for tokens, mask in zip(batch.tokens, batch.mask, strict=True)]
    with torch.no_grad():
        return torch.stack([model.original_model(row[None]).logits[0, -1] for row in rows])


def test_longrope_prompts_on_one_side_of_the_limit_are_right(hooked: Any) -> None:
    model = hooked(longrope)
    assert positions_of_model(model.original_model).rotary == LIMIT
    for lengths in ((5, LIMIT), (LIMIT + 1, 30)):
        batch = prompts(*lengths)
        run = record_run(model, batch, start=4)
        torch.testing.assert_close(run.logits, alone(model, batch), atol=1e-4, rtol=1e-4)
        assert run.start == (0 if max(lengths) > LIMIT else 4)


def test_longrope_prompts_on_both_sides_are_refused(hooked: Any) -> None:
    metric = LogitDifference(torch.tensor([1, 2]), torch.tensor([3, 4]))
    with pytest.raises(UserError, match="run those of 12 and of 24 tokens apart"):
        patch(hooked(longrope), prompts(12, 24), prompts(12, 24), metric, progress=False)


def test_dynamic_prompts_beyond_the_limit_are_refused(hooked: Any) -> None:
    model = hooked(dynamic)
    batch = prompts(9, LIMIT)
    run = record_run(model, batch)
    torch.testing.assert_close(run.logits, alone(model, batch), atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="more than 16 tokens, and one has 17: shorten it"):
        record_run(model, prompts(LIMIT + 1))


def test_other_rotary_embeddings_have_no_such_limit(tiny_llama: HookedModel) -> None:
    assert positions_of_model(tiny_llama.original_model).rotary is None
