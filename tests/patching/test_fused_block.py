"""Fused blocks and norms against transformers' own, and what they save."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)
from transformers.cache_utils import DynamicCache
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from interp.forward.fused_block import fused_forward, rotated
from interp.forward.known_code import is_norm
from interp.forward.layer_range import override_forward
from interp.forward.norms import fuse_norm, rms_norm
from interp.forward.shared_prefix import SharedPrefix, implementation, prefix_cache, use_prefix
from interp.forward.widen import widen
from interp.models.call import call_model
from tests.architectures import LLAMA_LIKE, LLAMA_LIKE_SIZES

pytestmark = pytest.mark.bridge_only

SIZES = LLAMA_LIKE_SIZES | {"vocab_size": 64, "num_hidden_layers": 3}


def make(family: str, **config: Any) -> Any:
    config_class, model_class = LLAMA_LIKE[family]
    torch.manual_seed(0)
    options = SIZES | {"head_dim": 8} | config
    if family == "qwen2":
        del options["head_dim"]
    model = model_class(config_class(**options)).eval().requires_grad_(False)
    for name, one in model.named_parameters():
        if one.ndim == 1:  # norms' weights of one and biases of zero would hide a mistake
            one.copy_(1 + 0.3 * torch.randn_like(one) if "norm" in name else torch.randn_like(one))
    model.config._attn_implementation = implementation()
    return model


class Count(TorchDispatchMode):
    """Counts operators."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = ("view", "t", "transpose", "expand", "slice", "permute", "unsqueeze", "detach")
        others = ("split_with_sizes", "new_empty", "_unsafe_view", "promote_types", "lift_fresh")
        self.total += func.overloadpacket.__name__ not in (*views, *others)
        return func(*args, **(kwargs or {}))


class Prompts:
    """Two prompts, one padded, and the keys and values of their first four positions."""

    @torch.no_grad()
    def __init__(self, model: Any, n_positions: int) -> None:
        torch.manual_seed(1)
        self.model = model
        self.tokens = torch.randint(64, (2, 4 + n_positions))
        self.mask = torch.ones_like(self.tokens, dtype=torch.bool)
        self.mask[1, :2] = False
        cache = DynamicCache()
        with use_prefix(SharedPrefix((), torch.arange(2))):
            call_model(model, self.tokens[:, :4], self.mask[:, :4], cache=cache)
        layers: Any = cache.layers
        self.kept = tuple((layer.keys, layer.values) for layer in layers)

    @torch.no_grad()
    def run(self, *, in_order: bool = True) -> tuple[Tensor, int]:
        """Logits of the other positions in rows that repeat prompts; and how many operators."""
        rows = torch.tensor([0, 1, 0, 1, 0, 1] if in_order else [0, 0, 1, 1, 0, 1])
        tokens, cache = self.tokens[rows, 4:], prefix_cache(self.kept)
        with use_prefix(SharedPrefix(self.kept, rows)), Count() as count:
            logits = call_model(self.model, tokens, self.mask[rows], cache=cache, keep=3)
        return logits, count.total


def fuse(model: Any) -> None:
    for index, block in enumerate(model.model.layers):
        forward = fused_forward(block)
        assert forward is not None, index
        block.__dict__["forward"] = forward


