"""The adapted projection as one operator, against the formula written out; and what it costs."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from interp.moelora import MoELoRAConfig, MoELoRALinear, auxiliary_losses, expert_load
from interp.moelora.losses import contrastive_loss
from interp.moelora.plain_projection import is_plain_projection
from interp.moelora.recorder import Recorder, Step
from tests.moelora.outputs import products_of_outputs

VIEWS = frozenset(
    [
        *("view", "t", "transpose", "expand", "slice", "split", "split_with_sizes", "unbind"),
        *("detach", "alias", "unsqueeze", "empty", "empty_like", "new_empty", "_unsafe_view"),
        *("is_same_size", "permute", "select", "squeeze", "diagonal", "empty_strided"),
    ]
)
"""What starts no kernel."""
READS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim"})
"""What waits for a device."""


class Operators(TorchDispatchMode):
    """Counts the operators that run while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def kernels(self) -> int:
        """How many there were that compute something."""
        return sum(count for name, count in self.counts.items() if name not in VIEWS)


def make_layer(count: int = 4, *, bias: bool = True, **config: Any) -> MoELoRALinear:
    base = nn.Linear(6, 5, bias=bias).requires_grad_(False)
    layer = MoELoRALinear(base, "layers.0.q_proj", Recorder())
    layer.add_adapter("default", MoELoRAConfig(num_experts=count, **config), count)
    nn.init.normal_(layer.moelora_B["default"], std=0.5)
    return layer


