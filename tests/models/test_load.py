"""Hooked models compute what transformers does, padded or not, and say what they are."""

import importlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from interp.errors import UserError
from interp.models import (
    HookedModel,
    ModelInfo,
    fingerprint,
    fingerprint_of_folder,
    from_hf,
    load_model,
    model_info,
    resolve,
)
from interp.models.folder import read_folder
from interp.models.placement import is_dispatched
from interp.models.whole import load_whole

QUESTION = "Why is Paris the capital of Germany?"


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


def test_a_directory_is_loaded_with_its_tokenizer(
    model_folder: Path,
    tmp_path: Path,
    chat_tokenizer: PreTrainedTokenizerFast,
    hf_factory: Callable[..., Any],
) -> None:
    model = load_model(model_folder, device="cpu", cache_dir=tmp_path)
    tokens = chat_tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    assert model.tokenizer(QUESTION, return_tensors="pt")["input_ids"].equal(tokens)
    assert model.tokenizer.chat_template == chat_tokenizer.chat_template
    expected = hf_factory("llama", chat_tokenizer, attn_implementation="eager")(tokens).logits
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model_info(model) == ModelInfo(
        spec=str(model_folder),
        fingerprint=fingerprint_of_folder(model_folder),
        dtype="float32",
        device="cpu",
        attn_implementation="eager",
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        d_head=8,
    )
    assert fingerprint(model) == model_info(model).fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for(dtype: str, model_folder: Path, tmp_path: Path) -> None:
    model = load_model(model_folder, device="cpu", dtype=dtype, cache_dir=tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model(torch.tensor([[1, 2, 3]])).dtype == getattr(torch, dtype)
    assert model_info(model).dtype == dtype


def test_a_fingerprint_is_of_the_weights_not_of_the_dtype(
    model_folder: Path, tmp_path: Path, tiny_llama: HookedModel
) -> None:
    full = load_model(model_folder, device="cpu", cache_dir=tmp_path)
    half = load_model(model_folder, device="cpu", dtype="bfloat16", cache_dir=tmp_path)
    assert fingerprint(full) == fingerprint(half)
    assert fingerprint(full) != fingerprint(tiny_llama)


def test_a_changed_weight_changes_the_fingerprint(
    chat_tokenizer: PreTrainedTokenizerFast,
    hf_factory: Callable[..., Any],
    tiny_llama: HookedModel,
) -> None:
    same, changed = (hf_factory("llama", chat_tokenizer) for _ in range(2))
    with torch.no_grad():
        changed.model.layers[0].self_attn.q_proj.weight[0, 0] += 1e-3
    assert fingerprint(from_hf(same, chat_tokenizer)) == fingerprint(tiny_llama)
    assert fingerprint(from_hf(changed, chat_tokenizer)) != fingerprint(tiny_llama)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'; known: float32, bfloat16, float16"),
        ({"attn_implementation": "sdpa"}, "unknown attention implementation 'sdpa'; known: eager"),
        ({"device": "abacus"}, "device 'abacus' is not there: choose one of cpu"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there: choose one of cpu"),
        ({"device": "meta"}, "device 'meta' is not there: choose one of cpu"),
    ],
)
def test_a_wrong_choice_is_one_line_before_anything_is_read(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model("smollm2-135m", cache_dir=tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_truncated_weights_are_one_line(model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(UserError, match="cannot load") as caught:
        load_model(tmp_path, device="cpu", cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "no-such-thing"}'])
def test_a_broken_configuration_is_one_line(
    config: str, model_folder: Path, tmp_path: Path
) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="cannot load") as caught:
        load_model(tmp_path, device="cpu", cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", '{"model_type": "llama", "vocab_size": "x"}', "its config.json: .*vocab_"),
        ("config.json", '{"model_type": "llama", "dtype": "float99"}', "its config.json: an entry"),
        ("tokenizer.json", "[]", "its tokenizer: an entry is missing, or of a wrong kind"),
        ("tokenizer_config.json", "[]", "its tokenizer: an entry is missing, or of a wrong kind"),
        ("tokenizer_config.json", '{"tokenizer_class": 5}', "its tokenizer: an entry"),
        ("generation_config.json", "[]", "its configuration or its weights: an entry"),
    ],
)
def test_a_file_of_the_wrong_kind_is_told_by_its_part(
    file: str, content: str, said: str, model_folder: Path, tmp_path: Path
) -> None:
    for one in model_folder.iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        load_model(tmp_path, device="cpu", cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_key_value_heads_that_no_query_heads_share(
    chat_tokenizer: PreTrainedTokenizerFast, hf_factory: Callable[..., Any]
) -> None:
    odd = hf_factory("llama", chat_tokenizer, num_key_value_heads=3)
    with pytest.raises(UserError, match=r"4 query heads cannot share 3 key-v|cannot hook"):
        from_hf(odd, chat_tokenizer)


def test_a_model_that_cannot_be_hooked_is_refused(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    class Unheard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.config = BertConfig(architectures=["UnheardForCausalLM"])

    with pytest.raises(UserError, match=r"takes a causal language model .*, not Unheard"):
        from_hf(Unheard(), chat_tokenizer)


def test_hooked_models_are_of_a_class(tiny_llama: HookedModel) -> None:
    assert isinstance(tiny_llama, HookedModel)
    assert not isinstance(tiny_llama.original_model, HookedModel)


def test_a_model_from_elsewhere_has_no_info() -> None:
    with pytest.raises(UserError, match=r"from_hf\(hf_model, tokenizer\)"):
        model_info(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_loading_is_silent_and_leaves_the_libraries_as_they_were(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    filters = list(warnings.filters)
    root_level = logging.getLogger().level
    load_model(model_folder, device="cpu", cache_dir=tmp_path)
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert transformers_logging.get_verbosity() == verbosity
    assert warnings.filters == filters
    assert logging.getLogger().level == root_level
    assert capfd.readouterr() == ("", "")


def test_the_callers_tokenizer_is_left_alone(
    hf_factory: Callable[..., Any], plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    before = dict(plain_tokenizer.init_kwargs)
    model = from_hf(hf_factory("gpt2", plain_tokenizer), plain_tokenizer)
    assert plain_tokenizer.init_kwargs == before == model.tokenizer.init_kwargs
    assert model.tokenizer is not plain_tokenizer
    ids = plain_tokenizer(QUESTION)["input_ids"]
    assert model.tokenizer(QUESTION)["input_ids"] == ids
    assert model.to_tokens(QUESTION).tolist() == [[plain_tokenizer.bos_token_id, *ids]]


def pad(tokens: list[int], length: int, side: str, padding: int) -> list[int]:
    missing = [padding] * (length - len(tokens))
    return missing + tokens if side == "left" else tokens + missing


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "smollm"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_unpadded(name: str, side: str, request: pytest.FixtureRequest) -> None:
    model: HookedModel = request.getfixturevalue(name)
    long, short = model.tokenizer([QUESTION + " " + QUESTION, QUESTION])["input_ids"]
    row = pad(short, len(long), side, model.tokenizer.pad_token_id)
    mask = pad([1] * len(short), len(long), side, 0)
    with torch.no_grad():
        # Two rows here too: another batch size alone moves the embedded model's logits by 7e-5.
        alone = model(torch.tensor([short, short]))[1]
        batch = model(
            torch.tensor([long, row]), attention_mask=torch.tensor([[1] * len(long), mask])
        )[1]
    kept = batch[-len(short) :] if side == "left" else batch[: len(short)]
    torch.testing.assert_close(kept[-1], alone[-1], atol=5e-5, rtol=0)
    # On some machines a dozen of the embedded model's other 393,000 logits differ by up to 5.8e-5,
    # by rounding: in float64 none differs.
    rounding = 1e-4 if name == "smollm" else 5e-5
    torch.testing.assert_close(kept, alone, atol=rounding, rtol=0)


def test_padding_without_a_mask_is_another_input(tiny_llama: HookedModel) -> None:
    """The control to the test above: it would notice padding that is read as text."""
    tokens = tiny_llama.tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    padded = torch.nn.functional.pad(tokens, (3, 0), value=tiny_llama.tokenizer.pad_token_id)
    difference = tiny_llama(padded)[0, -1] - tiny_llama(tokens)[0, -1]
    assert difference.abs().max() > 1e-2


def test_the_embedded_model(smollm: HookedModel) -> None:
    info = model_info(smollm)
    assert (info.spec, info.dtype, info.device) == ("smollm2-135m", "float32", "cpu")
    assert (info.n_layers, info.n_heads, info.n_kv_heads, info.d_head) == (30, 9, 3, 64)
    assert info.fingerprint == fingerprint_of_folder(resolve("smollm2-135m"))
    tokens = smollm.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    _, cache = smollm.run_with_cache(tokens, names_filter=["blocks.3.attn.hook_z"])
    assert cache["blocks.3.attn.hook_z"].shape == (1, 5, 9, 64)
    assert smollm.tokenizer.decode(smollm(tokens)[0, -1].argmax()) == " Paris"


def test_info_is_checked_when_made() -> None:
    with pytest.raises(ValueError, match="3 query heads cannot share 2 KV heads"):
        ModelInfo("x", "0", "float32", "cpu", "eager", 1, 3, 2, 8)


def test_weights_read_straight_to_a_device_are_the_same(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter and buffer, bit by bit, and no hooks of accelerate.

    The CPU stands in for the device that is asked for.
    """
    read: list[Any] = []

    def on_cpu(place: Path, **options: Any) -> Any:
        model = load_whole(place, **{**options, "device_map": {"": "cpu"}})
        read.extend([options.get("device_map"), named_values(model), is_dispatched(model)])
        return model

    def named_values(model: Any) -> dict[str, torch.Tensor]:
        named = (*model.named_parameters(), *model.named_buffers())
        return {name: value.detach().clone() for name, value in named}

    plain, _ = read_folder(model_folder, spec="tiny", dtype=torch.float32, device="cpu")
    monkeypatch.setattr("interp.models.folder.load_whole", on_cpu)
    read_folder(model_folder, spec="tiny", dtype=torch.float32, device="meta")
    asked, found, dispatched = read
    expected = named_values(plain)
    assert asked == {"": "meta"}
    assert not dispatched
    assert found.keys() == expected.keys()
    assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.bridge_only
def test_no_processor_of_images_is_loaded(
    hf_factory: Any, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerLens asks the hub for one, and installs packages for it."""
    source: Any = importlib.import_module(
        "transformer_lens.model_bridge.sources.transformers.source"
    )
    loaded: list[Any] = []

    def load(*args: Any) -> None:
        loaded.append(args)

    monkeypatch.setattr(source, "load_modality_processor", load)
    model = from_hf(hf_factory("llama", chat_tokenizer), chat_tokenizer)
    assert model.cfg.n_layers
    assert not loaded
    assert source.load_modality_processor is load
    source.load_modality_processor(None)  # the control: it is what a bridge would call
    assert loaded
