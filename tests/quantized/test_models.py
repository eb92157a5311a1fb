"""Hooked models with quantized weights: logits, the self-check, fingerprints, refusals."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Phi3Config, Phi3ForCausalLM

import interp.models
from interp.errors import UserError
from interp.forward.generate import generate_tokens
from interp.forward.trial import sweep_resolution, trusted_unhooked_model
from interp.models import HookedModel, model_info
from interp.models.fingerprint import fingerprint_of_model
from interp.models.model_check import check_of
from interp.models.whole import first_bad_weight
from interp.precision import PRECISIONS
from interp.quantized import is_packed, quantization_of
from tests.quantized.conftest import SIZES, read

pytestmark = pytest.mark.bridge_only

TOKENS = torch.tensor([[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22, 23, 24, 25, 26, 27]])


@torch.no_grad()
def test_the_hooked_model_is_transformers_own(
    kind: str, load: Callable[..., Any], quantized: HookedModel
) -> None:
    raw = load(kind)
    expected = raw(input_ids=TOKENS).logits
    torch.testing.assert_close(quantized(TOKENS), expected, rtol=0, atol=1e-4)
    plain = load("nf4").dequantize() if kind == "nf4" else None
    if plain is not None:
        torch.testing.assert_close(plain(input_ids=TOKENS).logits, expected, rtol=0, atol=1e-4)


def test_everything_is_right_of_it(kind: str, quantized: HookedModel) -> None:
    check = check_of(quantized)
    assert not check.problems
    assert len(check.unhooked_tuple_outputs) == quantized.cfg.n_layers
    info = model_info(quantized)
    assert (info.dtype, info.n_heads, info.n_kv_heads) == ("float32", 4, 2)
    plain = trusted_unhooked_model(quantized, 8)
    assert plain is not None
    assert plain.wide == (kind in ("bfloat16", "int8"))
    assert sweep_resolution(quantized) == PRECISIONS[torch.float32].resolution
    assert not any(weight.requires_grad for weight in quantized.parameters())


def test_padding_changes_nothing(twin: HookedModel, kind: str, quantized: HookedModel) -> None:
    """To the last bits, or as far as LLM.int8() and bfloat16 round."""
    tokens = nn.functional.pad(TOKENS, (3, 0), value=2)
    mask = nn.functional.pad(torch.ones_like(TOKENS), (3, 0))
    with torch.no_grad():
        padded = quantized.original_model(input_ids=tokens, attention_mask=mask).logits[:, 3:]
        expected = quantized.original_model(input_ids=TOKENS).logits
    close = {"bfloat16": 0.2, "int8": 0.5}.get(kind, 5e-5)
    assert float((padded - expected).abs().max()) < close


def test_the_same_weights_have_the_same_fingerprint(load: Callable[..., Any]) -> None:
    found = {kind: fingerprint_of_model(load(kind)) for kind in ("nf4", "double", "int8")}
    found["fp4"] = fingerprint_of_model(load("nf4", bnb_4bit_quant_type="fp4"))
    assert len(set(found.values())) == len(found)
    for kind in ("nf4", "double", "int8"):
        again = load(kind)
        with torch.no_grad():
            again(input_ids=TOKENS)  # a run moves the scales of int8 to another place
        assert fingerprint_of_model(again) == found[kind]


def test_one_scale_more_is_another_fingerprint(load: Callable[..., Any]) -> None:
    hf_model = load("nf4")
    before = fingerprint_of_model(hf_model)
    hf_model.model.layers[1].mlp.down_proj.weight.quant_state.absmax[3] *= 1.01
    assert fingerprint_of_model(hf_model) != before


def test_every_part_of_a_tensor_of_several_counts() -> None:
    """torchao's tensors consist of packed numbers, scales and so on; torch has one for tests."""
    kind: Any = importlib.import_module("torch.testing._internal.two_tensor").TwoTensor

    def of(packed: torch.Tensor, scales: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer("weight", kind(packed, scales))
        return fingerprint_of_model(module)

    packed, scales = torch.randn(3, 4), torch.randn(3, 4)
    assert of(packed, scales) == of(packed.clone(), scales.clone())
    assert of(packed, scales + 1) != of(packed, scales) != of(packed + 1, scales)


def test_packed_bits_are_no_damage(load: Callable[..., Any]) -> None:
    """Four packed numbers can have the bits of a NaN in bfloat16."""
    hf_model = load("nf4", bnb_4bit_quant_storage=torch.bfloat16)
    weight = hf_model.model.layers[0].mlp.up_proj.weight
    weight.data.view(torch.uint8).fill_(0xFF)
    assert bool(torch.isnan(weight.data).any())
    assert first_bad_weight(hf_model) is None
    hf_model.lm_head.weight.data[0, 0] = torch.nan
    assert first_bad_weight(hf_model) is not None


def test_it_answers_as_transformers_does(kind: str, load: Any, quantized: HookedModel) -> None:
    prompts, raw = TOKENS.tolist(), load(kind)
    raw.set_attn_implementation("eager")  # in bfloat16 another kernel may give another token
    found = generate_tokens(quantized, prompts, max_new_tokens=4, progress=False)
    ids = raw.generate(
        input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=4,
        do_sample=False, pad_token_id=1,
    )  # fmt: skip
    expected = quantized.tokenizer.batch_decode(ids[:, 8:], skip_special_tokens=True)
    assert all(found)
    if kind != "bfloat16":  # two ways to compute a logit in it may give two tokens
        assert found == expected


def test_a_folder_of_quantized_weights(
    kind: str, load: Callable[..., Any], plain_tokenizer: Any, tmp_path: Path
) -> None:
    """Saved by transformers with its quantization in config.json, as on the hub."""
    raw = load(kind)
    raw.save_pretrained(tmp_path / "model")
    plain_tokenizer.save_pretrained(tmp_path / "model")
    model = interp.models.load_model(tmp_path / "model", device="cpu", cache_dir=tmp_path)
    assert quantization_of(model.original_model) == quantization_of(raw)
    with torch.no_grad():
        expected = raw(input_ids=TOKENS).logits
        torch.testing.assert_close(model(TOKENS), expected, rtol=0, atol=1e-4)
    again = interp.models.load_model(tmp_path / "model", device="cpu", cache_dir=tmp_path)
    assert model_info(again).fingerprint == model_info(model).fingerprint


def joint_model(family: str, tokenizer: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    torch.manual_seed(0)
    if family == "neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
    return Phi3ForCausalLM(Phi3Config(**sizes, num_key_value_heads=2))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "phi3"])
