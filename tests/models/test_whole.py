"""A checkpoint that lacks weights, or holds others, is refused by name; whole ones load."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.models import load_model, resolve

Weights = dict[str, Tensor]
Change = Callable[[Weights], Weights]
TOKENS = torch.tensor([[3, 5, 8, 13, 21]])


@pytest.fixture(scope="module")
def original(chat_tokenizer: PreTrainedTokenizerFast, hf_factory: Callable[..., Any]) -> Any:
    return hf_factory("llama", chat_tokenizer, attn_implementation="eager")


@pytest.fixture
def folder(tmp_path: Path, original: Any, chat_tokenizer: PreTrainedTokenizerFast) -> Path:
    original.save_pretrained(tmp_path / "model")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder: Path, change: Change) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_config(folder: Path, **entries: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def prefixed(prefix: str) -> Change:
    return lambda weights: {f"{prefix}{name}": value for name, value in weights.items()}


def without(part: str) -> Change:
    return lambda weights: {name: one for name, one in weights.items() if part not in name}


def renamed(old: str, new: str) -> Change:
    return lambda weights: {name.replace(old, new): one for name, one in weights.items()}


def more(name: str, *shape: int) -> Change:
    return lambda weights: weights | {name: torch.ones(shape)}


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        return load_model(folder, device="cpu", cache_dir=folder.parent / "cache")(TOKENS)


@torch.no_grad()
def assert_same(folder: Path, original: Any) -> None:
    torch.testing.assert_close(logits(folder), original(TOKENS).logits, atol=1e-5, rtol=1e-5)


NORM = "model.layers.2.input_layernorm.weight"
LACKING: dict[str, tuple[Change, str]] = {
    "torch.compile": (prefixed("_orig_mod."), r"lack the weight .*'_orig_mod\.' before every name"),
    "DDP": (prefixed("module."), r"lack the weight .*'module\.' before every name"),
    "PEFT": (prefixed("base_model.model."), r"'base_model\.model\.' before every name"),
    "LoRA not merged": (
        renamed("q_proj.", "q_proj.base_layer."),
        r"layers\.0\.self_attn\.q_proj\.weight \(and 2 more\).*adapter that was not merged",
    ),
    "a classifier's": (without("lm_head"), r"lack the weight lm_head\.weight: .*classifier"),
    "a layer": (without(".layers.1."), r"layers\.1\.input_layernorm\.weight \(and 8 more\)"),
    "one weight": (without(NORM), r"lack the weight model\.layers\.2\.input_layernorm\.weight: "),
    "other names": (
        renamed(".self_attn.", ".attention."),
        r"layers\.0\.self_attn\.k_proj\.weight .*hold model\.layers\.0\.attention\.k_proj\.weight",
    ),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_missing_weight_is_named_with_the_likely_reason(kind: str, folder: Path) -> None:
    change, said = LACKING[kind]
    change_weights(folder, change)
    with pytest.raises(UserError, match=said) as caught:
        logits(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (32,), "fewer layers or biases"),
        ("model.layers.3.mlp.up_proj.weight", (64, 32), "fewer layers or biases"),
        ("lm_head.bias", (300,), "fewer layers or biases"),
        ("model.layers.0.mlp.up_proj.lora_A.weight", (4, 32), "adapter that was not merged"),
        ("module.model.layers.0.mlp.up_proj.weight", (64, 32), "get the model again"),
    ],
)
def test_a_weight_without_a_place_is_named(
    name: str, shape: tuple[int, ...], said: str, folder: Path
) -> None:
    change_weights(folder, more(name, *shape))
    with pytest.raises(UserError, match=f"hold the weight {name}, which has no place.*{said}"):
        logits(folder)


def test_a_head_of_its_own_is_left_out_with_a_warning(
    folder: Path, original: Any, caplog: pytest.LogCaptureFixture
) -> None:
    change_weights(folder, more("v_head.summary.weight", 1, 32))
    with caplog.at_level(logging.WARNING, logger="interp"):
        assert_same(folder, original)
    assert ["v_head.summary.weight" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"num_hidden_layers": 5}, r"lack the weight model\.layers\.3\.input_layernorm\.weight"),
        ({"num_hidden_layers": 2}, r"hold the weight model\.layers\.2\.input_layernorm\.weight"),
        ({"intermediate_size": 48}, r"mlp\.down_proj\.weight .*\[32, 64\] in the .*\[32, 48\]"),
        ({"hidden_size": 64}, r"lm_head\.weight .*, 32\] in the files, but .*, 64\] in the model"),
        ({"vocab_size": 7}, r"lm_head\.weight .*, 32\] in the files, but \[7, 32\] in the model"),
        ({"num_key_value_heads": 4}, r"k_proj\.weight .*\[16, 32\] in the files, but \[32, 32\]"),
        ({"num_attention_heads": 5}, "hidden size .32. is not a multiple of the number of att"),
        ({"hidden_act": "wobble"}, "it knows no 'wobble'"),
    ],
)
def test_a_configuration_that_contradicts_the_weights(
    entries: dict[str, Any], said: str, folder: Path
) -> None:
    change_config(folder, **entries)
    with pytest.raises(UserError, match=said) as caught:
        logits(folder)
    assert "\n" not in str(caught.value)


TABLES = {
    "rotary": "model.layers.0.self_attn.rotary_emb.inv_freq",
    "causal mask": "model.layers.1.self_attn.bias",
    "positions": "model.position_ids",
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_the_model_makes_itself_passes(
    kind: str, folder: Path, original: Any, caplog: pytest.LogCaptureFixture
) -> None:
    change_weights(folder, more(TABLES[kind], 4))
    with caplog.at_level(logging.WARNING, logger="interp"):
        assert_same(folder, original)
    assert not caplog.records


@torch.no_grad()
def test_old_gpt2_files_hold_masks_and_bare_names(
    tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast, hf_factory: Callable[..., Any]
) -> None:
    gpt2 = hf_factory("gpt2", plain_tokenizer, attn_implementation="eager")
    folder = tmp_path / "model"
    gpt2.save_pretrained(folder)
    plain_tokenizer.save_pretrained(folder)
    bare = renamed("transformer.", "")
    mask = more("h.0.attn.bias", 1, 1, 8, 8)
    change_weights(folder, lambda weights: mask(bare(weights)))
    assert_same(folder, gpt2)
    change_config(folder, n_layer=1)
    with pytest.raises(UserError, match=r"hold the weight h\.1\.attn\.c_attn\.weight \(and"):
        logits(folder)


def test_a_tied_head_may_be_left_out(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast, hf_factory: Callable[..., Any]
) -> None:
    tied = hf_factory(
        "llama", chat_tokenizer, attn_implementation="eager", tie_word_embeddings=True
    )
    tied.save_pretrained(tmp_path / "model")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    assert_same(tmp_path / "model", tied)


@pytest.fixture
def shards(folder: Path, original: Any) -> list[Path]:
    (folder / "model.safetensors").unlink()
    original.save_pretrained(folder, max_shard_size="20KB")
    found = sorted(folder.glob("model-*.safetensors"))
    assert len(found) > 2
    return found


def test_whole_shards_load(shards: list[Path], original: Any) -> None:
    assert_same(shards[0].parent, original)


def test_a_shard_that_is_not_there(shards: list[Path]) -> None:
    shards[1].unlink()
    with pytest.raises(UserError, match=f"lacks the file {shards[1].name}"):
        logits(shards[0].parent)


def test_a_shard_that_is_cut_short(shards: list[Path]) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[:-40])
    with pytest.raises(UserError, match=f"the file {shards[1].name} of .* is damaged"):
        logits(shards[0].parent)


def test_an_index_that_leaves_a_shard_out(shards: list[Path]) -> None:
    index = shards[0].parent / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    left = {k: v for k, v in content["weight_map"].items() if v != shards[1].name}
    gone = sorted(set(content["weight_map"]) - set(left))
    index.write_text(json.dumps(content | {"weight_map": left}))
    with pytest.raises(UserError, match=f"lack the weight {gone[0]}"):
        logits(shards[0].parent)


def test_two_shards_that_hold_one_weight(shards: list[Path]) -> None:
    first, second = load_file(shards[0]), load_file(shards[1])
    name = sorted(first)[0]
    save_file(second | {name: first[name] + 1}, shards[1], metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"the weight {name} of .* stands in two files"):
        logits(shards[0].parent)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {"a": 1}}', "{}"])
def test_an_index_that_is_none(index: str, shards: list[Path]) -> None:
    (shards[0].parent / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json") as caught:
        logits(shards[0].parent)
    assert "\n" not in str(caught.value)


def pickled(folder: Path, change: Change = dict) -> None:
    file = folder / "model.safetensors"
    torch.save(change(load_file(file)), folder / "pytorch_model.bin")
    file.unlink()


def test_pickled_weights_that_are_whole_load(folder: Path, original: Any) -> None:
    pickled(folder)
    cache = folder.parent / "cache"
    with torch.no_grad():
        found = load_model(folder, device="cpu", cache_dir=cache, allow_pickle=True)(TOKENS)
        torch.testing.assert_close(found, original(TOKENS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "change", [prefixed("_orig_mod."), without(NORM), more("model.layers.3.mlp.up_proj.weight", 2)]
)
def test_pickled_weights_that_are_not_leave_no_cache(change: Change, folder: Path) -> None:
    pickled(folder, change)
    cache = folder.parent / "cache"
    with pytest.raises(UserError, match=r"lack the weight|has no place"):
        resolve(folder, cache_dir=cache, allow_pickle=True)
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []


def test_an_adapter_is_no_model(folder: Path) -> None:
    """transformers would read another directory's weights in its place."""
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(UserError, match=r"is an adapter .*merge_and_unload"):
        logits(folder)
