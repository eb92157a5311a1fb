from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.errors import UserError
from interp.moelora import MoELoRAConfig, MoELoRALinear
from interp.moelora.layer import sizes_of
from interp.moelora.recorder import Recorder


def make_layer(base: nn.Module, count: int = 4, **config: Any) -> MoELoRALinear:
    layer = MoELoRALinear(base.requires_grad_(False), "layers.0.q_proj", Recorder())
    layer.add_adapter("default", MoELoRAConfig(num_experts=count, **config), count)
    nn.init.normal_(layer.moelora_B["default"], std=0.5)
    return layer


def literal(layer: MoELoRALinear, x: Tensor, noise: Tensor | None = None) -> Tensor:
    """The sum over experts written out, token by token."""
    experts = layer.experts["default"]
    config, r = experts.config, experts.config.r
    down, up = layer.moelora_A["default"], layer.moelora_B["default"]
    rows = []
    for token, base in zip(
        x.reshape(-1, x.shape[-1]),
        layer.base_layer(x).reshape(-1, layer.out_features),
        strict=True,
    ):
        probabilities = (layer.moelora_router["default"] @ token).softmax(dim=0)
        values, chosen = probabilities.topk(config.top_k)
        if config.renormalize:
            values = values / values.sum()
        added = torch.zeros(layer.out_features)
        for value, expert in zip(values, chosen.tolist(), strict=True):
            its = slice(expert * r, (expert + 1) * r)
            added = added + value * (up[:, its] @ (down[its] @ token))
        rows.append(base + config.lora_alpha / (r**0.5 if config.use_rslora else r) * added)
    return torch.stack(rows).reshape(*x.shape[:-1], layer.out_features)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    r=st.integers(1, 3),
    count=st.integers(1, 5),
    top_k=st.integers(1, 5),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    renormalize=st.booleans(),
    rslora=st.booleans(),
    conv=st.booleans(),
    bias=st.booleans(),
)
def test_forward_and_gradients_are_those_of_the_written_out_sum(
    seed: int,
    r: int,
    count: int,
    top_k: int,
    shape: list[int],
    renormalize: bool,
    rslora: bool,
    conv: bool,
    bias: bool,
) -> None:
    torch.manual_seed(seed)
    base = Conv1D(6, 5) if conv else nn.Linear(5, 6, bias=bias)
    layer = make_layer(
        base,
        count,
        r=r,
        top_k=min(top_k, count),
        renormalize=renormalize,
        use_rslora=rslora,
        lora_alpha=3,
    )
    x = torch.randn(*shape, 5, requires_grad=True)
    parts = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    outputs = [layer(x), literal(layer, x)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    target = torch.randn_like(outputs[0])
    fast, slow = (torch.autograd.grad((one * target).sum(), parts) for one in outputs)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_by_hand() -> None:
    layer = make_layer(nn.Linear(2, 1, bias=False), 3, r=1, top_k=2, lora_alpha=10)
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.tensor([[1.0, 1.0]]))  # type: ignore[operator]
        layer.moelora_A["default"].copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]))
        layer.moelora_B["default"].copy_(torch.tensor([[1.0, 2.0, 100.0]]))
        # Probabilities of the token (1, 2): exp(0), exp(ln 3), and one so small it is not chosen.
        router = torch.tensor([[0.0, 0.0], [torch.log(torch.tensor(3.0)), 0.0], [-9.0, 0.0]])
        layer.moelora_router["default"].copy_(router)
    x = torch.tensor([[1.0, 2.0]])
    # 1 + 2, and 10 times (1/4 · 1·1 + 3/4 · 2·2)
    torch.testing.assert_close(layer(x), torch.tensor([[3 + 10 * (0.25 + 3.0)]]))


def test_a_fresh_adapter_changes_no_bit() -> None:
    base = nn.Linear(8, 8)
    layer = MoELoRALinear(base, "q", Recorder())
    layer.add_adapter("default", MoELoRAConfig(num_experts=4), 4)
    x = torch.randn(3, 5, 8)
    assert torch.equal(layer(x), base(x))


def test_dropout_and_noise_act_in_training_only() -> None:
    layer = make_layer(nn.Linear(8, 8), r=2, lora_dropout=0.5, router_noise=3.0)
    x = torch.randn(2, 5, 8)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    torch.testing.assert_close(layer(x), literal(layer, x), atol=1e-5, rtol=1e-5)


def test_the_router_is_not_rounded_under_autocast() -> None:
    layer = make_layer(nn.Linear(64, 8), r=2)
    x = torch.randn(50, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, hidden = layer._project(x, "default")
        output = layer(x)
    assert logits.dtype == torch.float32
    assert hidden.dtype == output.dtype == torch.bfloat16
    exact, _ = layer._project(x, "default")
    torch.testing.assert_close(logits, exact)


def test_half_precision_base_with_float32_experts() -> None:
    layer = make_layer(nn.Linear(16, 8), r=2)
    x = torch.randn(2, 5, 16)
    exact = layer(x)
    layer.base_layer.bfloat16()
    rounded = layer(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.1, rtol=0.05)


def test_bfloat16_experts_run_too() -> None:
    layer = MoELoRALinear(nn.Linear(16, 8).bfloat16(), "q", Recorder())
    layer.add_adapter("default", MoELoRAConfig(num_experts=4), 4)
    assert layer.moelora_A["default"].dtype == torch.bfloat16
    assert layer(torch.randn(2, 5, 16).bfloat16()).dtype == torch.bfloat16


def test_merging_says_why_not() -> None:
    layer = make_layer(nn.Linear(4, 4))
    for refused in (layer.merge, layer.unmerge):
        with pytest.raises(UserError, match="depends on the token"):
            refused()


def test_only_linear_projections() -> None:
    assert sizes_of(nn.Linear(3, 4)) == (3, 4)
    assert sizes_of(Conv1D(4, 3)) == (3, 4)
    with pytest.raises(UserError, match="not Embedding"):
        sizes_of(nn.Embedding(3, 4))
