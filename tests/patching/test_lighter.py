"""Lighter modules give their own values, or stay as they are."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import GemmaConfig, GPTNeoXConfig, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from interp.patching.lighter import lighten, turn_halves

WIDTH = 24


def replaced(module: nn.Module) -> bool:
    lighten(module)
    return "forward" in module.__dict__


def mlp(**settings: Any) -> LlamaMLP:
    torch.manual_seed(0)
    return LlamaMLP(
        LlamaConfig(hidden_size=WIDTH, intermediate_size=40, num_attention_heads=2, **settings)
    )


def test_a_norm_of_random_weights_keeps_its_values() -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(WIDTH, eps=1e-5)
    nn.init.normal_(norm.weight)
    x = 5 * torch.randn(3, 7, WIDTH)
    before = norm(x)
    assert replaced(norm)
    torch.testing.assert_close(norm(x), before, rtol=1e-6, atol=1e-6)


def test_a_norm_that_is_another_function_stays() -> None:
    norm: Any = GemmaRMSNorm(WIDTH)
    nn.init.normal_(norm.weight)
    norm.variance_epsilon = norm.eps  # so that only its values tell it apart
    assert not replaced(norm)


def test_a_norm_in_low_precision_stays() -> None:
    assert not replaced(LlamaRMSNorm(WIDTH).bfloat16())


@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mlp_keeps_its_values_and_its_input(bias: bool) -> None:
    module = mlp(mlp_bias=bias)
    x = torch.randn(3, 7, WIDTH)
    kept = x.clone()
    before = module(x).detach()
    assert replaced(module)
    with torch.no_grad():
        torch.testing.assert_close(module(x), before)
    assert torch.equal(x, kept)


def test_gradients_go_through_the_module_as_before() -> None:
    module = mlp()
    x = torch.randn(2, 3, WIDTH, requires_grad=True)
    (wanted,) = torch.autograd.grad(module(x).square().sum(), x)
    assert replaced(module)
    (found,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.testing.assert_close(found, wanted)


def test_another_activation_stays() -> None:
    assert not replaced(
        GemmaMLP(GemmaConfig(hidden_size=WIDTH, intermediate_size=40, num_attention_heads=2))
    )


def test_turning_halves_by_hand() -> None:
    """A quarter turn takes (x, y) to (−y, x), the first half of a head being x, the second y."""
    x = torch.arange(1.0, 5.0).reshape(1, 1, 1, 4)
    zero, one = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    q, k = turn_halves(x, 10 * x, zero, one)
    assert q.flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]
    assert k.flatten().tolist() == [-30.0, -40.0, 10.0, 20.0]
    narrow, _ = turn_halves(x, x, zero[..., :2], one[..., :2])  # the rest of a head stays
    assert narrow.flatten().tolist() == [-2.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize(("file", "width"), [(modeling_llama, 8), (modeling_gpt_neox, 4)])
def test_turning_halves_as_transformers_does(file: Any, width: int) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, heads, 5, 8) for heads in (4, 2))
    angles = torch.randn(2, 5, width), torch.randn(2, 5, width)
    for own, new in zip(
        file.apply_rotary_pos_emb(q, k, *angles), turn_halves(q, k, *angles), strict=True
    ):
        torch.testing.assert_close(new, own)


def attention(kind: Any) -> Any:
    settings: dict[str, Any] = {
        "hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 9,
    }  # fmt: skip
    config: Any = GPTNeoXConfig(**settings)
    if kind is LlamaAttention:
        config = LlamaConfig(num_key_value_heads=2, **settings)
    config._attn_implementation = "eager"
    return kind(config, layer_idx=0).eval()


@pytest.mark.parametrize("kind", [LlamaAttention, GPTNeoXAttention])
def test_attention_turns_in_place_and_keeps_its_values(kind: Any) -> None:
    torch.manual_seed(0)
    module, other = attention(kind), attention(kind)
    width = WIDTH // 2 if kind is LlamaAttention else 4  # the other turns a part of each head
    x, angles = torch.randn(2, 5, WIDTH), (torch.randn(2, 5, width), torch.randn(2, 5, width))
    given = {"attention_mask": None, "position_embeddings": angles}
    before = module(x, **given)[0].detach()
    assert replaced(module)
    torch.testing.assert_close(module(x, **given)[0], before)
    assert "forward" not in other.__dict__  # nobody else's


def test_another_rotary_embedding_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        return q * cos.unsqueeze(1), k * sin.unsqueeze(1)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", pairs)
    assert not replaced(attention(LlamaAttention))


def test_attention_in_low_precision_stays() -> None:
    assert not replaced(attention(LlamaAttention).bfloat16())
