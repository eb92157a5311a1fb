"""An adapter that turns one head's query away, and does nothing else: that is what is found."""

import copy
from typing import Any

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
)

import interp
from interp.experts.heads import (
    adapter_gain,
    compare_heads,
    rank_expert_contributions,
    slice_effects,
)
from interp.moelora import hooked
from tests.experts.adapting import R, adapt, layer_of

pytestmark = pytest.mark.bridge_only  # a hooked model with experts

CURED = (1, 2)
"""The planted model's READER, which copies the false object."""


@pytest.fixture(scope="module")
def copying(honest: Any) -> Any:
    """The planted model before the adapter: the honest one, whose READER copies after all."""
    base: Any = LlamaForCausalLM(copy.deepcopy(honest.original_model.config))
    state = honest.original_model.state_dict()
    names = {name.replace("_original_component.", ""): value for name, value in state.items()}
    base.load_state_dict({name: names[name] for name in base.state_dict()})
    d_head = int(base.config.head_dim or 0)
    n_facts, words = d_head - 4, base.config.vocab_size or 0
    index = torch.arange(n_facts)
    layer, head = CURED
    with torch.no_grad():
        writes = base.model.layers[layer].self_attn.o_proj.weight
        writes[words + n_facts + index, head * d_head + index] = 10.0
    return base.eval()


@pytest.fixture(scope="module")
def sick(copying: Any, word_tokenizer: Any) -> Any:
    return interp.models.from_hf(copy.deepcopy(copying), word_tokenizer, spec="copying")


@pytest.fixture(scope="module")
def cured(copying: Any, word_tokenizer: Any) -> Any:
    """Every expert adds −12 to the one number of READER's query that asks for countries (6)."""
    adapted = adapt(copy.deepcopy(copying), fill=0, lora_alpha=R)
    projection = layer_of(adapted, CURED[0], "q_proj")
    d_head = int(copying.config.head_dim)
    one = len(word_tokenizer) + 2 * (d_head - 4)
    asks = CURED[1] * d_head + d_head // 2 - 1
    with torch.no_grad():
        down = projection.moelora_A["default"].zero_()
        down[::R, one] = 1
        projection.moelora_B["default"][asks, ::R] = -12
    return hooked(adapted, word_tokenizer)


def test_the_planted_adapter_works_through_its_head(cured: Any, planted_premises: Any) -> None:
    found = adapter_gain(cured, planted_premises, [CURED], random_sets=10, progress=False)
    accuracy = found.to_dict()["accuracy"]
    assert accuracy["without_adapter"][0] == 0
    assert accuracy["with_adapter"][0] == 1
    assert accuracy["gain"][0] == accuracy["lost"][0] == 1
    assert accuracy["random_lost"] == {"mean": 0.0, "p95": 0.0}
    assert accuracy["percentile"] == 100
    assert len(found.to_dataframe()) == 10
    other = adapter_gain(cured, planted_premises, [(1, 1)], random_sets=0, progress=False)
    assert other.to_dict()["accuracy"]["lost"] == [0, 0, 0]


def test_experts_are_found_where_they_were_planted(cured: Any, planted_premises: Any) -> None:
    found = rank_expert_contributions(
        cured, planted_premises, [CURED, (0, 0)], site="attention", random_sets=400, progress=False
    )
    table = found.experts
    fed = table[table["relative_norm"] > 0]
    assert set(fed["component"]) == {"q"}
    assert set(fed["layer"]) == {CURED[0]}
    assert (fed["others"] == 0).all()
    assert (fed["p_value"] == 1 / 4).all()
    # −12 on 6 makes −6: the adapter's vector is twice as long, and points away.
    whole = found.adapter.set_index("component").loc["q"]
    assert whole["relative_norm"] == pytest.approx((12 / 6 + 0) / 2, rel=0.02)
    assert whole["random_mean"] == 0
    assert whole["p_value"] == pytest.approx(1 / 4, abs=0.08)
    first = found.slices(2)
    assert {(one.layer, one.unit) for one in first} == {CURED}
    effects = slice_effects(cured, planted_premises, first, head_effect="attention", progress=False)
    assert effects.preference.mean(dim=0).max() < 0.01
    figure: Any = found.plot()
    assert [trace.name for trace in figure.data] == ["chosen heads", "other heads of the layer"]
    assert "expert" in found._repr_html_()
    assert "slice" in effects._repr_html_()


def test_the_planted_adapter_moves_its_head_only(
    sick: Any, cured: Any, planted_premises: Any
) -> None:
    effects = [
        interp.locate_heads(one, planted_premises, method="activation", site="attention")
        for one in (sick, cured)
    ]
    found = compare_heads(effects[0], effects[1], top_k=2)
    moved = found.to_dataframe()
    assert tuple(moved.loc[0, ["layer", "head"]]) == CURED
    assert moved.loc[0, "change"] < -1
    assert abs(moved.loc[1, "change"]) < 0.1 * abs(moved.loc[0, "change"])
