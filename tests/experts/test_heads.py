"""What experts add to heads: by hand, against the weights edited one by one, and planted."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

import interp
from interp.errors import UserError
from interp.experts.heads import ExpertHeadContribution as Contribution
from interp.experts.heads import (
    adapter_gain,
    expert_contributions,
    rank_expert_contributions,
    slice_effects,
    slices_of,
    without_experts,
    without_slices,
)
from interp.experts.heads.feeding import larger_in
from interp.experts.heads.prompt_positions import check_place
from interp.experts.heads.slices import NO_ABLATION, check_part, sweep_removals
from interp.heads import HeadSet, premise_edit
from interp.heads.locate import as_encoded
from interp.interventions import Constraint
from interp.moelora import hooked
from interp.patching import LogitDifference, TokenBatch, record_run, tail_logits
from interp.patching.sweep import sweep_sets
from tests.experts.adapting import EXPERTS, R, adapt, layer_of

pytestmark = pytest.mark.bridge_only  # a hooked model with experts


@pytest.fixture(scope="module")
def llama(hf_factory: Callable[..., Any], chat_tokenizer: Any) -> Any:
    """4 query heads that share 2 key/value heads, d_head 8, 3 layers."""
    return adapt(hf_factory("llama", chat_tokenizer))


@pytest.fixture(scope="module")
def model(llama: Any, chat_tokenizer: Any) -> Any:
    return hooked(llama, chat_tokenizer)


@pytest.fixture(scope="module")
def premises() -> Any:
    return interp.load_premises("capitals", limit=8).with_templates(["why"])


@pytest.fixture
def batch() -> TokenBatch:
    """Three prompts of different lengths."""
    return TokenBatch.from_lists([[5, 9, 20, 31, 4], [7, 8, 9], [40, 41, 42, 43]])


def joint(family: str, tokenizer: Any, hf_factory: Callable[..., Any]) -> Any:
    """A model with one projection for queries, keys and values: in blocks, or by head."""
    if family == "gpt2":
        return adapt(hf_factory("gpt2", tokenizer), target_modules=["c_attn"])
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
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
    if family == "neox":
        base: Any = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
        return adapt(base, target_modules=["query_key_value"])
    base = Phi3ForCausalLM(Phi3Config(**sizes, num_key_value_heads=2))
    return adapt(base, target_modules=["qkv_proj"])


# --- contributions ---


@pytest.mark.parametrize("component", ["q", "v"])
def test_norms_and_shares_by_hand(model: Any, batch: TokenBatch, component: Any) -> None:
    """Gates ½ ½ 0 0; expert i adds (i + 1)(h + 1) to all eight numbers of head h."""
    n_units = 4 if component == "q" else 2
    numbers = torch.arange(1.0, n_units + 1).repeat_interleave(8)

    def gates(value: Tensor, hook: Any) -> Tensor:
        return torch.tensor([0.5, 0.5, 0.0, 0.0]).expand_as(value)

    def outputs(value: Tensor, hook: Any) -> Tensor:
        return (torch.arange(1.0, 5.0)[:, None] * numbers).expand_as(value)

    at = f"blocks.1.attn.{component}.moelora.hook_"
    with model.hooks(fwd_hooks=[(f"{at}gate", gates), (f"{at}expert_out", outputs)]):
        found = expert_contributions(model, batch, component=component, at="last")
        run = record_run(model, batch, keep=(component,))
    unit = torch.arange(1.0, n_units + 1)
    root = math.sqrt(8)
    for expert, size in enumerate((0.5, 1.0, 0.0, 0.0)):
        expected = (size * unit * root).expand(3, -1)
        torch.testing.assert_close(found.norm[:, 1, :, expert], expected)
    torch.testing.assert_close(found.adapter_norm[:, 1], (1.5 * unit * root).expand(3, -1))
    whole = run.values[component][1, :, -1]
    torch.testing.assert_close(found.head_norm[:, 1], whole.norm(dim=-1))
    dot = whole.sum(dim=-1) * 0.5 * unit
    torch.testing.assert_close(found.share[:, 1, :, 0], dot / whole.square().sum(dim=-1))
    torch.testing.assert_close(found.gate[:, 1], torch.tensor([0.5, 0.5, 0, 0]).expand(3, -1))
    assert found.unit_axis == ("head" if component == "q" else "kv_head")
    assert found.query_heads(1) == ("1" if component == "q" else "2-3")


@pytest.mark.parametrize("family", ["gpt2", "neox", "phi3"])
@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_joint_projections_add_up(
    family: str, component: Any, plain_tokenizer: Any, hf_factory: Any, batch: TokenBatch
) -> None:
    model = hooked(joint(family, plain_tokenizer, hf_factory), plain_tokenizer)
    spans = [(1, 5), (0, 2), (2, 4)]
    found = expert_contributions(model, batch, component=component, at=spans)
    assert found.reconstruction_error < 1e-5
    assert found.adapter_norm.min() > 0.01
    torch.testing.assert_close(
        found.share.sum(dim=-1) + found.base_share, torch.ones_like(found.base_share)
    )


@pytest.mark.parametrize("component", ["q", "v"])
def test_contributions_against_a_loop_over_experts(
    llama: Any, model: Any, premises: Any, component: Any
) -> None:
    """Inputs of the PEFT model's projection, its weights, one expert and head at a time."""
    encoded = as_encoded(model, premises)
    found = expert_contributions(model, encoded, component=component, at="object")
    assert found.reconstruction_error < 1e-5
    projection = layer_of(llama, 2, f"{component}_proj")
    seen: list[Tensor] = []
    for number, item in enumerate(encoded.items[:3]):
        handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
        with torch.no_grad():
            llama(input_ids=torch.tensor([item.false.tokens]))
        handle.remove()
        start, end = item.false.object
        x = seen.pop()[start:end]
        down, up = projection.moelora_A["default"], projection.moelora_B["default"]
        probability = (x @ projection.moelora_router["default"].T).softmax(dim=-1)
        for expert in range(EXPERTS):
            rows = slice(expert * R, (expert + 1) * R)
            kept = probability.topk(2).indices.eq(expert).any(dim=-1)
            gate = torch.where(kept, probability[:, expert], 0) / probability.topk(2).values.sum(-1)
            added = gate[:, None] * 4.0 * (x @ down[rows].T @ up[:, rows].T)  # alpha 8 / rank 2
            heads = added.detach().unflatten(-1, (-1, 8))
            expected = heads.square().sum(dim=-1).mean(dim=0).sqrt()
            torch.testing.assert_close(
                found.norm[number, 2, :, expert], expected, atol=1e-5, rtol=1e-4
            )


