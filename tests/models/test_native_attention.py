"""Hook points of attention that transformers computes: what is written there is used."""

from typing import Any

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM, OPTConfig, OPTForCausalLM

from interp.models import from_hf
from tests.fixtures import make_tokenizer

pytestmark = pytest.mark.bridge_only

TOKENIZER = make_tokenizer()
IDS = torch.tensor([[5, 20, 21, 22, 16, 30]])
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
NAMES: dict[str, Any] = {"vocab_size": len(TOKENIZER), **SPECIAL}


def gptj() -> Any:
    """GPT-J adds its mask to the scores and takes ``nn.functional.softmax`` itself."""
    torch.manual_seed(0)
    config = GPTJConfig(
        **NAMES, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4, initializer_range=0.2
    )
    config._attn_implementation = "eager"
    return GPTJForCausalLM(config).eval()


def opt() -> Any:
    """OPT goes through transformers' attention interface."""
    torch.manual_seed(0)
    config = OPTConfig(
        **NAMES,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        init_std=0.2,
    )
    config._attn_implementation = "eager"
    return OPTForCausalLM(config).eval()


def hooked_logits(model: Any, *hooks: Any) -> torch.Tensor:
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model.original_model(input_ids=IDS).logits


@pytest.mark.parametrize("make", [gptj, opt])
def test_a_cut_of_the_scores_is_transformers_own_mask(make: Any) -> None:
    mask = torch.zeros(1, 4, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -1e30)
    mask[:, 2, 3:, 1] = -1e30  # one head no longer sees the second token

    def give_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    plain = make()
    attention = next(m for n, m in plain.named_modules() if n.endswith(("h.1.attn", "1.self_attn")))
    handle = attention.register_forward_pre_hook(give_mask, with_kwargs=True)
    with torch.no_grad():
        right = plain(input_ids=IDS).logits
        handle.remove()
        free = plain(input_ids=IDS).logits
    assert float((right - free).abs().max()) > 0.01

    def cut(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        scores = scores.clone()
        scores[:, 2, 3:, 1] = torch.finfo(scores.dtype).min
        return scores

    model = from_hf(make(), TOKENIZER)
    found = hooked_logits(model, ("blocks.1.attn.hook_attn_scores", cut))
    torch.testing.assert_close(found, right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [gptj, opt])
def test_scores_and_pattern_are_what_they_say(make: Any) -> None:
    model, seen = from_hf(make(), TOKENIZER), {}

    def keep(value: torch.Tensor, hook: Any, name: str) -> None:
        seen[name] = value

    names = [f"blocks.0.attn.hook_{name}" for name in ("attn_scores", "pattern")]
    hooked_logits(
        model, *((name, lambda value, hook, name=name: keep(value, hook, name)) for name in names)
    )
    scores, pattern = (seen[name] for name in names)
    assert scores.shape == pattern.shape == (1, 4, 6, 6)
    torch.testing.assert_close(scores.softmax(dim=-1), pattern)


def test_a_written_pattern_weighs_the_values() -> None:
    """Every query sees the first token only: all positions then have that token's output."""
    model, outputs = from_hf(gptj(), TOKENIZER), []

    def first_only(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        new = torch.zeros_like(pattern)
        new[..., 0] = 1.0
        return new

    hooked_logits(
        model,
        ("blocks.0.attn.hook_pattern", first_only),
        ("blocks.0.attn.hook_z", lambda value, hook: outputs.append(value)),
    )
    (z,) = outputs
    torch.testing.assert_close(z, z[:, :1].expand_as(z))


def test_the_pattern_has_a_gradient() -> None:
    model, seen = from_hf(gptj(), TOKENIZER), []

    def keep(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(pattern.detach().requires_grad_())
        return seen[0]

    with torch.enable_grad(), model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", keep)]):
        model.original_model(input_ids=IDS).logits[0, -1, 40].backward()
    assert float(seen[0].grad.abs().max()) > 0


def test_without_hooks_the_module_runs_as_it_is() -> None:
    with torch.no_grad():
        right = gptj()(input_ids=IDS).logits
    torch.testing.assert_close(hooked_logits(from_hf(gptj(), TOKENIZER)), right, rtol=0, atol=1e-5)
