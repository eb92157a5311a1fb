import json
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.errors import UserError
from interp.moelora import MoELoRAConfig, load_adapter


@pytest.fixture
def saved(adapt: Any, tmp_path: Path) -> Path:
    adapt().save_pretrained(str(tmp_path))
    return tmp_path


@torch.no_grad()
def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).logits


def test_loads_what_was_saved(
    saved: Path, adapt: Any, hf_factory: Any, plain_tokenizer: Any, batch: Any, caplog: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        model = load_adapter(hf_factory("llama", plain_tokenizer), saved)
    assert not caplog.records
    assert not any(one.requires_grad for one in model.parameters())
    expected = logits_of(adapt(), batch)
    assert torch.equal(logits_of(model.eval(), batch), expected)
    load_adapter(model, saved, adapter_name="second", is_trainable=True)
    model.set_adapter("second")
    assert torch.equal(logits_of(model, batch), expected)
    with pytest.raises(UserError, match="already"):
        load_adapter(model, saved, adapter_name="second")


def test_another_base_model(
    saved: Path, hf_factory: Any, plain_tokenizer: Any, caplog: Any
) -> None:
    for load in (load_adapter, peft.PeftModel.from_pretrained):
        wider = hf_factory("llama", plain_tokenizer, hidden_size=64)
        with pytest.raises(UserError, match="hidden_size is 64, not 32") as caught:
            load(wider, str(saved))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="model_type is gpt2, not llama"):
        load_adapter(hf_factory("gpt2", plain_tokenizer), saved)
    with caplog.at_level(logging.WARNING):
        load_adapter(hf_factory("llama", plain_tokenizer, seed=5), saved)
    assert "other weights" in caplog.text


def test_a_rounded_base_model_is_the_same_model(
    saved: Path, hf_factory: Any, plain_tokenizer: Any, caplog: Any
) -> None:
    with caplog.at_level(logging.WARNING):
        load_adapter(hf_factory("llama", plain_tokenizer).bfloat16(), saved)
    assert not caplog.records


def test_one_configuration_for_two_models(hf_factory: Any, plain_tokenizer: Any) -> None:
    """Only what was read from a file is held to its base model."""
    from interp.moelora import MoELoRAConfig

    config = MoELoRAConfig(target_modules=["q_proj"])
    peft.get_peft_model(hf_factory("llama", plain_tokenizer), config)
    peft.get_peft_model(hf_factory("llama", plain_tokenizer, hidden_size=64), config)
    assert config.base is not None
    assert config.base["hidden_size"] == 64


def _cut_short(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _header_cut(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])


def _without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _without_settings(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _half_settings(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(file.read_text(encoding="utf-8")[:50], encoding="utf-8")


def _other_method(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")


def _fewer_tensors(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors.popitem()
    save_file(tensors, weights)


def _further_tensor(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if ".layers.0." in name)
    save_file({**tensors, name.replace(".layers.0.", ".layers.7."): tensors[name] + 1}, weights)


def _another_tuner(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    lora = {name.replace("moelora", "lora"): one for name, one in load_file(weights).items()}
    save_file(lora, weights)


def _lower_rank(folder: Path) -> None:
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "r": 1}), encoding="utf-8")


def _narrower(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    cut = {name: one[..., :-1].contiguous() for name, one in load_file(weights).items()}
    save_file(cut, weights)


def _other_rank(folder: Path) -> None:
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "r": 3}), encoding="utf-8")


def _bad_value(folder: Path) -> None:
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "top_k": 9}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut_short, "damaged or cut short"),
        (_header_cut, "damaged or cut short"),
        (_without_weights, "no adapter_model"),
        (_without_settings, "no saved adapter"),
        (_half_settings, "adapter_config.json is damaged"),
        (_other_method, "LORA adapter, not MoELoRA"),
        (_fewer_tensors, "lacks 1 of 18 tensors"),
        (_other_rank, "ask for rank 12 in all, the weights have 8"),
        (_bad_value, "top_k=9 is more"),
        (_further_tensor, r"holds 1 tensors that have no place .*layers\.7\."),
        (_another_tuner, "lacks 18 of 18 tensors"),
        (_lower_rank, r"moelora_A in the shape \[8, 32\], but .* ask for \[4, 32\]"),
        (_narrower, r"moelora_A in the shape \[8, 31\], but .* ask for \[8, 32\]"),
    ],
)
def test_a_damaged_adapter_is_told_in_one_line(
    damage: Any, says: str, saved: Path, hf_factory: Any, plain_tokenizer: Any
) -> None:
    damage(saved)
    model = hf_factory("llama", plain_tokenizer).train()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(UserError, match=says) as caught:
        load_adapter(model, saved)
    assert "\n" not in str(caught.value)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(module.training for module in model.modules())


def test_counts_of_layers_that_are_not_adapted(
    tmp_path: Path, hf_factory: Any, plain_tokenizer: Any
) -> None:
    """The first layer's eight experts are not there; a thousand would not be believed."""
    config = MoELoRAConfig(r=4, num_experts=[8, 2, 2], top_k=2, layers_to_transform=[1, 2])
    peft.get_peft_model(hf_factory("llama", plain_tokenizer), config).save_pretrained(str(tmp_path))
    load_adapter(hf_factory("llama", plain_tokenizer), tmp_path)
    path = tmp_path / "adapter_config.json"
    for counts, rank in (([1000, 2, 2], 4000), ([8, 2, 3], 12)):
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_experts": counts}))
        with pytest.raises(UserError, match=f"ask for rank {rank} in all"):
            load_adapter(hf_factory("llama", plain_tokenizer), tmp_path)


def test_a_damaged_further_adapter_is_taken_off_again(
    saved: Path, adapt: Any, batch: Any, tmp_path: Path
) -> None:
    model = adapt()
    expected = logits_of(model, batch)
    model.train()
    trained = [weight.requires_grad for weight in model.parameters()]
    assert any(trained)
    _fewer_tensors(saved)
    with pytest.raises(UserError, match="lacks 1 of 18 tensors"):
        load_adapter(model, saved, adapter_name="second")
    assert [weight.requires_grad for weight in model.parameters()] == trained
    assert all(module.training for module in model.modules())
    model.eval()
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits_of(model, batch), expected)
