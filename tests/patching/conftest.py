"""Architectures that differ in what patching depends on, and plain full forward passes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import interp.models
from interp.forward.hook_points import axis_of, hook_name
from interp.models import HookedModel
from tests.architectures import other_architectures
from tests.devices import on_device
from tests.fixtures import identity_norms

FAMILIES = ("llama", "gpt2", "qwen2", "gemma3", "neox", "mistral", "qwen3")

Hook = tuple[str, Callable[[torch.Tensor, Any], torch.Tensor | None]]
FullLogits = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def families(
    plain_tokenizer: Any, tiny_llama: HookedModel, tiny_gpt2: HookedModel
) -> dict[str, HookedModel]:
    """Grouped-query attention, learned positions, biases, sliding windows, parallel blocks."""
    made = {
        name: interp.models.from_hf(hf_model, plain_tokenizer, spec=name)
        for name, hf_model in other_architectures(plain_tokenizer).items()
    }
    return {"llama": tiny_llama, "gpt2": tiny_gpt2, **made}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, families: dict[str, HookedModel]) -> HookedModel:
    return families[request.param]


@torch.no_grad()
def run_one(model: Any, tokens: Any, hooks: Any = ()) -> torch.Tensor:
    """Last-position logits of one unpadded prompt, from one whole forward pass with hooks."""
    with model.hooks(fwd_hooks=list(hooks)):
        return model(torch.as_tensor(tokens)[None])[0, -1]


@torch.no_grad()
def outputs_of(model: Any, tokens: Any) -> list[torch.Tensor]:
    """Every layer's hook_z [pos head d_head] of one unpadded prompt."""
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Hook:
        def hook_function(z: torch.Tensor, hook: Any) -> None:
            seen[layer] = z[0].clone()

        return f"blocks.{layer}.attn.hook_z", hook_function

    run_one(model, tokens, [keep(layer) for layer in range(model.cfg.n_layers)])
    return [seen[layer] for layer in range(model.cfg.n_layers)]


@pytest.fixture(scope="session")
def full_logits() -> FullLogits:
    return run_one


@pytest.fixture(scope="session")
def full_outputs() -> Callable[..., list[torch.Tensor]]:
    return outputs_of


@torch.no_grad()
def seen_in(model: Any, tokens: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """What some hook points show in one whole forward pass of one unpadded prompt."""
    seen: dict[str, torch.Tensor] = {}

    def named(name: str) -> Hook:
        def hook_function(value: torch.Tensor, hook: Any) -> None:
            seen[name] = value[0].clone()

        return name, hook_function

    run_one(model, tokens, [named(name) for name in names])
    return seen


def write_unit(
    component: str, layer: int, unit: int, moves: dict[int, int], other: torch.Tensor | None
) -> Hook:
    """The hook that says one patch literally: position ← ``other``'s position, or zero.

    ``other`` is the hook point's value in another run, without its batch axis.
    """

    def hook_function(value: torch.Tensor, hook: Any) -> torch.Tensor:
        # In place: on the bridge a new ``resid_mid`` would be read by the MLP alone.
        for here, there in moves.items():
            place: Any = (0, here)
            taken: Any = there
            if component == "pattern":
                place, taken = (0, unit, here), (unit, there)
            elif axis_of(component):
                place, taken = (0, here, unit), (there, unit)
            value[place] = 0 if other is None else other[taken]
        return value

    return hook_name(component, layer), hook_function


def left_in(model: Any) -> dict[str, Any]:
    """Everything that a hook or an override could be left in."""
    modules = dict(model.named_modules()) | dict(model.original_model.named_modules(prefix="hf"))
    return {
        "hooks": {
            name: (len(point.fwd_hooks), len(point.bwd_hooks))
            for name, point in model.hook_dict.items()
        },
        "modules": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in modules.items()
        },
        "overrides": [name for name, module in modules.items() if "forward" in module.__dict__],
        "attention": model.original_model.config._attn_implementation,
    }


@pytest.fixture(scope="session")
def full_values() -> Callable[..., dict[str, torch.Tensor]]:
    return seen_in


@pytest.fixture(scope="session")
def unit_hook() -> Callable[..., Hook]:
    return write_unit


@pytest.fixture(scope="session")
def traces() -> Callable[[Any], dict[str, Any]]:
    return left_in


@torch.no_grad()
def blank_llama(*, n_layers: int, width: int, d_head: int) -> Any:
    """A Llama of two heads whose norms hand on their input exactly, and whose weights are zero."""
    hf_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=width,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=n_layers,
            num_attention_heads=2,
            head_dim=d_head,
            rms_norm_eps=2.0**40,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
    ).eval()
    for parameter in hf_model.parameters():
        parameter.zero_()
    identity_norms(hf_model)
    return hf_model


@pytest.fixture(scope="session")
@torch.no_grad()
def micro(plain_tokenizer: Any) -> HookedModel:
    """The model that ``test_micro`` works out by hand: whole numbers, and linear throughout."""
    ONE, X, B, C, M, U, V, W = range(8)
    hf_model = blank_llama(n_layers=3, width=8, d_head=4)
    hf_model.model.embed_tokens.weight[:, ONE] = 1
    hf_model.model.embed_tokens.weight[:, X] = 12.0 * torch.arange(8)
    # (layer, head, what it takes the mean of, times, where to)
    for layer, head, read, size, write in [
        (0, 0, X, 1, B),
        (0, 1, ONE, 7, C),
        (1, 0, B, 1, U),
        (1, 1, M, 1, V),
        (2, 0, U, 1, W),
    ]:
        attention = hf_model.model.layers[layer].self_attn
        attention.v_proj.weight[head * 4, read] = 1
        attention.o_proj.weight[write, head * 4] = size
    mlp = hf_model.model.layers[0].mlp
    mlp.gate_proj.weight[0, ONE] = 32  # silu(32) = 32 in float32
    mlp.up_proj.weight[0, B] = 1
    mlp.down_proj.weight[M, 0] = 3 / 32
    hf_model.lm_head.weight[0, [U, V, C, M, W]] = torch.tensor([1.0, 10.0, 100.0, 1.0, 16.0])
    return interp.models.from_hf(on_device(hf_model), plain_tokenizer, spec="micro")
