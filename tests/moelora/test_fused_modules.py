"""Modules in fewer operators against their plain classes; when they stay plain; what they save."""

import copy
import logging
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from interp.moelora import MoELoRAConfig, MoELoRALinear, auxiliary_losses
from interp.moelora.fused_check import computes_the_same
from interp.moelora.fused_modules import fuse_modules, plain_class, unfuse_modules
from tests.architectures import LLAMA_LIKE, LLAMA_LIKE_SIZES

SIZES = LLAMA_LIKE_SIZES | {"vocab_size": 64, "num_hidden_layers": 2}
QUERY_VALUE = ["q_proj", "v_proj"]
VIEWS = frozenset(
    [
        *("view", "t", "transpose", "expand", "slice", "split", "split_with_sizes", "unbind"),
        *("detach", "alias", "unsqueeze", "empty", "empty_like", "new_empty", "_unsafe_view"),
        *("is_same_size", "permute", "select", "squeeze", "diagonal", "empty_strided"),
        *("as_strided", "new_empty_strided", "promote_types", "lift_fresh"),
    ]
)
"""What starts no kernel."""


def make(family: str = "llama", *, layers: int = 2, dtype: Any = None, **config: Any) -> Any:
    """A tiny adapted model in training, with random norms, biases and up-projections."""
    config_class, model_class = LLAMA_LIKE[family]
    torch.manual_seed(0)
    base = model_class(config_class(**(SIZES | {"num_hidden_layers": layers})))
    with torch.no_grad():
        for name, value in base.named_parameters():
            if value.ndim == 1:
                value.copy_(1 + 0.3 * torch.randn_like(value) if "norm" in name else value)
    settings: dict[str, Any] = {"r": 2, "num_experts": 4, "target_modules": QUERY_VALUE}
    settings |= {"contrastive_start": 0.0, "contrastive_temperature": 0.5}
    adapted = peft.get_peft_model(
        base.to(dtype or torch.float32), MoELoRAConfig(**settings | config)
    )
    for name, value in adapted.named_parameters():
        if "moelora_B" in name:
            nn.init.normal_(value, std=0.3)
    return adapted.train()


def batch() -> dict[str, Tensor]:
    """Two prompts, one padded."""
    torch.manual_seed(1)
    tokens, mask = torch.randint(64, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def step(model: Any, **given: Any) -> dict[str, Tensor]:
    """The loss, and the gradients of all adapters."""
    inputs = batch() | given
    torch.manual_seed(2)
    loss = model(**inputs, labels=inputs["input_ids"]).loss + auxiliary_losses(model).total
    loss.backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"loss": loss.detach(), **found}


def plain(model: Any) -> Any:
    """The same with the formula written out, which leaves all modules as they are."""
    for module in model.modules():
        if isinstance(module, MoELoRALinear):
            module.fused = False
    return model


def fused_in(model: nn.Module) -> int:
    return sum(plain_class(module) is not type(module) for module in model.modules())


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """How far all values together are apart, of their length."""
    assert found.keys() == expected.keys()
    differences = [found[name].float() - value.float() for name, value in expected.items()]
    lengths = [
        torch.cat([part.flatten() for part in of]).norm() for of in (differences, expected.values())
    ]
    return float(lengths[0] / lengths[1])


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert distance(found, expected) <= 1e-5
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", LLAMA_LIKE)
@pytest.mark.parametrize("targets", [QUERY_VALUE, "all-linear", ["k_proj", "up_proj"]], ids=str)
def test_a_step_has_the_values_of_the_plain_modules(family: str, targets: Any) -> None:
    model = make(family, target_modules=targets)
    found = step(model)
    assert fused_in(model) == 8  # of two layers with two norms, attention and an MLP
    other = plain(make(family, target_modules=targets))
    expected = step(other)
    assert not fused_in(other)
    assert_same(found, expected)


@pytest.mark.parametrize(
    "config",
    [
        {"renormalize": False},
        {"r": 1, "top_k": 1},
        {"num_experts": [2, 4]},
        {"lora_dropout": 0.3, "router_noise": 0.5},
        {"router_z_weight": 0.1, "contrastive_weight": 0.0},
    ],
    ids=str,
)
def test_other_settings(config: dict[str, Any]) -> None:
    """Dropout and noise are drawn for each projection, in the plain order."""
    assert_same(step(make(**config)), step(plain(make(**config))))


def test_without_auxiliary_losses_and_in_a_second_step() -> None:
    found = {}
    for name, model in {"fused": make(), "plain": plain(make())}.items():
        for _ in range(2):
            model(**batch()).logits.square().mean().backward()
        found[name] = {
            key: value.grad for key, value in model.named_parameters() if value.grad is not None
        }
    assert_same(found["fused"], found["plain"])


