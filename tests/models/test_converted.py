"""GGUF files become directories that hold the same model and the same tokenizer."""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from interp.errors import UserError
from interp.files.documents import file_hash
from interp.models import resolve
from interp.models.converted import RECORD, convert_gguf, keep_converted

TEXTS = [
    "Why is Paris the capital of Germany?",
    "  São Tomé, Nuku'alofa and N'Djamena: 東京\n\n1871!",
    "<|start|>user\nWhich country is Tokyo the capital of?<|end|>\n",
]
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[module]}.{kind}"


def rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order in which Llama files keep the rows of queries and keys: rotary pairs together."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    blocks: int | None = None,
    leave_out: str = "",
    more: dict[str, Any] | None = None,
) -> None:
    """The model as GGUF; or a file whose header says other blocks, or that holds other tensors."""
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers if blocks is None else blocks)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens)
    tokens = sorted(vocab, key=lambda token: vocab[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        if config.model_type == "llama" and "q_proj" in name:
            array = rotary_order(array, config.num_attention_heads)
        if config.model_type == "llama" and "k_proj" in name:
            array = rotary_order(array, config.num_key_value_heads)
        if gguf_name(name) != leave_out:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(array))
    for name, value in (more or {}).items():
        writer.add_tensor(name, np.asarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny_qwen2(tokenizer: PreTrainedTokenizerFast) -> Any:
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    model = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # made as zeros, which would hide a bias that went missing
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def llama_gguf(
    tmp_path_factory: pytest.TempPathFactory,
    chat_tokenizer: PreTrainedTokenizerFast,
    hf_factory: Callable[..., Any],
) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, hf_factory("llama", chat_tokenizer), chat_tokenizer)
    return path


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_converted_model_computes_what_the_original_does(
    family: str,
    tmp_path: Path,
    chat_tokenizer: PreTrainedTokenizerFast,
    hf_factory: Callable[..., Any],
) -> None:
    original = (
        tiny_qwen2(chat_tokenizer) if family == "qwen2" else hf_factory(family, chat_tokenizer)
    )
    write_gguf(tmp_path / "tiny.gguf", original, chat_tokenizer)
    folder = resolve(tmp_path / "tiny.gguf", cache_dir=tmp_path / "cache")
    converted = AutoModelForCausalLM.from_pretrained(folder)
    tokens = chat_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected, found = original(tokens).logits, converted(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_converted_tokenizer_tokenizes_as_the_original(
    tmp_path: Path, llama_gguf: Path, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = resolve(llama_gguf, cache_dir=tmp_path)
    converted = AutoTokenizer.from_pretrained(folder)
    read = AutoTokenizer.from_pretrained(llama_gguf.parent, gguf_file=llama_gguf.name)
    for text in TEXTS:
        expected = chat_tokenizer(text)["input_ids"]
        assert converted(text)["input_ids"] == read(text)["input_ids"] == expected
        assert converted.decode(expected) == text
    assert converted.chat_template == chat_tokenizer.chat_template
    assert converted.pad_token == chat_tokenizer.pad_token


def test_a_file_is_converted_once_and_by_content(
    tmp_path: Path, llama_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(source: Path, into: Path, *, name: str) -> None:
        calls.append(name)
        convert_gguf(source, into, name=name)

    monkeypatch.setattr("interp.models.spec.convert_gguf", counting)
    first = resolve(llama_gguf, cache_dir=tmp_path / "cache")
    moved = tmp_path / "elsewhere" / llama_gguf.name
    moved.parent.mkdir()
    shutil.copy(llama_gguf, moved)
    assert resolve(str(moved), cache_dir=tmp_path / "cache") == first
    assert calls == ["tiny.gguf"]
    record = json.loads((first / RECORD).read_text())
    assert record["source_sha256"] == file_hash(llama_gguf)
    assert set(record["files"]) == {file.name for file in first.iterdir()} - {RECORD}


NOT_WHOLE: dict[str, tuple[dict[str, Any], str]] = {
    "a tensor is missing": (
        {"leave_out": "blk.1.ffn_up.weight"},
        r"lack the weight model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "more blocks": ({"blocks": 4}, r"lack the weight model\.layers\.3\.input_layernorm\.weight"),
    "fewer blocks": ({"blocks": 2}, r"blk\.2\.attn_q\.weight: .*fewer layers \(2\)"),
    "a bias": ({"more": {"blk.0.attn_q.bias": [1.0] * 32}}, r"such as blk\.0\.attn_q\.bias"),
    "scaled rotary": ({"more": {"rope_freqs.weight": [1.0, 1.0, 8.0, 8.0]}}, "scales the rotary"),
    "another shape": (
        {"leave_out": "output_norm.weight", "more": {"output_norm.weight": [1.0] * 40}},
        r"model\.norm\.weight .* \[40\] in the files, but \[32\] in the model",
    ),
}


@pytest.mark.parametrize("kind", NOT_WHOLE)
def test_a_file_that_is_not_whole_is_refused_and_leaves_no_cache(
    kind: str,
    tmp_path: Path,
    chat_tokenizer: PreTrainedTokenizerFast,
    hf_factory: Callable[..., Any],
) -> None:
    changes, said = NOT_WHOLE[kind]
    write_gguf(
        tmp_path / "tiny.gguf", hf_factory("llama", chat_tokenizer), chat_tokenizer, **changes
    )
    with pytest.raises(UserError, match=said):
        resolve(tmp_path / "tiny.gguf", cache_dir=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == []


def test_factors_of_one_scale_nothing(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast, hf_factory: Callable[..., Any]
) -> None:
    model = hf_factory("llama", chat_tokenizer)
    more = {"rope_freqs.weight": [1.0] * 4}
    write_gguf(tmp_path / "tiny.gguf", model, chat_tokenizer, more=more)
    assert resolve(tmp_path / "tiny.gguf", cache_dir=tmp_path / "cache").is_dir()


def test_a_copy_whose_weights_were_never_checked_is_made_anew(
    tmp_path: Path, llama_gguf: Path
) -> None:
    folder = resolve(llama_gguf, cache_dir=tmp_path)
    record = json.loads((folder / RECORD).read_text())

    def asked(known_whole: bool) -> list[Path]:
        built: list[Path] = []

        def build(into: Path) -> None:
            built.append(into)
            convert_gguf(llama_gguf, into, name="tiny")

        keep_converted(
            folder, build, source_sha256=record["source_sha256"], known_whole=known_whole
        )
        return built

    assert not asked(known_whole=False)
    (folder / RECORD).write_text(json.dumps(record | {"format": 1}))
    assert not asked(known_whole=True)
    assert len(asked(known_whole=False)) == 1
    assert json.loads((folder / RECORD).read_text())["format"] == 2


def _truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _change_one_weight(folder: Path) -> None:
    weights = folder / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 0x40
    weights.write_bytes(damaged)


def _break_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])


def _change_recorded_hash(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | {"source_sha256": "0" * 64}))


@pytest.mark.parametrize(
    "damage",
    [
        _truncate_weights,
        _change_one_weight,
        _break_header,
        _change_recorded_hash,
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / RECORD).write_text("[]"),
        lambda folder: (folder / RECORD).unlink(),
    ],
    ids=["truncated", "one-bit", "header", "hash", "file-gone", "bad-record", "no-record"],
)
def test_a_damaged_copy_is_made_anew(
    damage: Callable[[Path], Any],
    tmp_path: Path,
    llama_gguf: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = resolve(llama_gguf, cache_dir=tmp_path)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    damage(folder)
    with caplog.at_level(logging.WARNING, logger="interp"):
        assert resolve(llama_gguf, cache_dir=tmp_path) == folder
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole
    assert [record.message for record in caplog.records] == [
        f"the cached model in {folder} is damaged and was made anew"
    ]


def test_an_undamaged_copy_is_left_alone(
    tmp_path: Path, llama_gguf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = resolve(llama_gguf, cache_dir=tmp_path) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger="interp"):
        resolve(llama_gguf, cache_dir=tmp_path)
    assert weights.stat().st_mtime_ns == before
    assert not caplog.records


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def build(into: Path) -> None:
        (into / "config.json").write_text("{}")
        raise UserError("no")

    folder = tmp_path / "models" / "broken"
    with pytest.raises(UserError, match="no"):
        keep_converted(folder, build, source_sha256="0")
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == []


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path, llama_gguf: Path) -> None:
    folder = resolve(llama_gguf, cache_dir=tmp_path)
    shutil.rmtree(folder)
    left_over = folder.parent / f".partial-{folder.name}-abc"
    left_over.mkdir()
    (left_over / "model.safetensors").write_bytes(b"half")
    resolve(llama_gguf, cache_dir=tmp_path)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_two_at_once_build_once(tmp_path: Path, llama_gguf: Path) -> None:
    builds = []

    def build(into: Path) -> None:
        builds.append(into)
        convert_gguf(llama_gguf, into, name="tiny")

    folder = tmp_path / "models" / "tiny"
    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting = [pool.submit(keep_converted, folder, build, source_sha256="a") for _ in range(2)]
        assert [task.result() for task in waiting] == [folder, folder]
    assert len(builds) == 1


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(40)])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the GGUF file broken\.gguf") as caught:
        resolve(path, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_truncated_gguf_is_refused(tmp_path: Path, llama_gguf: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(llama_gguf.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"cannot read the GGUF file cut\.gguf"):
        resolve(path, cache_dir=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, llama_gguf: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(UserError, match="FAITHLENS_CACHE"):
        resolve(llama_gguf, cache_dir=tmp_path / "cache")
