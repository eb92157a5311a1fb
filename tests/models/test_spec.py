"""What a user may write for a model, and what is said about anything else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.models import cache_root, load_model, resolve


@pytest.fixture(scope="module")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory,
    chat_tokenizer: PreTrainedTokenizerFast,
    hf_factory: Callable[..., Any],
) -> Path:
    folder = tmp_path_factory.mktemp("model")
    hf_factory("llama", chat_tokenizer).save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return folder


def _contents(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_a_local_directory_is_taken_as_it_is(model_folder: Path, tmp_path: Path) -> None:
    before = _contents(model_folder)
    assert resolve(model_folder, cache_dir=tmp_path) == model_folder
    assert resolve(f" {model_folder}/ ", cache_dir=tmp_path) == model_folder
    assert _contents(model_folder) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "has no config.json"),
        ("*.safetensors", "no weights in safetensors"),
        ("tokenizer*", "has no tokenizer"),
    ],
)
def test_a_directory_that_lacks_a_part_is_refused(
    removed: str, message: str, model_folder: Path, tmp_path: Path
) -> None:
    for file in model_folder.iterdir():
        if not file.match(removed):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=message):
        resolve(tmp_path)


def test_pickled_weights_are_not_read(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="no weights in safetensors"):
        resolve(tmp_path)


def test_converted_pickles_follow_template_and_end_tokens(
    model_folder: Path, tmp_path: Path
) -> None:
    """The copy in the cache holds tokenizer, template and generation config as well."""
    folder = tmp_path / "pickled"
    shutil.copytree(model_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    def loaded() -> Any:
        return load_model(str(folder), allow_pickle=True, cache_dir=tmp_path / "cache")

    loaded()
    (folder / "chat_template.jinja").write_text(
        "B{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    said = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "generation_config.json").write_text(json.dumps({**said, "eos_token_id": [1, 40]}))
    model = loaded()
    assert model.tokenizer.chat_template.startswith("B")
    assert model.original_model.generation_config.eos_token_id == [1, 40]


def test_a_directory_with_only_a_gguf_points_to_it(tmp_path: Path) -> None:
    (tmp_path / "some.Q4_1.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"give its path \(some\.Q4_1\.gguf\)"):
        resolve(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt5", "unknown model 'gpt5'"),
        ("", "unknown model ''"),
        ("x" * 5000, "unknown model 'xxx"),
        ("~nobody-at-all", "unknown model '~nobody-at-all'"),
        ("nul\0byte", "unknown model"),
        ("a model", "unknown model 'a model'"),
        ("./nowhere", "no such directory './nowhere'"),
        ("/nowhere/at/all", "no such directory '/nowhere/at/all'"),
        ("one/two/three", "no such directory 'one/two/three'"),
        ("../two", "no such directory '../two'"),
        ("nowhere/tiny.gguf", "no such file 'nowhere/tiny.gguf'"),
    ],
)
def test_anything_else_is_refused_in_one_line(spec: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve(spec, cache_dir=tmp_path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_refusal_lists_what_is_possible() -> None:
    with pytest.raises(UserError) as caught:
        resolve("gpt5")
    for kind in ("smollm2-135m", "organisation/name", "directory", ".gguf"):
        assert kind in str(caught.value)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.touch()
    with pytest.raises(UserError, match="is not a model"):
        resolve(path)


def test_the_hub_is_asked_for_safetensors_and_text_only(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(model_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("some-lab/a.model-1@refs/pr/2") == model_folder
    assert (asked["repo"], asked["revision"]) == ("some-lab/a.model-1", "refs/pr/2")
    assert asked["allow_patterns"] == ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    assert resolve("some-lab/a.model-1") == model_folder
    assert asked["revision"] is None


RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError("404\nmore", response=RESPONSE), "the hub has no model"),
        (GatedRepoError("403\nmore", response=RESPONSE), "is gated"),
        (LocalEntryNotFoundError("offline\nmore"), "check the name, the revision and the conn"),
        (OSError("no route to host"), "cannot get 'lab/model' from the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=message) as caught:
        resolve("lab/model")
    assert "\n" not in str(caught.value)


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAITHLENS_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("FAITHLENS_CACHE")
    assert cache_root() == tmp_path / "xdg" / "faithlens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "faithlens"
