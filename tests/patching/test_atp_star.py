"""AtP*: where attribution patching fails, and where its repairs give the exact numbers."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import interp.models
from interp.errors import UserError
from interp.forward.hook_points import as_units, hook_name
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch, patch
from interp.patching.alignment import align
from interp.patching.atp_star import atp_star_effects
from interp.patching.patch_source import patching_edit

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-4}
ANSWER = LogitDifference(torch.tensor([0]), torch.tensor([1]))


def planted(tokenizer: Any, *, layers: int, vocabulary: int) -> Any:
    """All weights zero, norms the identity, and the second pair of a head's dimensions still.

    See the root conftest for the norms; with this theta rotary embeddings turn dimensions 0 and 2
    of a head only.
    """
    hf_model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=layers,
            num_attention_heads=2,
            head_dim=4,
            rms_norm_eps=2.0**40,
            rope_parameters={"rope_type": "default", "rope_theta": 1e30},
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            parameter.fill_(2.0**20 if "norm" in name else 0.0)
    return hf_model


# A model whose first head pushes the logit up, while an MLP above takes the push back: with b the
# mean of x over all positions, logit = b − b²/128. Its slope at b = 64 is 1 − 1 = 0.
B, M = 0, 1


@pytest.fixture(scope="module")
@torch.no_grad()
def cancelling(plain_tokenizer: Any) -> HookedModel:
    hf_model = planted(plain_tokenizer, layers=2, vocabulary=8)
    hf_model.model.embed_tokens.weight[:, 2] = 16.0 * torch.arange(8)
    attention = hf_model.model.layers[0].self_attn
    attention.v_proj.weight[0, 2] = 1
    attention.o_proj.weight[B, 0] = 1
    mlp = hf_model.model.layers[1].mlp
    mlp.gate_proj.weight[0, B] = 32  # silu(32 b) is 32 b in float32, for the b that come here
    mlp.up_proj.weight[0, B] = 1
    mlp.down_proj.weight[M, 0] = -1 / (32 * 128)
    hf_model.lm_head.weight[0, [B, M]] = 1.0
    return interp.models.from_hf(hf_model, plain_tokenizer, spec="cancelling")


def cancelled(model: Any, method: str, **options: Any) -> float:
    """The effect of head (0, 0): b goes from 64 (x = 16, 48, 80, 112) to 16 (x = 16 throughout)."""
    result = patch(
        model,
        TokenBatch.from_lists([[1, 1, 1, 1]]),
        TokenBatch.from_lists([[1, 3, 5, 7]]),
        ANSWER,
        method=method,
        progress=False,
        **options,
    )
    assert float(result.corrupted) == 64 - 64**2 / 128
    assert float(result.values[0].flatten()[1:].abs().max()) == 0  # no other head does anything
    return float(result.values[0, 0, 0])


def test_grad_drop_finds_a_head_whose_effects_cancel(cancelling: HookedModel) -> None:
    assert cancelled(cancelling, "exact") == (16 - 2) - (64 - 32)
    assert abs(cancelled(cancelling, "attribution")) < 1e-6
    # With the MLP's layer dropped only the direct effect is left, 48; nothing with its own layer
    # dropped. Averaged over the layers but its own, which is one layer.
    assert cancelled(cancelling, "atp*") == 48


def test_the_integral_sees_through_the_cancellation(cancelling: HookedModel) -> None:
    """A slope that changes evenly is integrated exactly by its value half-way: b = 40."""
    assert cancelled(cancelling, "ig", steps=1) == -48 * (1 - 40 / 64)
    assert cancelled(cancelling, "ig", steps=4) == -18


# Heads whose attention is saturated. A token is (K1, K3, Q1, Q3, X): a query's score with a key is
# 10 (Q1 K1 + Q3 K3), and head 0 writes the X that it reads.
TOKENS = {
    "left": (1, 0, 0, 0, 10),
    "right": (0, 1, 0, 0, 50),
    "asks itself": (0, 0, -12, -30, 30),
    "asks left": (0, 0, 8, 1, 30),
    "nothing": (0, 0, 0, 0, 70),
}
LEFT, RIGHT, ASKS_ITSELF, ASKS_LEFT, BLANK = range(5)


@pytest.fixture(scope="module")
@torch.no_grad()
def saturated(plain_tokenizer: Any) -> HookedModel:
    hf_model = planted(plain_tokenizer, layers=2, vocabulary=len(TOKENS))
    hf_model.model.embed_tokens.weight[:, :5] = torch.tensor(list(TOKENS.values())).float()
    attention = hf_model.model.layers[0].self_attn
    # Dimensions 1 and 3 do not turn; scores are divided by two, the root of d_head.
    attention.k_proj.weight[1, 0] = attention.k_proj.weight[3, 1] = 1
    attention.q_proj.weight[1, 2] = attention.q_proj.weight[3, 3] = 20
    attention.v_proj.weight[0, 4] = 1
    attention.o_proj.weight[6, 0] = 1
    hf_model.lm_head.weight[0, 6] = 1.0
    return interp.models.from_hf(hf_model, plain_tokenizer, spec="saturated")


def effects_of(model: Any, pairs: Any, component: str, method: str) -> torch.Tensor:
    clean, corrupted = (TokenBatch.from_lists(list(one)) for one in zip(*pairs, strict=True))
    metric = LogitDifference(*(torch.full((len(pairs),), token) for token in (0, 1)))
    return patch(
        model, clean, corrupted, metric, component=component, method=method, progress=False
    ).values[:, 0, 0]


def signed(model: Any, pairs: Any, component: str) -> torch.Tensor:
    """The QK fix alone, which has a sign."""
    clean, corrupted = (TokenBatch.from_lists(list(one)) for one in zip(*pairs, strict=True))
    metric = LogitDifference(*(torch.full((len(pairs),), token) for token in (0, 1)))
    alignment = align(clean, corrupted, "all")
    with torch.no_grad():
        edit = patching_edit(model, clean, alignment, component=component)
    return atp_star_effects(
        model,
        corrupted,
        edit,
        position_sets=alignment.position_sets,
        metric=metric,
        grad_drop=False,
        progress=False,
    )[:, 0, 0, 0]


# (clean, corrupted); the first is padded with LEFT, which a leak would give all the weight.
ASKED = [
    ([LEFT, RIGHT, ASKS_LEFT], [LEFT, RIGHT, ASKS_ITSELF]),
    ([RIGHT, LEFT, LEFT, RIGHT, ASKS_LEFT], [RIGHT, LEFT, LEFT, RIGHT, ASKS_ITSELF]),
]
# The last token asks left throughout; what stands where is swapped, and values stay.
SWAPPED = [
    ([RIGHT, LEFT, ASKS_LEFT], [LEFT, RIGHT, ASKS_LEFT]),
    ([BLANK, LEFT, LEFT, BLANK, ASKS_LEFT], [BLANK, LEFT, BLANK, LEFT, ASKS_LEFT]),
]


def test_the_qk_fix_sees_through_a_saturated_query(saturated: HookedModel) -> None:
    """The scores of (left, right, itself) go from (−120, −300, 0) to (80, 10, 0): 30 → 10."""
    exact = effects_of(saturated, ASKED, "q", "exact")
    torch.testing.assert_close(exact, torch.tensor([-20.0, -20.0]), **CLOSE)
    assert effects_of(saturated, ASKED, "q", "attribution").tolist() == [0, 0]
    torch.testing.assert_close(signed(saturated, ASKED, "q"), exact, **CLOSE)
    torch.testing.assert_close(effects_of(saturated, ASKED, "q", "atp*"), exact.abs(), **CLOSE)


def test_the_qk_fix_sees_through_saturated_keys(saturated: HookedModel) -> None:
    """Keys of the clean run: attention moves to the second token, which reads 50 here, not 10.

    In the second prompt half of it moves from the last but one (10) to the third (70).
    """
    exact = effects_of(saturated, SWAPPED, "k", "exact")
    torch.testing.assert_close(exact, torch.tensor([40.0, 30.0]), **CLOSE)
    assert float(effects_of(saturated, SWAPPED, "k", "attribution")[0].abs()) < 1e-3
    torch.testing.assert_close(signed(saturated, SWAPPED, "k"), exact, **CLOSE)
    torch.testing.assert_close(effects_of(saturated, SWAPPED, "k", "atp*"), exact.abs(), **CLOSE)


CLEAN = [[5, 9, 7, 8, 30, 31, 32], [40, 41, 42, 43]]
CORRUPTED = [[5, 9, 7, 81, 30, 33, 32], [40, 51, 42, 43]]
METRIC = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))


def on_families(model: Any, component: str, places: Any = "all", **options: Any) -> torch.Tensor:
    clean, corrupted = TokenBatch.from_lists(CLEAN), TokenBatch.from_lists(CORRUPTED)
    alignment = align(clean, corrupted, places)
    with torch.no_grad():
        edit = patching_edit(model, clean, alignment, component=component)
    return atp_star_effects(
        model,
        corrupted,
        edit,
        position_sets=alignment.position_sets,
        metric=METRIC,
        progress=False,
        **options,
    )


def literal_fix(
    model: Any, full_values: Any, unit_hook: Any, component: str, prompt: int, moves: Any
) -> torch.Tensor:
    """Σ (p' − p) · ∂metric/∂p of units, from whole hooked runs, Float[layer unit].

    Of every second unit, so that two prompts have all of them; NaN elsewhere.
    """
    layers = range(model.cfg.n_layers)
    patterns = [hook_name("pattern", layer) for layer in layers]
    names = [hook_name(component, layer) for layer in layers]
    tokens, metric = torch.tensor(CORRUPTED[prompt]), METRIC.take(torch.tensor([prompt]))
    before = full_values(model, tokens, patterns)
    clean = full_values(model, CLEAN[prompt], names)
    leaves: dict[str, torch.Tensor] = {}

    def leaf(name: str) -> Any:
        def hook_function(value: torch.Tensor, hook: Any) -> torch.Tensor:
            leaves[name] = torch.zeros_like(value, requires_grad=True)
            return value + leaves[name]

        return name, hook_function

    with torch.enable_grad(), model.hooks(fwd_hooks=[leaf(name) for name in patterns]):
        metric(model(tokens[None])[:, -1]).sum().backward()
    n_units = clean[names[0]].shape[1]
    values = torch.full((len(names), n_units), torch.nan)
    for layer in layers:
        for unit in range((layer + prompt) % 2, n_units, 2):
            hook = unit_hook(component, layer, unit, moves, clean[names[layer]])
            with model.hooks(fwd_hooks=[hook]):
                after = full_values(model, tokens, [patterns[layer]])[patterns[layer]]
            gradient = leaves[patterns[layer]].grad
            assert gradient is not None
            values[layer, unit] = ((after - before[patterns[layer]]) * gradient[0]).sum()
    return values


@pytest.mark.parametrize("component", ["q", "k"])
def test_the_qk_fix_equals_patterns_computed_anew(
    family: HookedModel, full_values: Any, unit_hook: Any, component: str
) -> None:
    """Every architecture: grouped keys, windows, norms of queries, fused and partly turned ones."""
    found = on_families(family, component, grad_drop=False)[..., 0]
    for prompt, tokens in enumerate(CORRUPTED):
        moves = {position: position for position in range(len(tokens))}
        expected = literal_fix(family, full_values, unit_hook, component, prompt, moves)
        asked = ~expected.isnan()
        torch.testing.assert_close(found[prompt][asked], expected[asked], rtol=0, atol=5e-5)
    assert float(found.abs().max()) > 1e-2


@pytest.mark.parametrize("component", ["q", "k"])
def test_the_qk_fix_at_each_position(
    tiny_llama: HookedModel, full_values: Any, unit_hook: Any, component: str
) -> None:
    """One run of the layer serves all places: a place takes its rows or columns of the scores."""
    found = on_families(tiny_llama, component, "each", grad_drop=False)
    first = 7 - found.shape[-1]
    for prompt, position in [(0, 3), (0, 5), (1, 2)]:
        expected = literal_fix(
            tiny_llama, full_values, unit_hook, component, prompt, {position: position}
        )
        place = position + (7 - len(CORRUPTED[prompt])) - first
        asked = ~expected.isnan()
        torch.testing.assert_close(
            found[prompt, ..., place][asked], expected[asked], rtol=0, atol=5e-5
        )
        assert float(expected[asked].abs().max()) > 1e-3


@pytest.mark.parametrize("component", ["z", "v", "mlp_out"])
def test_without_its_repairs_it_is_attribution(tiny_llama: HookedModel, component: str) -> None:
    plain = patch(
        tiny_llama,
        TokenBatch.from_lists(CLEAN),
        TokenBatch.from_lists(CORRUPTED),
        METRIC,
        component=component,
        method="attribution",
        progress=False,
    ).values
    found = on_families(tiny_llama, component, grad_drop=False, qk_fix=False)[..., 0]
    torch.testing.assert_close(found.reshape(plain.shape), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("component", "other_layers"), [("z", 2), ("resid_pre", 3)])
@torch.no_grad()
def test_grad_drop_equals_runs_with_a_layer_detached(
    tiny_llama: HookedModel, component: str, other_layers: int
) -> None:
    """Said literally: whole runs, in which one layer's outputs carry no gradient."""
    expected = torch.zeros(3, 4)
    for dropped in range(3):
        leaves: dict[int, torch.Tensor] = {}

        def leaf(layer: int, leaves: Any = leaves) -> Any:
            def hook_function(value: torch.Tensor, hook: Any) -> torch.Tensor:
                leaves[layer] = torch.zeros_like(value, requires_grad=True)
                return value + leaves[layer]

            return hook_name(component, layer), hook_function

        def detach(value: torch.Tensor, hook: Any) -> torch.Tensor:
            return value.detach()

        hooks = [leaf(layer) for layer in range(3)]
        hooks += [(hook_name(part, dropped), detach) for part in ("attn_out", "mlp_out")]
        with torch.enable_grad(), tiny_llama.hooks(fwd_hooks=hooks):
            logits = tiny_llama(torch.tensor(CORRUPTED[:1]))[:, -1]
            METRIC.take(torch.tensor([0]))(logits).sum().backward()
        cached = [
            tiny_llama.run_with_cache(torch.tensor(tokens[:1]))[1] for tokens in (CLEAN, CORRUPTED)
        ]
        for layer in range(3):
            change = cached[0][hook_name(component, layer)] - cached[1][hook_name(component, layer)]
            gradient = leaves[layer].grad
            if gradient is not None:
                product = as_units(change * gradient, component)
                expected[layer] += product.sum(dim=(0, 1, 3)).abs() / other_layers
    found = on_families(tiny_llama, component)[0, ..., 0]
    torch.testing.assert_close(found, expected[:, : found.shape[1]], rtol=0, atol=1e-5)
    assert bool((found >= 0).all())


def test_equal_prompts_have_no_size(tiny_llama: HookedModel) -> None:
    same = TokenBatch.from_lists(CLEAN)
    for component in ("z", "q"):
        result = patch(
            tiny_llama, same, same, METRIC, component=component, method="atp*", progress=False
        )
        assert float(result.values.abs().max()) < 1e-5


def test_a_pattern_that_is_not_its_scores_softmax_is_refused(
    tiny_llama: HookedModel,
) -> None:
    """Such as attention with sinks: no new pattern can be had from new scores."""

    def sink(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        return pattern * 0.5

    with (
        tiny_llama.hooks(fwd_hooks=[(hook_name("pattern", 1), sink)]),
        pytest.raises(UserError, match="not the softmax of its scores: use method 'attribution'"),
    ):
        on_families(tiny_llama, "q")