def test_joint_projections_are_kept_as_plain_ones(
    family: str, kind: str, hf_factory: Any, plain_tokenizer: Any, tmp_path: Path
) -> None:
    made = (
        hf_factory("gpt2", plain_tokenizer, n_embd=64)
        if family == "gpt2"
        else joint_model(family, plain_tokenizer)
    )
    made.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = read(tmp_path, kind)(input_ids=TOKENS).logits
        model = interp.models.from_hf(read(tmp_path, kind), plain_tokenizer)
        found = model(TOKENS)
    close = 1e-4 if kind == "nf4" else 0.05 * float(expected.abs().max())
    assert float((found - expected).abs().max()) < close
    assert not check_of(model).problems
    assert quantization_of(model.original_model) is not None


def test_merging_into_quantized_weights_is_refused(kind: str, load: Any, plain_tokenizer: Any):
    adapted = peft.get_peft_model(load(kind), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"merged into weights of bitsandbytes .* round it away"):
        interp.models.from_hf(adapted, plain_tokenizer)


def test_a_missing_package_is_one_line(
    load: Any, plain_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("nf4").save_pretrained(tmp_path / "model")
    plain_tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(
        "transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False
    )
    monkeypatch.setattr("interp.models.quantization.is_there", lambda package: False)
    with pytest.raises(UserError, match=r"bitsandbytes, which is not installed: pip install"):
        interp.models.load_model(tmp_path / "model", device="cpu", cache_dir=tmp_path)


def test_no_cpu_packs_the_weights_anew(load: Any, plain_tokenizer: Any) -> None:
    """As if this CPU had bfloat16 instructions; see `interp.quantized.keep_precision`."""
    hf_model = load("nf4")
    modules = [one for one in hf_model.modules() if hasattr(one, "support_avx512bf16_for_cpu")]
    for module in modules:
        module.support_avx512bf16_for_cpu = True
    before = [module.weight.data.clone() for module in modules]
    model = interp.models.from_hf(hf_model, plain_tokenizer)
    with torch.no_grad():
        model(TOKENS)
    for module, kept in zip(modules, before, strict=True):
        assert torch.equal(module.weight.data, kept)
        assert module.weight.dtype == torch.uint8
    embedded = torch.randn(1, 3, SIZES["hidden_size"], requires_grad=True)
    model.original_model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    assert all(is_packed(module.weight) for module in modules)
