"""MoELoRA through PEFT's own functions."""

import copy
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from interp.errors import UserError
from interp.moelora import MoELoRAConfig, MoELoRALinear, auxiliary_losses, expert_load
from interp.moelora.method import layer_of


def layers_of(model: nn.Module) -> dict[str, MoELoRALinear]:
    return {one.name: one for one in model.modules() if isinstance(one, MoELoRALinear)}


@torch.no_grad()
def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_fresh_adapter_changes_no_bit(
    family: str, adapt: Any, hf_factory: Any, plain_tokenizer: Any, batch: Any
) -> None:
    base = hf_factory(family, plain_tokenizer)
    adapted = adapt(family, filled=False)
    assert torch.equal(logits_of(adapted, batch), logits_of(base, batch))
    assert not torch.equal(logits_of(adapt(family), batch), logits_of(base, batch))


def test_only_the_experts_and_routers_are_trained(adapt: Any) -> None:
    adapted = adapt(r=2, num_experts=4)
    trained = {name for name, one in adapted.named_parameters() if one.requires_grad}
    assert trained
    assert all("moelora_" in name for name in trained)
    # q: 32 → 32, v: 32 → 16, in three layers; 8 ranks and 4 router rows each.
    expected = 3 * (8 * (32 + 32) + 4 * 32 + 8 * (32 + 16) + 4 * 32)
    assert adapted.get_nb_trainable_parameters()[0] == expected


def test_parameters_equal_lora_of_rank_36_where_in_is_out(
    hf_factory: Any, plain_tokenizer: Any
) -> None:
    def count(config: peft.PeftConfig) -> int:
        base = hf_factory("llama", plain_tokenizer, num_key_value_heads=4)
        return peft.get_peft_model(base, config).get_nb_trainable_parameters()[0]

    targets = ["q_proj", "v_proj"]
    ours = MoELoRAConfig(r=4, num_experts=8, target_modules=targets)
    assert count(ours) == count(peft.LoraConfig(r=36, target_modules=targets))


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        (None, {"q_proj", "v_proj"}),
        (["k_proj", "down_proj"], {"k_proj", "down_proj"}),
        (r".*\.(q_proj|o_proj)", {"q_proj", "o_proj"}),
        ("all-linear", {f"{one}_proj" for one in ("q", "k", "v", "o", "gate", "up", "down")}),
    ],
)
def test_targets_by_name_and_regex(adapt: Any, targets: Any, kinds: set[str]) -> None:
    names = layers_of(adapt(target_modules=targets))
    assert {name.rpartition(".")[2] for name in names} == kinds
    assert len(names) == 3 * len(kinds)


def test_some_layers_only(adapt: Any) -> None:
    names = layers_of(adapt(target_modules=["q_proj"], layers_to_transform=[1]))
    assert list(names) == ["model.layers.1.self_attn.q_proj"]
    left_out = layers_of(adapt(target_modules=["q_proj"], exclude_modules=r".*layers\.1\..*"))
    assert [layer_of(name) for name in left_out] == [0, 2]


def test_experts_per_layer(adapt: Any, batch: Any) -> None:
    adapted = adapt(num_experts=[2, 3, 5])
    for name, layer in layers_of(adapted).items():
        count = [2, 3, 5][int(layer_of(name) or 0)]
        assert len(layer.moelora_router["default"]) == count
        assert layer.moelora_A["default"].shape == (count * 2, 32)
    adapted.train()(**batch)
    auxiliary_losses(adapted).total.backward()
    assert sorted({len(one) for one in expert_load(adapted).shares.values()}) == [2, 3, 5]


def test_conv1d_projection(adapt: Any, batch: Any) -> None:
    adapted = adapt("gpt2", target_modules=["c_attn", "c_fc"])
    shapes = {
        name.rpartition(".")[2]: layer.moelora_B["default"].shape
        for name, layer in layers_of(adapted).items()
    }
    assert shapes == {"c_attn": (96, 8), "c_fc": (128, 8)}
    adapted.train()(**batch, labels=batch["input_ids"]).loss.backward()


def test_two_adapters(adapt: Any, batch: Any, tmp_path: Path) -> None:
    adapted = adapt()
    first = logits_of(adapted, batch)
    other = MoELoRAConfig(r=1, num_experts=3, top_k=1, target_modules=["q_proj", "o_proj"])
    adapted.add_adapter("other", other)
    assert torch.equal(logits_of(adapted, batch), first)
    adapted.set_adapter("other")
    for layer in layers_of(adapted).values():
        if "other" in layer.experts:
            nn.init.normal_(layer.moelora_B["other"], std=0.3)
    second = logits_of(adapted, batch)
    assert not torch.allclose(first, second)
    trained = {name for name, one in adapted.named_parameters() if one.requires_grad}
    assert trained
    assert all(name.endswith(".other") for name in trained)

    adapted.save_pretrained(str(tmp_path))  # "default" at the top, "other" in its own folder
    assert (tmp_path / "other" / "adapter_model.safetensors").is_file()
    again = peft.PeftModel.from_pretrained(adapt().unload(), str(tmp_path))
    again.load_adapter(str(tmp_path / "other"), "renamed")
    assert torch.equal(logits_of(again.eval(), batch), first)
    again.set_adapter("renamed")
    assert torch.equal(logits_of(again, batch), second)

    adapted.set_adapter("default")
    assert torch.equal(logits_of(adapted, batch), first)
    adapted.delete_adapter("other")
    assert torch.equal(logits_of(adapted, batch), first)
    assert all(list(layer.experts) in ([], ["default"]) for layer in layers_of(adapted).values())


