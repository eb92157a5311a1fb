"""Experts on the unembedding, which sees some positions only; models with an encoder."""

from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from interp.errors import UserError
from interp.experts.routing.collect import CollectSettings, collect_routing
from interp.experts.routing.corpus import LabelledCorpus, LabelledText
from interp.moelora import MoELoRAConfig
from interp.moelora.auxiliary import expert_load
from interp.moelora.losses import expert_share
from interp.moelora.training.answer_logits import logits_at


@pytest.fixture
def adapted() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        **{"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "pad_token_id": 0},
    }
    config = LlamaConfig(**sizes)
    targets = ["q_proj", "lm_head"]
    settings = MoELoRAConfig(target_modules=targets, num_experts=4, top_k=2, contrastive_weight=0.0)
    return peft.get_peft_model(LlamaForCausalLM(config), settings).train()


def test_padding_is_told_at_the_positions_that_it_sees(adapted: Any) -> None:
    ids = torch.randint(2, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    positions = torch.tensor([3, 4, 9, 10])
    with torch.no_grad():
        logits_at(adapted, {"input_ids": ids, "attention_mask": mask}, positions, keeps=True)
    head = adapted.get_base_model().lm_head
    (routed,) = (kept for kept in head.recorder.step.kept if kept.size == (2, 4))
    real = mask[:, positions].bool().flatten()
    expected = expert_share(routed.chosen.flatten(0, 1), routed.experts, real)
    torch.testing.assert_close(expert_load(adapted).shares[routed.key[0]], expected)
    assert float(expected.sum()) == pytest.approx(1)
    unmasked = expert_share(routed.chosen.flatten(0, 1), routed.experts, torch.ones(8).bool())
    assert not torch.allclose(expected, unmasked)


def test_its_routing_is_collected(adapted: Any, plain_tokenizer: Any) -> None:
    texts = tuple(
        LabelledText(tuple(range(2, 8 + number)), "ab"[number % 2], str(number))
        for number in range(10)
    )
    records, _ = collect_routing(
        adapted.eval(),
        LabelledCorpus(texts),
        plain_tokenizer,
        settings=CollectSettings(folds=2, routers=2),
        progress=False,
    )
    assert [part.name for part in records.projections][-1] == "lm_head"


def test_a_model_with_an_encoder_is_refused() -> None:
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    settings = MoELoRAConfig(target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    with pytest.raises(UserError, match="for decoder-only models"):
        peft.get_peft_model(T5ForConditionalGeneration(config), settings)
