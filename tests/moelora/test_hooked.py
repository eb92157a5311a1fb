"""Adapted models in TransformerLens: the same logits, hooks that are read and written."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Phi3Config, Phi3ForCausalLM

import interp
from interp.errors import UserError
from interp.forward.generate import generate_tokens
from interp.moelora import MoELoRAConfig, hooked
from interp.patching import LogitDifference, last_logits, patch_heads
from interp.premises.encode import encode_premises
from interp.runs.manifest import describe_model

pytestmark = pytest.mark.bridge_only

ALL_TARGETS = [f"{one}_proj" for one in ("q", "k", "v", "o", "gate", "up", "down")]


@torch.no_grad()
def logits_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).logits


@torch.no_grad()
def bridge_logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model.original_model(**batch).logits


def largest_difference(one: Tensor, other: Tensor, mask: Tensor) -> float:
    return (one - other)[mask.bool()].abs().max().item()


@pytest.fixture(params=["llama", "gpt2", "neox", "phi3"])
def adapted(
    request: pytest.FixtureRequest, adapt: Any, plain_tokenizer: Any, fill: Callable[..., None]
) -> Any:
    """Separate projections; joint ones in blocks; interleaved by head; joint with fewer keys."""
    if request.param == "llama":
        return adapt(target_modules=ALL_TARGETS)
    if request.param == "gpt2":
        return adapt("gpt2", target_modules=["c_attn", "c_proj", "c_fc"])
    sizes: dict[str, Any] = {
        "vocab_size": len(plain_tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    torch.manual_seed(0)
    if request.param == "neox":
        base: Any = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
        targets = ["query_key_value", "dense", "dense_h_to_4h"]
    else:
        base = Phi3ForCausalLM(Phi3Config(**sizes, num_key_value_heads=2))
        targets = ["qkv_proj", "o_proj", "down_proj"]
    config = MoELoRAConfig(r=2, num_experts=4, target_modules=targets, task_type="CAUSAL_LM")
    made = peft.get_peft_model(base, config).eval()
    fill(made)
    return made


def test_what_is_being_trained_stays_so(adapt: Any, plain_tokenizer: Any) -> None:
    model = adapt().train()
    hooked_model = hooked(model, plain_tokenizer)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in hooked_model.original_model.modules())


def test_logits_are_the_peft_models(adapted: Any, plain_tokenizer: Any, batch: Any) -> None:
    expected = logits_of(adapted, batch)
    with adapted.disable_adapter():
        base = logits_of(adapted, batch)
    model = hooked(adapted, plain_tokenizer)
    mask = batch["attention_mask"]
    assert largest_difference(expected, base, mask) > 0.1
    assert largest_difference(bridge_logits(model, batch), expected, mask) < 1e-5
    # The PEFT model is left as it was.
    assert torch.equal(logits_of(adapted, batch), expected)
    assert any(one.requires_grad for one in adapted.parameters())
    assert not any(one.requires_grad for one in model.original_model.parameters())


def test_every_projection_has_its_hook_points(
    adapted: Any, plain_tokenizer: Any, batch: Any
) -> None:
    model = hooked(adapted, plain_tokenizer)
    names = [name for name in model.hook_dict if ".moelora." in name]
    projections = {name.rpartition(".moelora.")[0] for name in names}
    wanted = adapted.base_model.targeted_module_names
    assert len(projections) == len(wanted)
    assert len(names) == 3 * len(wanted)
    expected = logits_of(adapted, {"input_ids": batch["input_ids"]})
    logits, cache = model.run_with_cache(batch["input_ids"])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for projection in projections:
        router, gate, outputs = (
            cache[f"{projection}.moelora.hook_{point}"]
            for point in ("router", "gate", "expert_out")
        )
        assert router.shape == gate.shape == outputs.shape[:-1] == (3, 9, 4)
        torch.testing.assert_close(router.sum(dim=-1), torch.ones(3, 9))
        torch.testing.assert_close(gate.sum(dim=-1), torch.ones(3, 9))
        assert (gate > 0).sum(dim=-1).eq(2).all()
        kept = torch.where(gate > 0, router, 0)
        torch.testing.assert_close(gate, kept / kept.sum(dim=-1, keepdim=True))
        assert outputs.shape[-1] > 1


def test_without_experts_it_is_the_base_model(
    adapted: Any, plain_tokenizer: Any, batch: Any
) -> None:
    with adapted.disable_adapter():
        base = logits_of(adapted, batch)
    expected = logits_of(adapted, batch)
    model = hooked(adapted, plain_tokenizer)
    for point in ("hook_gate", "hook_expert_out"):

        def all_of(name: str, point: str = point) -> bool:
            return name.endswith(f"moelora.{point}")

        with model.hooks(fwd_hooks=[(all_of, lambda value, hook: torch.zeros_like(value))]):
            written = bridge_logits(model, batch)
        assert largest_difference(written, base, batch["attention_mask"]) < 1e-5
    # The hooks are gone.
    assert largest_difference(bridge_logits(model, batch), expected, batch["attention_mask"]) < 1e-5


@pytest.mark.parametrize("renormalize", [True, False])
def test_what_is_added_is_the_gated_sum_of_expert_outputs(
    renormalize: bool, adapt: Any, plain_tokenizer: Any, batch: Any
) -> None:
    adapted = adapt(renormalize=renormalize, lora_alpha=6)
    model = hooked(adapted, plain_tokenizer)
    name = "blocks.1.attn.q"
    _, cache = model.run_with_cache(batch["input_ids"])
    gate, outputs = (cache[f"{name}.moelora.hook_{point}"] for point in ("gate", "expert_out"))
    layer = model.blocks[1].attn.q.original_component
    x = cache[f"{name}.hook_in"]
    added = layer(x) - layer.base_layer(x)
    torch.testing.assert_close((gate[..., None] * outputs).sum(dim=-2), added, atol=1e-5, rtol=1e-5)
    down, up = layer.moelora_A["default"], layer.moelora_B["default"]
    torch.testing.assert_close(
        outputs[..., 2, :], 3.0 * x @ down[4:6].T @ up[:, 4:6].T, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("renormalize", [True, False])
def test_written_router_probabilities_choose_the_experts(
    renormalize: bool, adapt: Any, plain_tokenizer: Any, batch: Any
) -> None:
    model = hooked(adapt(renormalize=renormalize), plain_tokenizer)
    name = "blocks.0.attn.v.moelora"
    written = torch.tensor([0.1, 0.6, 0.0, 0.3])
    seen = {}
    model.run_with_hooks(
        batch["input_ids"],
        fwd_hooks=[
            (f"{name}.hook_router", lambda value, hook: written.expand_as(value)),
            (f"{name}.hook_gate", lambda value, hook: seen.update(gate=value)),
        ],
    )
    kept = torch.tensor([0.0, 0.6, 0.0, 0.3])
    expected = kept / 0.9 if renormalize else kept
    torch.testing.assert_close(seen["gate"], expected.expand(3, 9, 4))


def test_a_written_output_of_one_expert_reaches_the_logits(
    adapt: Any, plain_tokenizer: Any, batch: Any
) -> None:
    """Doubling an expert's output is doubling its gate."""
    model = hooked(adapt(), plain_tokenizer)
    plain = model(batch["input_ids"])

    def doubled(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, :, 1] *= 2
        return value

    logits = [
        model.run_with_hooks(
            batch["input_ids"],
            fwd_hooks=[(f"blocks.0.attn.q.moelora.{point}", doubled)],
        )
        for point in ("hook_expert_out", "hook_gate")
    ]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits[0], plain, atol=1e-3)


