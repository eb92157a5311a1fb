"""One changed weight or setting changes the fingerprint; how it is stored does not."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from interp.models import fingerprint_of_folder, fingerprint_of_model
from interp.models.fingerprint import file_hashes

WEIGHTS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3, dtype=torch.int64),
}
CONFIG = {"model_type": "llama", "hidden_size": 3}


def write(folder: Path, config: dict[str, Any], *shards: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for index, shard in enumerate(shards):
        save_file(shard, folder / f"model-{index}.safetensors")
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> str:
    return fingerprint_of_folder(write(tmp_path / "reference", CONFIG, WEIGHTS))


def test_known_value(tmp_path: Path) -> None:
    """The definition, written out: a change of it makes every recorded run another model's."""
    folder = write(tmp_path / "model", {"b": 1, "a": [2]}, {"w": torch.tensor([1.0])})
    expected = b'{"a": [2], "b": 1}' + b"\0w\0torch.float32\0(1,)\0" + b"\x00\x00\x80\x3f"
    assert fingerprint_of_folder(folder) == hashlib.sha256(expected).hexdigest()


def test_storage_does_not_matter(tmp_path: Path, reference: str) -> None:
    first = {"scalar": WEIGHTS["scalar"], "a": WEIGHTS["a"]}
    sharded = write(tmp_path / "sharded", CONFIG, first, {"b": WEIGHTS["b"]})
    assert fingerprint_of_folder(sharded) == reference


@pytest.mark.parametrize("key", ["_name_or_path", "transformers_version", "dtype", "torch_dtype"])
def test_where_it_came_from_does_not_matter(key: str, tmp_path: Path, reference: str) -> None:
    folder = write(tmp_path / "model", {key: "anything"} | CONFIG, WEIGHTS)
    assert fingerprint_of_folder(folder) == reference


@pytest.mark.parametrize(
    "change",
    [
        {"a": WEIGHTS["a"] + torch.tensor([[0.0, 0, 0], [0, 0, 1e-6]])},
        {"a": WEIGHTS["a"].reshape(3, 2)},
        {"a": WEIGHTS["a"].to(torch.int32)},
        {"more": torch.zeros(1)},
    ],
    ids=["one-weight", "shape", "dtype", "one-more"],
)
def test_a_changed_weight_matters(
    change: dict[str, torch.Tensor], tmp_path: Path, reference: str
) -> None:
    assert fingerprint_of_folder(write(tmp_path / "m", CONFIG, WEIGHTS | change)) != reference


def test_a_changed_setting_matters(tmp_path: Path, reference: str) -> None:
    folder = write(tmp_path / "model", CONFIG | {"rms_norm_eps": 1e-5}, WEIGHTS)
    assert fingerprint_of_folder(folder) != reference


def test_a_remembered_fingerprint_follows_the_files(tmp_path: Path) -> None:
    folder, cache = write(tmp_path / "model", CONFIG, WEIGHTS), tmp_path / "cache"
    before = {file.name for file in folder.iterdir()}
    first = fingerprint_of_folder(folder, cache=cache)
    (remembered,) = cache.iterdir()
    assert remembered.read_text() == first
    remembered.write_text("f" * 64)  # proof that it is read, not computed again
    assert fingerprint_of_folder(folder, cache=cache) == "f" * 64
    assert {file.name for file in folder.iterdir()} == before

    weights = load_file(folder / "model-0.safetensors")
    weights["a"][0, 0] += 1
    save_file(weights, folder / "model-0.safetensors")
    changed = fingerprint_of_folder(folder, cache=cache)
    assert changed not in (first, "f" * 64)
    assert changed == fingerprint_of_folder(folder)


def test_a_half_written_memory_is_not_believed(tmp_path: Path) -> None:
    folder, cache = write(tmp_path / "model", CONFIG, WEIGHTS), tmp_path / "cache"
    first = fingerprint_of_folder(folder, cache=cache)
    next(cache.iterdir()).write_text(first[:20])
    assert fingerprint_of_folder(folder, cache=cache) == first


def test_a_memory_that_cannot_be_written_does_no_harm(tmp_path: Path, reference: str) -> None:
    folder = write(tmp_path / "model", CONFIG, WEIGHTS)
    (tmp_path / "cache").write_text("a file where the directory should be")
    assert fingerprint_of_folder(folder, cache=tmp_path / "cache") == reference


def test_truncated_weights_raise(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", CONFIG, WEIGHTS)
    weights = folder / "model-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        fingerprint_of_folder(folder)


def test_models_in_memory(
    chat_tokenizer: PreTrainedTokenizerFast, hf_factory: Callable[..., Any]
) -> None:
    first, same = hf_factory("llama", chat_tokenizer), hf_factory("llama", chat_tokenizer)
    other = hf_factory("llama", chat_tokenizer, seed=1)
    assert fingerprint_of_model(first) == fingerprint_of_model(same)
    assert fingerprint_of_model(first) != fingerprint_of_model(other)
    with torch.no_grad():
        same.model.layers[2].mlp.down_proj.weight[0, 0] += 1e-3
    assert fingerprint_of_model(first) != fingerprint_of_model(same)


def test_a_module_without_configuration_has_one_too() -> None:
    linear = nn.Linear(2, 2)
    assert fingerprint_of_model(linear) == fingerprint_of_model(linear, {})
    assert fingerprint_of_model(linear) != fingerprint_of_model(linear, {"a": 1})


def test_only_the_files_that_are_read_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", CONFIG)
    save_file(WEIGHTS, folder / "model.safetensors")
    before = fingerprint_of_folder(folder)
    save_file({"a": torch.zeros(2, 3)}, folder / "model_old.safetensors")
    assert fingerprint_of_folder(folder) == before
    save_file({**WEIGHTS, "b": torch.zeros(2)}, folder / "model.safetensors")
    assert fingerprint_of_folder(folder) != before


def test_files_that_the_index_names_count_wherever_they_are(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", CONFIG)
    (folder / "sub").mkdir()
    index = {"weight_map": dict.fromkeys(WEIGHTS, "sub/one.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(WEIGHTS, folder / "sub" / "one.safetensors")
    save_file({"a": torch.zeros(2, 3)}, folder / "stray.safetensors")
    before = fingerprint_of_folder(folder)
    save_file({**WEIGHTS, "b": torch.zeros(2)}, folder / "sub" / "one.safetensors")
    assert fingerprint_of_folder(folder) != before


def test_files_hashed_side_by_side_have_their_own_hashes(tmp_path: Path) -> None:
    """In the order of the files, as one by one; and remembered by size and time."""
    files = [tmp_path / f"{number}.bin" for number in range(20)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * (1000 * number))
    expected = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert file_hashes(files) == expected
    cache = tmp_path / "cache"
    assert file_hashes(files, cache=cache) == expected
    for remembered in cache.iterdir():
        remembered.write_text("f" * 64)  # proof that they are read, not computed again
    assert file_hashes(files, cache=cache) == ["f" * 64] * 20
    files[3].write_bytes(b"another")
    changed = hashlib.sha256(b"another").hexdigest()
    assert file_hashes(files[2:5], cache=cache) == ["f" * 64, changed, "f" * 64]
    assert file_hashes([]) == []
    with pytest.raises(FileNotFoundError):
        file_hashes([*files, tmp_path / "missing"])