def test_padding_and_other_prompts_change_nothing(model: Any) -> None:
    prompts = [[5, 9, 20, 31, 4], [7, 8, 9]]
    together = expert_contributions(model, TokenBatch.from_lists(prompts), at="last")
    alone = expert_contributions(model, TokenBatch.from_lists(prompts[1:]), at="last")
    torch.testing.assert_close(together.norm[1], alone.norm[0], atol=1e-5, rtol=1e-4)


def test_a_fresh_adapter_adds_nothing(hf_factory: Any, chat_tokenizer: Any, premises: Any) -> None:
    fresh = hooked(adapt(hf_factory("llama", chat_tokenizer), fill=0), chat_tokenizer)
    found = expert_contributions(fresh, premises, component="v")
    assert found.norm.max() == 0
    torch.testing.assert_close(found.base_share, torch.ones_like(found.base_share))
    gain = adapter_gain(fresh, premises, [(1, 2)], random_sets=3).to_dict()
    assert gain["logit_difference"]["gain"] == gain["logit_difference"]["lost"] == [0.0, 0.0, 0.0]
    effects = slice_effects(fresh, premises, [Contribution("q", 1, 2, 0), Contribution("v", 0, 1)])
    assert effects.to_dataframe()["p_value"].tolist() == [1.0, 1.0]