def run(
    layer: MoELoRALinear, x: Tensor, target: Tensor, *, fused: bool, losses: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """The output, and all gradients of its product with a target plus of what is recorded."""
    layer.fused = fused
    layer.recorder.step = Step(None, True)
    torch.manual_seed(1)
    output = layer(x)
    total = (output * target).sum()
    for routed in layer.recorder.step.kept if losses else ():
        for value in (routed.joint, routed.logits, routed.hidden, routed.up):
            total = total if value is None else total + value.float().square().sum()
    parts = [x, *(one for one in layer.parameters() if one.requires_grad)]
    return output, list(torch.autograd.grad(total, parts))


def assert_same(layer: MoELoRALinear, x: Tensor, tolerance: float, *, losses: bool = True) -> None:
    target = torch.randn(*x.shape[:-1], 5)
    fused, slow = (run(layer, x, target, fused=one, losses=losses) for one in (True, False))
    assert fused[0].dtype == slow[0].dtype
    for one, other in zip((fused[0], *fused[1]), (slow[0], *slow[1]), strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    r=st.integers(1, 3),
    count=st.integers(1, 5),
    top_k=st.integers(1, 5),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    renormalize=st.booleans(),
    bias=st.booleans(),
    dropout=st.sampled_from([0.0, 0.4]),
    noise=st.sampled_from([0.0, 0.5]),
)
def test_it_is_the_formula_written_out(
    seed: int,
    r: int,
    count: int,
    top_k: int,
    shape: list[int],
    renormalize: bool,
    bias: bool,
    dropout: float,
    noise: float,
) -> None:
    torch.manual_seed(seed)
    settings = {"lora_dropout": dropout, "router_noise": noise, "lora_alpha": 3}
    settings |= {"r": r, "top_k": min(top_k, count), "renormalize": renormalize}
    layer = make_layer(count, bias=bias, **settings).train()
    assert_same(layer, torch.randn(*shape, 6, requires_grad=True), 1e-5)


def test_mixed_precision() -> None:
    """The formula rounds at other places: a few steps of bfloat16 apart."""
    layer = make_layer(r=2).train()
    x = torch.randn(3, 4, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(layer, x, 0.06)
    layer.base_layer.bfloat16()
    half = x.detach().bfloat16().requires_grad_()
    assert_same(layer, half, 0.06)
    assert_same(layer.bfloat16(), half, 0.1)


def test_the_frozen_projection_is_computed_here_only_where_nothing_looks_at_it() -> None:
    layer = make_layer(r=2).train()
    x = torch.randn(2, 6)
    assert is_plain_projection(layer.base_layer, x)
    seen: list[Tensor] = []
    with layer.base_layer.register_forward_hook(lambda *args: seen.append(args[2])):
        assert not is_plain_projection(layer.base_layer, x)
        hooked = layer(x)
    assert len(seen) == 1
    torch.testing.assert_close(hooked, layer(x))
    assert not is_plain_projection(layer.base_layer, x.double())
    layer.base_layer.requires_grad_(True)  # its gradient would be lost
    assert not is_plain_projection(layer.base_layer, x)
    layer(x).sum().backward()
    assert layer.base_layer.weight.grad is not None  # type: ignore[union-attr]


def test_what_was_not_given_is_not_changed() -> None:
    """Products are accumulated in place: never onto a tensor of someone else."""
    layer = make_layer(r=2)
    x, output = torch.randn(3, 6), torch.randn(3, 5)
    before = x.clone(), output.clone()
    layer._adapted_at_once(output, x, "default")
    assert torch.equal(x, before[0])
    assert torch.equal(output, before[1])


def test_fewer_operators_and_none_that_waits(adapt: Any, batch: Any) -> None:
    """Of what experts add to a model's step, beside the model's own, for each layer."""

    def count(layers: int, *, fused: bool | None) -> Counter[str]:
        adapted = adapt(model={"num_hidden_layers": layers}).train()
        for module in adapted.modules():
            if isinstance(module, MoELoRALinear):
                module.fused = bool(fused)
        adapted(inputs_embeds=embedded, attention_mask=mask)  # modules are tried at the first step
        with Operators() as operators:
            if fused is None:
                with adapted.disable_adapter():
                    loss = adapted(inputs_embeds=embedded, attention_mask=mask).logits.sum()
            else:
                loss = adapted(inputs_embeds=embedded, attention_mask=mask).logits.sum()
                loss = loss + auxiliary_losses(adapted).total
                expert_load(adapted)
            loss.backward()
        return operators.counts

    embedded = torch.randn(3, 9, 32, requires_grad=True)
    mask = batch["attention_mask"]
    kernels = {}
    for fused in (True, False, None):
        two, four = (count(n, fused=fused) for n in (2, 4))
        assert fused is None or not READS & (four - two).keys()
        kernels[fused] = sum(n for name, n in (four - two).items() if name not in VIEWS) / 2
    ours, written_out = kernels[True] - kernels[None], kernels[False] - kernels[None]
    assert ours <= 0.65 * written_out


def test_auxiliary_losses_wait_for_no_device(adapt: Any, batch: Any) -> None:
    adapted = adapt(router_z_weight=0.1).train()
    adapted(**batch)
    with Operators() as operators:
        total = auxiliary_losses(adapted).total
    assert operators.kernels < 100
    with operators:
        total.backward()
    assert not READS & operators.counts.keys()


@pytest.mark.parametrize("temperature", [0.03, 0.1, 1.0])
def test_either_way_to_sum_exponentials(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = torch.arange(12) % 3
    products = products_of_outputs(torch.randn(12, 1, 4))
    found = contrastive_loss(products, expert, temperature=temperature)
    monkeypatch.setattr("interp.moelora.losses._NO_UNDERFLOW", 2.0)
    torch.testing.assert_close(contrastive_loss(products, expert, temperature=temperature), found)


def test_more_tokens_are_asked_for_than_are_real(adapt: Callable[..., Any], batch: Any) -> None:
    """All real ones are drawn, and padding takes no part."""
    adapted = adapt(contrastive_tokens=1000, contrastive_start=0.0).train()
    adapted(**batch)
    loss = auxiliary_losses(adapted).contrastive
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, :3] = 7
    adapted(**other)
    torch.testing.assert_close(auxiliary_losses(adapted).contrastive, loss)