def test_expert_outputs_are_only_computed_when_hooked(
    adapt: Any, plain_tokenizer: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hooked(adapt(), plain_tokenizer)
    calls: list[str] = []
    points = model.blocks[0].attn.q.moelora
    forward = points.hook_expert_out.forward
    monkeypatch.setattr(
        points.hook_expert_out, "forward", lambda x: calls.append("computed") or forward(x)
    )
    model(batch["input_ids"])
    model.run_with_cache(batch["input_ids"], names_filter="blocks.0.attn.q.moelora.hook_gate")
    assert not calls
    model.run_with_cache(batch["input_ids"], names_filter="blocks.0.attn.q.moelora.hook_expert_out")
    assert calls == ["computed"]


def test_gradients_reach_the_gates(adapt: Any, plain_tokenizer: Any, batch: Any) -> None:
    model = hooked(adapt(), plain_tokenizer)
    gates: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> Tensor:
        gates.append(value.detach().requires_grad_())
        return gates[-1]

    with model.hooks(fwd_hooks=[("blocks.0.attn.v.moelora.hook_gate", keep)]):
        model(batch["input_ids"])[:, -1, 5].sum().backward()
    gradient = gates[0].grad
    assert gradient is not None
    step = 1e-2
    moved = gates[0].detach().clone()
    moved[0, 4, 2] += step
    with torch.no_grad():
        outputs = [
            model.run_with_hooks(
                batch["input_ids"],
                fwd_hooks=[("blocks.0.attn.v.moelora.hook_gate", lambda v, hook, g=g: g)],
            )[:, -1, 5].sum()
            for g in (gates[0].detach(), moved)
        ]
    torch.testing.assert_close(
        (outputs[1] - outputs[0]) / step, gradient[0, 4, 2], atol=5e-2, rtol=5e-2
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_head_patching_works_on_it(
    family: str, adapt: Any, plain_tokenizer: Any, batch: Any
) -> None:
    model = hooked(adapt(family), plain_tokenizer)
    clean, corrupted = batch["input_ids"], batch["input_ids"].flip(1)
    answers = torch.tensor([[3, 4], [5, 6], [7, 8]])
    metric = LogitDifference(answers[:, 0], answers[:, 1])
    values = patch_heads(model, clean, corrupted, metric)
    _, cache = model.run_with_cache(clean)
    for layer, head in ((0, 1), (1, 3)):
        name = f"blocks.{layer}.attn.hook_z"

        def write(z: Tensor, hook: Any, head: int = head, source: Tensor = cache[name]) -> Tensor:
            z = z.clone()
            z[:, :, head] = source[:, :, head]
            return z

        logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, write)])[:, -1]
        torch.testing.assert_close(values[:, layer, head], metric(logits), atol=1e-4, rtol=1e-4)