def test_disabling_gives_the_base_model(
    adapt: Any, hf_factory: Any, plain_tokenizer: Any, batch: Any
) -> None:
    adapted = adapt()
    before = logits_of(adapted, batch)
    with adapted.disable_adapter():
        base = logits_of(hf_factory("llama", plain_tokenizer), batch)
        assert torch.equal(logits_of(adapted, batch), base)
    assert torch.equal(logits_of(adapted, batch), before)
    assert torch.equal(logits_of(adapted.unload(), batch), base)


def test_unloading_leaves_nothing_behind(adapt: Any, batch: Any) -> None:
    base = adapt().unload()
    assert not layers_of(base)
    assert not base._forward_pre_hooks
    assert not base._forward_hooks


@pytest.mark.parametrize("merge", ["merge_adapter", "unmerge_adapter", "merge_and_unload"], ids=str)
def test_merging_is_refused_and_changes_nothing(merge: str, adapt: Any, batch: Any) -> None:
    adapted = adapt()
    before = logits_of(adapted, batch)
    with pytest.raises(UserError, match="depends on the token"):
        getattr(adapted, merge)()
    assert torch.equal(logits_of(adapted, batch), before)


def test_adapters_per_row_are_refused(adapt: Any, batch: Any) -> None:
    with pytest.raises(UserError, match="adapter_names"):
        adapt()(**batch, adapter_names=["default"] * 3)


def test_adapter_dtype_over_a_half_precision_base(
    hf_factory: Any, plain_tokenizer: Any, batch: Any
) -> None:
    for upcast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        base = hf_factory("llama", plain_tokenizer).bfloat16()
        config = MoELoRAConfig(r=2, num_experts=4, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(base, config, autocast_adapter_dtype=upcast)
        for layer in layers_of(adapted).values():
            assert layer.moelora_A["default"].dtype == dtype
        loss = adapted.train()(**batch, labels=batch["input_ids"]).loss
        (loss + auxiliary_losses(adapted).total).backward()


def test_autocast(adapt: Any, batch: Any) -> None:
    adapted = adapt().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = adapted(**batch, labels=batch["input_ids"]).loss
        losses = auxiliary_losses(adapted)
    assert losses.total.dtype == torch.float32
    (loss + losses.total).backward()
    exact = auxiliary_losses_of(adapt(), batch)
    torch.testing.assert_close(losses.load_balance, exact.load_balance, atol=0.05, rtol=0.05)


def auxiliary_losses_of(adapted: Any, batch: Any) -> Any:
    adapted.train()(**batch)
    return auxiliary_losses(adapted)


def test_low_memory_loading(adapt: Any, batch: Any, tmp_path: Path) -> None:
    adapted = adapt()
    before = logits_of(adapted, batch)
    adapted.save_pretrained(str(tmp_path))
    again = peft.PeftModel.from_pretrained(adapted.unload(), str(tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(logits_of(again.eval(), batch), before)


def test_a_copy_is_whole_even_after_a_training_step(adapt: Any, batch: Any) -> None:
    adapted = adapt()
    adapted.train()(**batch)
    for copied in (copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))):
        assert torch.equal(logits_of(copied.eval(), batch), logits_of(adapted.eval(), batch))
        copied.train()(**batch)
        auxiliary_losses(copied)
        assert next(iter(layers_of(copied).values())).recorder.step is not None
    with pytest.raises(UserError, match=r"model\.train"):
        auxiliary_losses(adapted)  # it has run in evaluation mode since


def test_generating_with_cache_and_left_padding(adapt: Any, plain_tokenizer: Any) -> None:
    adapted = adapt(model={"seed": 3})
    prompts = [torch.randint(2, len(plain_tokenizer), (length,)) for length in (4, 9)]
    ids = torch.full((2, 9), plain_tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, 9 - len(prompt) :] = prompt
        mask[row, 9 - len(prompt) :] = 1
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together = adapted.generate(input_ids=ids, attention_mask=mask, **settings)[:, 9:]
    for row, prompt in enumerate(prompts):
        tokens = prompt[None]
        for _ in range(12):  # without a cache: everything again for each token
            tokens = torch.cat(
                [tokens, logits_of(adapted, {"input_ids": tokens})[:, -1:].argmax(-1)], 1
            )
        assert together[row].tolist() == tokens[0, len(prompt) :].tolist()
    with adapted.disable_adapter():
        assert not torch.equal(
            adapted.generate(input_ids=ids, attention_mask=mask, **settings)[:, 9:], together
        )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_modules": ["nowhere"]}, "nowhere"),
        ({"target_modules": ["embed_tokens"]}, "not Embedding"),
        ({"target_modules": ["q_proj", "self_attn"]}, "not LlamaAttention"),
        ({"num_experts": [4, 4]}, "the model has 3 layers"),
        ({"num_experts": [4, 4, 4], "target_modules": ["lm_head", "q_proj"]}, "no numbered layer"),
    ],
)
def test_a_target_that_is_not_there_leaves_the_model_alone(
    config: Any, says: str, hf_factory: Any, plain_tokenizer: Any, batch: Any
) -> None:
    base = hf_factory("llama", plain_tokenizer, tie_word_embeddings=False)
    before = [name for name, _ in base.named_modules()]
    with pytest.raises(UserError, match=says) as caught:
        peft.get_peft_model(base, MoELoRAConfig(**{"num_experts": 4, **config}))
    assert "\n" not in str(caught.value)
    assert [name for name, _ in base.named_modules()] == before
    assert not base._forward_pre_hooks


def test_an_unknown_architecture_needs_targets() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(UserError, match="target_modules"):
        peft.get_peft_model(model, MoELoRAConfig())  # type: ignore[arg-type]
    adapted = peft.get_peft_model(model, MoELoRAConfig(target_modules=["0"]))  # type: ignore[arg-type]
    assert adapted(torch.ones(2, 4)).shape == (2, 4)