@pytest.mark.parametrize("in_order", [True, False], ids=["repeated", "any rows"])
@pytest.mark.parametrize("n_positions", [5, 40], ids=["few", "many"])
@pytest.mark.parametrize("family", LLAMA_LIKE)
def test_a_fused_model_gives_the_same_logits(family: str, n_positions: int, in_order: bool) -> None:
    model = make(family)
    prompts = Prompts(model, n_positions)
    expected, before = prompts.run(in_order=in_order)
    fuse(model)
    for module in model.modules():
        fuse_norm(module)
    found, after = prompts.run(in_order=in_order)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert after < before
    # The control: these logits do depend on what the blocks compute.
    with override_forward(model.model.layers[1], lambda hidden_states, **_: hidden_states):
        assert not torch.allclose(prompts.run(in_order=in_order)[0], expected, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_operators_of_a_block(dtype: torch.dtype) -> None:
    """For each layer, on a CPU; a norm is five of them here, and it was 36 (43 in bfloat16)."""

    def count(layers: int) -> int:
        model = make("llama", num_hidden_layers=layers).to(dtype)
        for module in model.modules():
            widen(module)
            fuse_norm(module)
        prompts = Prompts(model, 40)
        fuse(model)
        return prompts.run()[1]

    assert (count(3) - count(1)) / 2 <= (25 if dtype == torch.float32 else 28)


@pytest.mark.parametrize("in_order", [True, False], ids=["repeated", "any rows"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_narrow_weights_with_biases_and_norms_of_heads(family: str, in_order: bool) -> None:
    model = make(family).bfloat16()
    for module in model.modules():
        widen(module)
    prompts = Prompts(model, 40)
    expected, _ = prompts.run(in_order=in_order)
    fuse(model)
    found, _ = prompts.run(in_order=in_order)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_norms_with_gradients() -> None:
    norm = LlamaRMSNorm(6, eps=0.1).double()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6))
    norm.requires_grad_(False)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: rms_norm(value, norm), (x,))


def test_rotation_has_its_transpose() -> None:
    heads, other = torch.randn(2, 1, 3, 4, 6).unbind()
    angles = torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    order = (0, 1, 2, 3)
    there = (rotated(heads, angles, order=order) * other).sum()
    back = (heads * rotated(other, angles, order=order, transposed=True)).sum()
    torch.testing.assert_close(there, back)


def test_widened_weights() -> None:
    model = make("llama").bfloat16()
    for module in model.modules():
        widen(module)
    prompts = Prompts(model, 5)
    expected, _ = prompts.run()
    assert expected.dtype == torch.float32
    fuse(model)
    torch.testing.assert_close(prompts.run()[0], expected, atol=2e-5, rtol=1e-4)


def test_other_code_is_left_alone() -> None:
    """Another forward, another norm, another rotary embedding, another module within."""
    model = make("llama")
    block = model.model.layers[0]

    class Changed(type(block)):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            return 2 * super().forward(hidden_states, **kwargs)

    assert fused_forward(block) is not None
    block.__class__ = Changed
    assert fused_forward(block) is None
    block = model.model.layers[1]
    block.input_layernorm = GemmaRMSNorm(32)
    assert fused_forward(block) is None
    block = model.model.layers[2]
    block.extra = nn.Identity()
    assert fused_forward(block) is None
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4))
    assert fused_forward(gpt2.transformer.h[0]) is None


def test_norms() -> None:
    norm = LlamaRMSNorm(4, eps=0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([[1.0, 1.0, 1.0, -1.0], [3.0, 4.0, 0.0, 0.0]])
    by_hand = x / torch.tensor([[1.5], [6.75]]).sqrt() * torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, norm), by_hand)
    torch.testing.assert_close(rms_norm(x, norm), by_hand)  # with gradients
    assert is_norm(norm)
    assert not is_norm(GemmaRMSNorm(4))
    assert not is_norm(nn.LayerNorm(4))
    # Half precision goes on as transformers has it, rounded in between.
    half, expected = LlamaRMSNorm(64).bfloat16(), LlamaRMSNorm(64).bfloat16()
    fuse_norm(half)
    value = torch.randn(5, 64).bfloat16()
    assert torch.equal(half(value), expected(value))


def test_rotation_by_hand() -> None:
    """A quarter turn of each pair (i, i + half) is (a, b) → (-b, a)."""
    heads = torch.arange(8.0).view(1, 1, 2, 4)
    cos, sin = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    found = rotated(heads, (cos, sin), order=(0, 2, 1, 3))
    assert found.shape == (1, 2, 1, 4)
    assert found[0, :, 0].tolist() == [[-2, -3, 0, 1], [-6, -7, 4, 5]]