def test_layers_without_experts_and_fewer_experts_are_no_numbers(
    hf_factory: Any, chat_tokenizer: Any, batch: TokenBatch
) -> None:
    adapted = adapt(
        hf_factory("llama", chat_tokenizer), num_experts=[2, 4, 4], layers_to_transform=[0, 2]
    )
    found = expert_contributions(hooked(adapted, chat_tokenizer), batch, at="last")
    assert found.norm[:, 1].isnan().all()
    assert found.norm[:, 0, :, 2:].isnan().all()
    assert not found.norm[:, 0, :, :2].isnan().any()
    assert not found.norm[:, 2].isnan().any()
    table = found.to_dataframe()
    assert len(table) == 4 * (2 + 4)
    assert set(table["layer"]) == {0, 2}
    assert found.plot().data
    assert found.plot(expert=3).data
    with pytest.raises(UserError, match="expert 4 does not exist"):
        found.plot(expert=4)


# --- slices, and what their removal does ---


def without_in_the_weights(adapted: Any, slices: list[Contribution], tokenizer: Any) -> Any:
    """The same removal done to a copy's weights: rows of B are outputs, columns are ranks."""
    own = copy.deepcopy(adapted)
    for one in slices:
        up = layer_of(own, one.layer, f"{one.component}_proj").moelora_B["default"]
        ranks = slice(None) if one.expert is None else slice(one.expert * R, (one.expert + 1) * R)
        up.data[one.unit * 8 : (one.unit + 1) * 8, ranks] = 0
    return hooked(own, tokenizer)


def difference(model: Any, encoded: Any) -> Tensor:
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)
    with torch.no_grad():
        return metric(tail_logits(model, encoded.batch("false"))[:, -1])


def test_slices_removed_as_in_the_weights(
    llama: Any, model: Any, premises: Any, chat_tokenizer: Any
) -> None:
    encoded = as_encoded(model, premises)
    slices = [
        Contribution("q", 1, 3, 2),
        Contribution("v", 0, 1, 0),
        Contribution("q", 2, 0),
    ]
    found = slice_effects(model, encoded, slices, head_effect="output", progress=False)
    full = difference(model, encoded)
    torch.testing.assert_close(found.full, full, atol=1e-5, rtol=1e-5)
    assert found.preference.abs().max() > 1e-3
    edit = premise_edit(model, encoded, "false")
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)
    for place, one in enumerate(slices):
        edited = without_in_the_weights(llama, [one], chat_tokenizer)
        expected = difference(edited, encoded) - full
        torch.testing.assert_close(found.preference[:, place], expected, atol=2e-5, rtol=1e-4)
        heads = [(0, 2), (0, 3)] if one.component == "v" else [(one.layer, one.unit)]
        effects = []
        for each in (edited, model):
            runs = sweep_sets(
                each, encoded.batch("false"), edit, [[], heads], [metric], progress=False
            )[0]
            effects.append(runs[:, 1] - runs[:, 0])
        assert found.head_effect is not None
        torch.testing.assert_close(
            found.head_effect[:, place], effects[0] - effects[1], atol=5e-5, rtol=1e-4
        )
    table = found.to_dataframe()
    assert table["effect"].abs().is_monotonic_decreasing
    assert set(table["slice"]) == {"q 1.3 expert 2", "v 0.1 expert 0", "q 2.0 all experts"}


def test_joint_slices_touch_one_head_only(
    plain_tokenizer: Any, hf_factory: Any, batch: TokenBatch
) -> None:
    model = hooked(joint("neox", plain_tokenizer, hf_factory), plain_tokenizer)
    before = record_run(model, batch, keep=("q", "k", "v")).values
    removal = without_slices(model, [Contribution("v", 1, 2)])
    with model.hooks(fwd_hooks=list(removal.hooks)):
        after = record_run(model, batch, keep=("q", "k", "v")).values
    changed = {name: (before[name] - after[name]).abs().amax(dim=(1, 2, 4)) for name in "qkv"}
    assert removal.first_layer == 1
    assert changed["v"][1, 2] > 1e-3
    changed["v"][1, 2] = 0
    assert max(float(one.max()) for one in changed.values()) < 1e-5


