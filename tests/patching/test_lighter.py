"""Lighter modules give their own values, or stay as they are."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import GemmaConfig, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from interp.patching.lighter import lighten

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