def test_faith_finds_and_constrains_heads_in_it(adapt: Any, plain_tokenizer: Any) -> None:
    model = hooked(adapt(), plain_tokenizer)
    premises = interp.load_premises("capitals", limit=4).with_templates(["why", "famous"])
    effects = interp.locate_heads(model, premises, method="attribution", progress=False)
    assert effects.values.shape[1:] == (3, 4)
    heads = [(0, 1), (2, 3)]
    encoded = encode_premises(model.tokenizer, premises)
    batch = encoded.batch("false")
    free = last_logits(model, batch)
    with interp.constrain(model, heads, premises=encoded, site="output"):
        held = last_logits(model, batch)
    at = encoded.objects("false")

    def silence(z: Tensor, hook: Any) -> Tensor:
        head = heads[0][1] if hook.layer() == heads[0][0] else heads[1][1]
        z = z.clone()
        z[:, :, head][at] = 0
        return z

    names = [f"blocks.{layer}.attn.hook_z" for layer, _ in heads]
    with model.hooks(fwd_hooks=[(name, silence) for name in names]):
        expected = last_logits(model, batch)
    torch.testing.assert_close(held, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(held, free, atol=1e-3)
    prompts = [item.prompt("false").tokens for item in encoded.items[:2]]
    with interp.constrain(model, heads, premises=encoded, site="attention"):
        answers = generate_tokens(model, prompts, max_new_tokens=4, progress=False)
    assert len(answers) == 2


def test_generation_is_the_peft_models(adapt: Any, plain_tokenizer: Any, batch: Any) -> None:
    adapted = adapt()
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = adapted.generate(**batch, **settings)
    model: Any = hooked(adapted, plain_tokenizer)
    assert torch.equal(model.original_model.generate(**batch, **settings), expected)


def test_modules_to_save_are_in_it(adapt: Any, plain_tokenizer: Any, batch: Any) -> None:
    adapted = adapt(modules_to_save=["lm_head"], model={"tie_word_embeddings": False})
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight.mul_(-2)
    model = hooked(adapted, plain_tokenizer)
    torch.testing.assert_close(
        bridge_logits(model, batch)[1:], logits_of(adapted, batch)[1:], atol=1e-5, rtol=1e-5
    )


def test_the_active_adapter_is_the_one_that_is_hooked(
    adapt: Any, plain_tokenizer: Any, batch: Any, fill: Callable[..., None]
) -> None:
    adapted = adapt()
    adapted.add_adapter("other", MoELoRAConfig(r=1, num_experts=3, target_modules=["q_proj"]))
    fill(adapted, seed=7)
    adapted.set_adapter("other")
    model = hooked(adapted, plain_tokenizer)
    torch.testing.assert_close(
        bridge_logits(model, batch)[1:], logits_of(adapted, batch)[1:], atol=1e-5, rtol=1e-5
    )
    assert {name.split(".")[3] for name in model.hook_dict if "moelora" in name} == {"q"}


def test_training_on_is_seen_through_the_shared_weights(
    adapt: Any, plain_tokenizer: Any, batch: Any, fill: Callable[..., None]
) -> None:
    adapted = adapt()
    model = hooked(adapted, plain_tokenizer)
    fill(adapted, seed=9)
    torch.testing.assert_close(
        bridge_logits(model, batch)[1:], logits_of(adapted, batch)[1:], atol=1e-5, rtol=1e-5
    )


def test_what_cannot_be_hooked(adapt: Any, hf_factory: Any, plain_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no MoELoRA adapter"):
        hooked(hf_factory("llama", plain_tokenizer), plain_tokenizer)
    adapted = adapt()
    adapted.add_adapter("other", MoELoRAConfig(target_modules=["q_proj"]))
    adapted.base_model.set_adapter(["default", "other"])
    with pytest.raises(UserError, match="2 adapters are active"):
        hooked(adapted, plain_tokenizer)
    adapted.base_model.set_adapter("other")
    with adapted.disable_adapter(), pytest.raises(UserError, match="no adapter is active"):
        hooked(adapted, plain_tokenizer)


def test_a_projection_that_transformer_lens_goes_round(plain_tokenizer: Any) -> None:
    config = Phi3Config(
        vocab_size=len(plain_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    adapted = peft.get_peft_model(
        Phi3ForCausalLM(config), MoELoRAConfig(target_modules=["gate_up_proj"])
    )
    with pytest.raises(UserError, match="gate_up_proj"):
        hooked(adapted, plain_tokenizer)


def test_a_run_notes_the_adapter(adapt: Any, plain_tokenizer: Any) -> None:
    model = describe_model(hooked(adapt(num_experts=4, r=2), plain_tokenizer))["model"]
    assert model["adapter"] == {"type": "MOELORA", "r": 2, "num_experts": 4, "top_k": 2}
    assert model["architecture"] == "LlamaForCausalLM"