def test_all_experts_off_is_the_base_model(llama: Any, model: Any, premises: Any) -> None:
    encoded = as_encoded(model, premises)
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)
    removals = [NO_ABLATION, without_experts(model)]
    (runs,) = sweep_removals(model, encoded.batch("false"), removals, [metric], progress=False)
    batch = encoded.batch("false")
    with llama.disable_adapter(), torch.no_grad():
        logits = llama(
            input_ids=batch.tokens, attention_mask=batch.mask.long(), position_ids=batch.positions
        ).logits[:, -1]
    torch.testing.assert_close(runs[:, 1], metric(logits), atol=2e-5, rtol=1e-4)
    assert (runs[:, 0] - runs[:, 1]).abs().max() > 0.1


def test_a_group_comes_once(model: Any) -> None:
    found = slices_of(model, [(1, 2), (1, 3), (0, 0)], ["q", "v"])
    assert [one.name for one in found if one.component == "v"] == [
        "v 1.1 all experts",
        "v 0.0 all experts",
    ]
    assert sum(one.component == "q" for one in found) == 3


def test_permutation_of_the_layers_heads() -> None:
    assert larger_in(np.array([5.0]), np.array([1.0, 2.0, 3.0])) == 1 / 4
    assert larger_in(np.array([2.0]), np.array([1.0, 5.0, 3.0])) == 3 / 4
    assert larger_in(np.array([5.0, 4.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(1 / 10)
    assert larger_in(np.array([5.0, 4.0]), np.array([3.0])) == pytest.approx(1 / 3)
    assert larger_in(np.array([5.0]), np.array([])) == 1


def test_faith_runs_on_an_adapted_model_on_the_plain_modules(model: Any, premises: Any) -> None:
    """Search, constraint and evaluation as on any model, without falling back on hooks."""
    encoded = as_encoded(model, premises)
    run = record_run(model, encoded.batch("false"))
    assert run.plain is not None
    effects = interp.locate_heads(model, encoded, method="activation")
    heads = effects.select(count=2)
    with interp.constrain(model, heads, premises=encoded):
        held = difference(model, encoded)
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)
    edit = Constraint(heads).edit(model, encoded, "false")
    (swept,) = sweep_sets(
        model, encoded.batch("false"), edit, [heads.heads], [metric], progress=False
    )
    torch.testing.assert_close(held, swept[:, 0], atol=2e-5, rtol=1e-4)
    scored = interp.evaluate(model, premises, heads=heads, random_sets=0, answers=False)
    assert scored.false.logit_difference.shape == (8, 2)


# --- mistakes ---


def test_mistakes_are_told(model: Any, tiny_llama: Any, premises: Any, batch: TokenBatch) -> None:
    for wrong, match in (
        (lambda: expert_contributions(tiny_llama, premises), "no MoELoRA experts"),
        (lambda: expert_contributions(model, premises, component="k"), "no k projection"),
        (lambda: check_part("z"), "unknown component 'z'; known: q, k, v"),
        (lambda: expert_contributions(model, batch), "tokens alone have no object"),
        (lambda: check_place("first"), "unknown place 'first'; known: object, subject, last"),
        (lambda: expert_contributions(model, batch, at=[(0, 9)] * 3), "not in its"),
        (lambda: rank_expert_contributions(model, premises, []), "no heads"),
        (
            lambda: rank_expert_contributions(model, premises, [(0, 4)]),
            r"head \(0, 4\) does not exist",
        ),
        (lambda: slice_effects(model, premises, []), "no slices"),
        (
            lambda: slice_effects(model, premises, [Contribution("v", 0, 2)]),
            "heads are 0 to 1",
        ),
        (
            lambda: slice_effects(model, premises, [Contribution("q", 0, 2, 4)]),
            "experts are 0 to 3",
        ),
        (
            lambda: slice_effects(model, premises, [Contribution("q", 3, 0)]),
            "layer 3 has no experts",
        ),
        (lambda: adapter_gain(model, premises, HeadSet(())), "no part in these heads"),
    ):
        with pytest.raises(UserError, match=match):
            wrong()
