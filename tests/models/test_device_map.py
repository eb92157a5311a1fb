"""Device maps, memory and quantization: what is asked for, and what is refused in one line."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import interp
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.partial import last_logits
from interp.models import HookedModel, loader_of, model_info
from interp.models.device_map import describe, plan, read_device_map
from interp.models.placement import is_offloaded
from interp.models.quantization import quantization_config, quantization_name
from interp.runs.identity import model_identity
from interp.runs.manifest import describe_model, recorded_quantization
from tests.fixtures import make_hf_model, make_tokenizer

pytestmark = pytest.mark.bridge_only

PARTS = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "lm_head": "disk",
}
TOKENS = torch.tensor([[7, 8, 9, 10, 11, 12]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer()
    make_hf_model("llama", tokenizer, num_hidden_layers=2).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(folder: Path, cache: Path) -> HookedModel:
    return interp.load_model(folder, device="cpu", cache_dir=cache)


def logits(model: HookedModel) -> torch.Tensor:
    return last_logits(model, TokenBatch.of(TOKENS))


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": PARTS},
        {"device_map": ",".join(f"{name}={place}" for name, place in PARTS.items())},
        {"device_map": "disk", "check_finite": True},
        {"device_map": "auto", "max_memory": "cpu=150KB,disk=1GB"},
        {"device_map": "sequential", "max_memory": {"cpu": 150_000, "disk": "1GB"}},
    ],
)
def test_an_offloaded_model_is_the_same_model(
    options: dict[str, Any], folder: Path, cache: Path, whole: HookedModel
) -> None:
    model = interp.load_model(folder, cache_dir=cache, **options)
    assert is_offloaded(model.original_model)
    assert torch.equal(logits(model), logits(whole))
    info = model_info(model)
    assert info.fingerprint == model_info(whole).fingerprint
    assert "disk" in (info.device_map or {}).values()
    assert model_identity(model) == model_identity(whole)
    manifest = describe_model(model)
    assert manifest["device"] == "cpu"
    assert manifest["device_map"] == info.device_map
    assert "quantization" not in manifest["model"]


def test_a_model_that_fits_one_device_is_not_divided(folder: Path, cache: Path) -> None:
    model = interp.load_model(folder, cache_dir=cache, device_map="auto", max_memory={"cpu": "1GB"})
    assert not is_offloaded(model.original_model)
    assert model_info(model).device_map is None
    assert "device_map" not in describe_model(model)


def test_it_is_loaded_again_as_it_was(folder: Path, cache: Path) -> None:
    model = interp.load_model(folder, cache_dir=cache, device_map=PARTS)
    load = loader_of(model, dtype="float32")
    assert load.keywords["device_map"] == PARTS
    assert "device" not in load.keywords


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": {**PARTS, "model.layers.1.mlp": "cpu"}}, "places .*mlp twice: on cpu, and"),
        ({"device_map": {"": "disk", "lm_head": "cpu"}}, "lm_head twice"),
        ({"device_map": "model=cpu,lm_head=cpu,model=disk"}, "names model twice: cpu and disk"),
        ({"device_map": "model=cpu,lm_head"}, "name=value pairs"),
        ({"device_map": {**PARTS, "model.layers.7": "cpu"}}, "'model.layers.7', which .* does not"),
        ({"device_map": {**PARTS, "lm_head": "cuda:97"}}, "device 'cuda:97' is not there"),
        ({"device_map": {**PARTS, "lm_head": 97}}, "device 'cuda:97' is not there"),
        ({"device_map": {**PARTS, "lm_head": "gpu"}}, "device 'gpu' is not there"),
        ({"device_map": {**PARTS, "lm_head": "meta"}}, "have no numbers: use disk"),
        ({"device_map": {**PARTS, "lm_head": None}}, "is no device"),
        ({"device_map": "fast"}, "device_map is 'fast': give a word"),
        ({"device_map": {}}, "give a word"),
        ({"device_map": "auto", "device": "cpu"}, "leave one out"),
        ({"max_memory": {"cpu": "1GB"}}, "give device_map too"),
        ({"device_map": PARTS, "max_memory": {"cpu": "1GB"}}, "has no effect with a device for"),
        ({"device_map": "auto", "max_memory": {"cpu": "lots"}}, "give an amount such as 20GiB"),
        ({"device_map": "auto", "max_memory": {"tpu": "1GB"}}, "names 'tpu': devices are"),
        ({"device_map": "auto", "max_memory": {97: "1GB"}}, "'cuda:97' is not there"),
        ({"device_map": "auto", "max_memory": {}}, "give amounts"),
        ({"quantization": "int3"}, "choose one of bnb-4bit, bnb-8bit"),
    ],
)
def test_bad_input_is_one_clear_line(
    options: dict[str, Any], message: str, folder: Path, cache: Path
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        interp.load_model(folder, cache_dir=cache, **options)
    assert "\n" not in str(raised.value)


def test_a_part_that_is_left_out_is_named(folder: Path) -> None:
    some = {name: place for name, place in PARTS.items() if "layers.1" not in name}
    with pytest.raises(UserError, match=r"leaves out model\.layers\.1 of tiny"):
        plan(folder, some, spec="tiny", dtype=torch.float32)
    del some["model.norm"]
    with pytest.raises(UserError, match=r"leaves out model\.layers\.1, model\.norm of tiny"):
        plan(folder, some, spec="tiny", dtype=torch.float32)


def test_what_is_missing_is_counted(folder: Path) -> None:
    """43,168 weights of 4 bytes and two tables, where 100,000 bytes are allowed."""
    n_weights = 2 * 384 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    needed = 4 * n_weights + 4 * 4 + 4 * 4  # rotary frequencies, and the original ones
    missing = (needed - 100_000) / 2**20
    with pytest.raises(UserError, match=rf"at least {missing:.3g} MiB are missing") as raised:
        plan(
            folder,
            "sequential",
            spec="tiny",
            dtype=torch.float32,
            max_memory={"cpu": 100_000},
        )
    assert f"takes {needed / 2**20:.3g} MiB" in str(raised.value)


def test_parts_inside_others_on_the_same_device_are_one() -> None:
    assert read_device_map({"model": "cpu", "model.norm": "cpu", "lm_head": "disk"}) == {
        "model": "cpu",
        "lm_head": "disk",
    }
    assert read_device_map("cpu") == {"": "cpu"}
    assert read_device_map("balanced") == "balanced"


def test_one_device_is_no_device_map() -> None:
    assert describe(SimpleNamespace(hf_device_map={"": 0})) is None
    divided = SimpleNamespace(hf_device_map={"a": 0, "b": 1})
    assert describe(divided) == {"a": "cuda:0", "b": "cuda:1"}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def nothing(name: str, package: str | None = None) -> Any:
        return None if name == "bitsandbytes" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(UserError, match="bnb-4bit needs the package bitsandbytes"):
        quantization_config("bnb-4bit", dtype=torch.float32)


def test_another_quantization_is_another_run(
    folder: Path, cache: Path, whole: HookedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Recorded without running bitsandbytes: its configuration is left out here."""
    import interp.models.folder as reading

    monkeypatch.setattr("interp.models.load.quantization_config", lambda *a, **k: None)
    monkeypatch.setattr(reading, "quantization_config", lambda *a, **k: None)
    model = interp.load_model(folder, device="cpu", cache_dir=cache, quantization="bnb-4bit")
    info = model_info(model)
    assert info.quantization == "bnb-4bit"
    assert info.fingerprint != model_info(whole).fingerprint
    assert model_identity(model)["quantization"] == "bnb-4bit"
    assert "quantization" not in model_identity(whole)
    assert loader_of(model).keywords["quantization"] == "bnb-4bit"
    recorded = describe_model(model)
    assert recorded["model"]["quantization"] == "bnb-4bit"
    (tmp_path / "manifest.json").write_text('{"model": {"spec": "a", "fingerprint": "b"}}')
    assert recorded_quantization(tmp_path) is None


def test_the_name_of_a_configuration_holds_its_settings() -> None:
    assert quantization_name(None) is None
    assert quantization_name("bnb-8bit") == "bnb-8bit"
    assert quantization_name({"b": 1, "a": 2}) == '{"a": 2, "b": 1}'
