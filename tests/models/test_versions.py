"""Either major version of TransformerLens: the same weights have the same head effects."""

from typing import Any

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM

from interp.errors import UserError
from interp.interventions import constrain
from interp.models import HookedModel, fingerprint, from_hf
from interp.models.versions import (
    MAJOR,
    before_each_pass,
    require_bridge,
    wraps_transformers,
    writes_resid_mid,
)
from tests.models.head_effects import (
    EMBEDDED,
    FEW_LAYERS,
    TINY,
    cases,
    read_reference,
    same_top_ten,
)

CASES = {case.name: case for case in cases()}
TOKENS = torch.tensor([[5, 9, 7, 8, 30, 31]])


@pytest.mark.parametrize("name", [*TINY, EMBEDDED])
def test_head_effects_are_those_of_the_reference(name: str, request: Any) -> None:
    """What TransformerLens 4 gave, to less than 1e-3, and the same ten heads in front."""
    reference, fingerprints = read_reference()
    close = CASES[name].close
    model = request.getfixturevalue("smollm") if name == EMBEDDED else CASES[name].make()
    assert fingerprint(model) == fingerprints[name]
    compared = 0
    for key, values in CASES[name].effects(model, few=True):
        expected = reference[key][: len(values)]
        if name == EMBEDDED and "attribution" not in key:
            values, expected = values[:, FEW_LAYERS], expected[:, FEW_LAYERS]
        torch.testing.assert_close(values, expected, atol=close, rtol=0)
        assert same_top_ten(values, expected), key
        assert float(expected.abs().max()) > 50 * close  # there is something to compare
        compared += 1
    assert compared == len(CASES[name].settings)


def test_other_weights_have_other_effects(hf_factory: Any, chat_tokenizer: Any) -> None:
    """The control to the test above."""
    reference, fingerprints = read_reference()
    model = from_hf(hf_factory("llama", chat_tokenizer, seed=1), chat_tokenizer)
    assert fingerprint(model) != fingerprints["llama"]
    for key, values in CASES["llama"].effects(model, few=True):
        expected = reference[key][: len(values)]
        assert float((values - expected).abs().max()) > 1e-2
        assert not same_top_ten(values, expected)


def test_a_new_value_at_resid_mid_goes_where_the_package_thinks(tiny_llama: HookedModel) -> None:
    """In the stream on TransformerLens 3, to the MLP alone on the bridge."""
    seen: dict[str, torch.Tensor] = {}

    def zero(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.zeros_like(value)

    def keep(name: str) -> Any:
        def hook_function(value: torch.Tensor, hook: Any) -> None:
            seen[name] = value.clone()

        return f"blocks.1.hook_{name}", hook_function

    hooks: Any = [("blocks.1.hook_resid_mid", zero), keep("mlp_out"), keep("resid_post")]
    with torch.no_grad(), tiny_llama.hooks(fwd_hooks=hooks):
        tiny_llama(TOKENS)
    assert torch.equal(seen["mlp_out"], seen["resid_post"]) == writes_resid_mid(tiny_llama)
    assert writes_resid_mid(tiny_llama) != wraps_transformers(tiny_llama)


@torch.no_grad()
def test_every_pass_is_told_of_however_it_is_called(tiny_llama: HookedModel) -> None:
    told: list[tuple[Any, Any, int]] = []

    def begin(tokens: Any, mask: Any, seen: int) -> None:
        told.append((tokens, mask, seen))

    hf_model: Any = tiny_llama.original_model
    ones = torch.ones_like(TOKENS)
    with before_each_pass(tiny_llama, begin):
        tiny_llama(TOKENS, attention_mask=ones)
        hf_model.generate(input_ids=TOKENS, attention_mask=ones, max_new_tokens=3, do_sample=False)
    tiny_llama(TOKENS)
    assert [(tokens.shape[1], seen) for tokens, _, seen in told] == [(6, 0), (6, 0), (1, 6), (1, 7)]
    assert all(mask is None or torch.equal(mask, ones) for _, mask, seen in told if not seen)


@torch.no_grad()
def test_a_constraint_holds_in_either_way_of_calling(tiny_llama: HookedModel) -> None:
    free = tiny_llama(TOKENS)
    hf_model: Any = tiny_llama.original_model
    with constrain(tiny_llama, [(0, 1)], site="output", at=[(2, 4)]):
        called = tiny_llama(TOKENS)
        as_transformers = hf_model(input_ids=TOKENS).logits
    torch.testing.assert_close(called, as_transformers, atol=1e-5, rtol=0)
    assert float((called - free).abs().max()) > 1e-2


def test_what_needs_the_bridge_says_so() -> None:
    if MAJOR >= 4:
        require_bridge("this")
        return
    with pytest.raises(UserError, match=r"this needs TransformerLens 4 .* install 'transformer"):
        require_bridge("this")


@pytest.mark.hooked_transformer_only
def test_an_architecture_that_is_not_known_is_named(plain_tokenizer: Any) -> None:
    config = GPTJConfig(
        n_embd=32, n_layer=1, n_head=4, rotary_dim=8, vocab_size=len(plain_tokenizer)
    )
    with pytest.raises(UserError, match="cannot hook GPTJForCausalLM, only GPT2LMHeadModel, "):
        from_hf(GPTJForCausalLM(config).eval(), plain_tokenizer)


@pytest.mark.hooked_transformer_only
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention_bias": True}, "does not compute this LlamaForCausalLM as transformers does"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "no rotary embedding of type 'dynamic', only default, linear, llama3",
        ),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(
    plain_tokenizer: Any, changed: dict[str, Any], message: str
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(plain_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        **changed,
    )
    hf_model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    with pytest.raises(UserError, match=message):
        from_hf(hf_model, plain_tokenizer)


@pytest.mark.hooked_transformer_only
def test_the_weights_are_in_memory_once(hf_factory: Any, plain_tokenizer: Any) -> None:
    hf_model = hf_factory("llama", plain_tokenizer)
    theirs = {one.untyped_storage().data_ptr() for one in hf_model.parameters()}
    model = from_hf(hf_model, plain_tokenizer)
    for name, parameter in model.named_parameters():
        if ".W_" in name or "._W_" in name:
            assert parameter.untyped_storage().data_ptr() in theirs, name


@pytest.mark.hooked_transformer_only
@torch.no_grad()
def test_leading_end_tokens_are_text_whatever_side_is_padded(
    hf_factory: Any, plain_tokenizer: Any
) -> None:
    hf_model = hf_factory("llama", plain_tokenizer)
    model = from_hf(hf_model, plain_tokenizer)
    model.tokenizer.padding_side = "left"
    tokens = torch.tensor([[plain_tokenizer.pad_token_id, 5, 9, 7]])
    torch.testing.assert_close(model(tokens), hf_model(tokens).logits, atol=1e-4, rtol=0)