def test_half_precision_is_no_further_from_float32() -> None:
    """The gradients of the same weights in float32, against both ways in bfloat16."""

    def of_seed(seed: int) -> Any:
        model = make(dtype=torch.bfloat16)
        torch.manual_seed(seed)
        for name, value in model.named_parameters():
            if value.ndim == 2 and "moelora_B" not in name:
                nn.init.normal_(value, std=0.2)
        return model

    errors = [0.0, 0.0]
    for seed in range(4):
        expected = step(plain(of_seed(seed).float()))
        for index, model in enumerate((of_seed(seed), plain(of_seed(seed)))):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                errors[index] += distance(step(model), expected)
            assert fused_in(model) == (8, 0)[index]
    assert errors[0] <= 1.1 * errors[1]


def test_autocast_of_a_model_in_float32() -> None:
    """Every product is rounded: modules run as they are, or give the same."""
    results = []
    for model in (make(), plain(make())):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(step(model))
    torch.testing.assert_close(results[0]["loss"], results[1]["loss"], atol=0.01, rtol=0.01)


def test_a_changed_module_is_not_fused(caplog: pytest.LogCaptureFixture) -> None:
    """Another forward; and a module with the known one that computes something else."""
    model = make()
    blocks = model.base_model.model.model.layers

    class Doubled(type(blocks[0].mlp)):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    blocks[0].mlp.__class__ = Doubled
    found = step(model)
    assert type(blocks[0].mlp) is Doubled
    assert fused_in(model) == 4  # known are whole blocks only
    other = plain(make())
    other.base_model.model.model.layers[0].mlp.__class__ = Doubled
    assert_same(found, step(other))


def test_other_numbers_at_the_first_step_leave_a_module_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("interp.moelora.fused_modules.rms_norm", lambda x, norm: 1.001 * x)
    model = make()
    with caplog.at_level(logging.INFO, "interp.moelora.fused_modules"):
        found = step(model)
    assert fused_in(model) == 4  # attention and MLPs, no norm
    assert "input_layernorm trains as it is" in caplog.text
    assert_same(found, step(plain(make())))


def test_a_wrong_gradient_is_found() -> None:
    class Right(nn.Linear):
        pass

    class Wrong(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.detach() + 0.5 * (input - input.detach()))

    module = Right(4, 4).requires_grad_(False)
    before = torch.get_rng_state()
    assert computes_the_same(module, Right, nn.Linear)
    assert not computes_the_same(module, Right, Wrong)
    assert type(module) is Right
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj.base_layer", "mlp.up_proj"])
def test_hooks_within_are_called(name: str) -> None:
    model = make()
    step(model)
    model.zero_grad()
    seen: list[Tensor] = []
    within = model.base_model.model.model.layers[1].get_submodule(name)
    with within.register_forward_hook(lambda *args: seen.append(args[2])):
        found = step(model)
    assert len(seen) == 1
    assert_same(found, step(plain(make())))


def test_switching_off() -> None:
    model = make()
    step(model)
    assert fused_in(model) == 8
    rows = torch.randn(2, 3, 32)
    norm = model.base_model.model.model.layers[0].input_layernorm
    plainly = type(norm).mro()[1].forward(norm, rows)
    assert torch.equal(norm.eval()(rows), plainly)  # evaluation is the plain class' to the bit
    unfuse_modules(model)
    assert not fused_in(model)
    fuse_modules(model)
    assert fused_in(model) == 8
    base = model.unload()
    assert not fused_in(base)


def test_copies_are_plain_and_find_out_for_themselves() -> None:
    model = make()
    expected = step(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.base_model.model))):
        assert not fused_in(again)
        again.zero_grad()
        assert step(again)["loss"] == expected["loss"]
        assert fused_in(again) == 8


class Operators(TorchDispatchMode):
    """Counts what computes while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += name not in VIEWS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 82), (torch.bfloat16, 92)], ids=["float32", "bfloat16"]
)
def test_operators_of_a_step(dtype: torch.dtype, most: int) -> None:
    """Forward, auxiliary losses and backward, for each layer; it was 164 (184 in bfloat16)."""

    def count(layers: int, change: Callable[[Any], Any]) -> int:
        model = change(make(layers=layers, dtype=dtype))
        step(model)
        model.zero_grad()
        with Operators() as operators:
            step(model, attention_mask=torch.ones(2, 9, dtype=torch.long))
        return operators.counts.total()

    here, written_out = (
        (count(3, change) - count(1, change)) / 2 for change in (lambda model: model, plain)
    )
    assert here <= most
    assert here <= 0.55 * written_out
