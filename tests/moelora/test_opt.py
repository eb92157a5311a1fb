"""OPT runs its MLP on one axis of batch and positions: padding there is padding all the same."""

from typing import Any

import peft
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from interp.experts.routing.collect import CollectSettings, collect_routing
from interp.experts.routing.corpus import LabelledCorpus, LabelledText
from interp.moelora import MoELoRAConfig
from interp.moelora.auxiliary import auxiliary_losses, expert_load
from interp.moelora.data.encoding import EncodedExample
from interp.moelora.training.scoring import expert_similarity


@pytest.fixture
def adapted() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        **{"vocab_size": 50, "hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 16},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64},
    }
    config = OPTConfig(**sizes, dropout=0.0)
    targets = ["q_proj", "fc1", "fc2"]
    model = peft.get_peft_model(
        OPTForCausalLM(config),
        MoELoRAConfig(target_modules=targets, num_experts=4, top_k=2, contrastive_weight=0.0),
    )
    for name, parameter in model.named_parameters():
        if "moelora" in name:  # experts that differ, and are not zero
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return model.train()


def losses_and_loads(adapted: Any, padding: int) -> tuple[float, dict[str, list[float]]]:
    ids = torch.randint(2, 50, (2, 8), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    pad = torch.nn.functional.pad
    with torch.no_grad():
        adapted(input_ids=pad(ids, (0, padding), value=1), attention_mask=pad(mask, (0, padding)))
    loads = {name: share.tolist() for name, share in expert_load(adapted).shares.items()}
    return float(auxiliary_losses(adapted).load_balance), loads


def test_padding_changes_no_loss_and_no_load(adapted: Any) -> None:
    loss, loads = losses_and_loads(adapted, 0)
    padded_loss, padded_loads = losses_and_loads(adapted, 20)
    assert padded_loss == pytest.approx(loss, abs=1e-6)
    assert len(loads) == 6
    for name, load in loads.items():
        assert padded_loads[name] == pytest.approx(load, abs=1e-6)


def test_similarity_is_that_of_the_texts_one_by_one(adapted: Any) -> None:
    examples = [EncodedExample(tuple(range(2, 10)), 4), EncodedExample(tuple(range(2, 15)), 4)]
    together = expert_similarity(adapted.eval(), examples)
    single = [expert_similarity(adapted, [example]) for example in examples]
    for name, value in together.items():
        expected = (8 * single[0][name] + 13 * single[1][name]) / 21
        assert value == pytest.approx(expected, abs=1e-5)
    assert any(abs(value) > 1e-3 for value in together.values())


def test_routing_is_collected(adapted: Any, plain_tokenizer: Any) -> None:
    texts = tuple(
        LabelledText(tuple(range(2, 8 + number)), "ab"[number % 2], str(number))
        for number in range(10)
    )
    records, _ = collect_routing(
        adapted,
        LabelledCorpus(texts),
        plain_tokenizer,
        settings=CollectSettings(folds=2, routers=2),
        progress=False,
    )
    assert len(records.projections) == 6
