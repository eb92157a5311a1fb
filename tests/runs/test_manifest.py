"""What a manifest says of a run, whichever kind of model it was made with."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from interp.errors import UserError
from interp.models import HookedModel, fingerprint
from interp.models.fingerprint import template_fingerprint, tokenizer_fingerprint
from interp.runs.manifest import (
    describe_hf_model,
    describe_model,
    read_manifest,
    recorded_spec,
    versions,
    write_manifest,
)
from interp.runs.shards import PACKAGES


def test_of_a_hooked_model(tiny_llama: HookedModel, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(b"{}\n")
    write_manifest(tmp_path, tiny_llama, prompts="pairs.jsonl", seed=3, settings={"limit": None})
    content = read_manifest(tmp_path)
    assert content["model"].pop("spec")
    if (count := content["model"].pop("parameters", None)) is not None:  # TransformerLens 3: none
        assert count == sum(one.numel() for one in tiny_llama.original_model.parameters())
    assert content["model"] == {
        "architecture": "LlamaForCausalLM",
        "fingerprint": fingerprint(tiny_llama),
        "n_layers": 3,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_head": 8,
        "allow_pickle": False,
    }
    assert (content["dtype"], content["device"]) == ("float32", "cpu")
    assert content["prompts_sha256"] == hashlib.sha256(b"{}\n").hexdigest()
    assert (content["seed"], content["settings"]) == (3, {"limit": None})
    assert content["command"].startswith("interp")
    assert content["threads"] >= 1


def test_of_a_transformers_model_without_prompts(tiny_llama: HookedModel, tmp_path: Path) -> None:
    hf_model: Any = tiny_llama.original_model
    tokenizer = tiny_llama.tokenizer
    described = describe_hf_model(hf_model, tokenizer, spec="tiny", fingerprint="ab")
    assert described == {
        "model": {"spec": "tiny", "fingerprint": "ab"},
        "dtype": "float32",
        "device": "cpu",
        "attn_implementation": "eager",
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": template_fingerprint(tokenizer),
        "end_tokens": [tokenizer.eos_token_id],
    }
    write_manifest(tmp_path, described, prompts=None)
    content = read_manifest(tmp_path)
    assert {key: content[key] for key in described} == described
    assert "prompts_sha256" not in content


def test_a_description_says_which_model_and_how_it_runs(tiny_gpt2: HookedModel) -> None:
    how = {"dtype", "device", "attn_implementation"}
    asked = {"tokenizer_sha256", "chat_template_sha256", "end_tokens"}
    assert set(describe_model(tiny_gpt2)) == {"model", *how, *asked}


def test_versions_of_everything_that_is_named() -> None:
    found = versions()
    assert list(found) == ["python", *PACKAGES]
    assert "not installed" not in found.values()


def test_a_directory_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run: it has no manifest"):
        read_manifest(tmp_path)


def test_a_model_of_a_directory_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name may be relative, and look like a hub id."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    run = tmp_path / "run"
    run.mkdir()
    described = {"model": {"spec": "models/mine", "fingerprint": "ab"}}
    monkeypatch.chdir(tmp_path)
    write_manifest(run, described, prompts=None)
    assert read_manifest(run)["model"]["spec"] == "models/mine"
    monkeypatch.chdir(run)
    assert recorded_spec(run) == str(tmp_path / "models" / "mine")
    (tmp_path / "models" / "mine").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="where it is no longer: say where it is"):
        recorded_spec(run)
    (run / "models" / "mine").mkdir(parents=True)  # moved together with what is beside it
    assert recorded_spec(run) == "models/mine"


@pytest.mark.parametrize("spec", ["smollm2-135m", "someone/model@main"])
def test_a_model_of_a_name_is_loaded_by_its_name(spec: str, tmp_path: Path) -> None:
    write_manifest(tmp_path, {"model": {"spec": spec, "fingerprint": "ab"}}, prompts=None)
    assert "folder" not in read_manifest(tmp_path)["model"]
    assert recorded_spec(tmp_path) == spec
