"""Logits of some tokens without those of all others."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import Gemma2ForCausalLM

from interp.forward.batch import TokenBatch
from interp.forward.few_logits import ends_in_unembedding, run_for_logits
from interp.forward.prompts import call_positions
from tests.attached.architectures import SPECIES, make

TOKENS = torch.tensor([[5, 9, 7, 8, 30, 31], [40, 41, 42, 43, 44, 45]])
ROWS, POSITIONS = torch.tensor([0, 0, 1]), torch.tensor([1, 3, 0])


@pytest.fixture(params=list(SPECIES))
def hf_model(request: pytest.FixtureRequest, plain_tokenizer: Any) -> Any:
    return make(request.param, plain_tokenizer)


@torch.no_grad()
def test_they_are_those_of_the_whole_pass(hf_model: Any) -> None:
    """Gemma 2 caps its logits behind the unembedding."""
    expected = hf_model(input_ids=TOKENS).logits[:, 2:]
    widths: list[int] = []
    unembedding = hf_model.get_output_embeddings()
    note: Callable[..., None] = lambda _, args, output: widths.append(output[..., 0].numel())  # noqa: E731
    assert ends_in_unembedding(hf_model) is not isinstance(hf_model, Gemma2ForCausalLM)
    batch = TokenBatch.from_padded(TOKENS)
    run = partial(call_positions, hf_model, batch, torch.arange(2), keep=4)
    with unembedding.register_forward_hook(note):
        logits_of = run_for_logits(hf_model, run)
        found = logits_of(ROWS, POSITIONS)
    torch.testing.assert_close(found, expected[ROWS, POSITIONS], rtol=0, atol=1e-5)
    # Two last positions and three tokens, or all kept positions of both.
    assert widths == ([8] if isinstance(hf_model, Gemma2ForCausalLM) else [2, 3])


def test_a_model_without_an_unembedding_computes_all(hf_factory: Any, plain_tokenizer: Any) -> None:
    hf_model = hf_factory("llama", plain_tokenizer)
    hf_model.get_output_embeddings = lambda: None
    assert not ends_in_unembedding(hf_model)
    logits = torch.randn(2, 4, 7)
    found = run_for_logits(hf_model, lambda: logits)(ROWS, POSITIONS)
    assert torch.equal(found, logits[ROWS, POSITIONS])
