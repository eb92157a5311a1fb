"""Some architectures against transformers alone: one or two for each mechanism.

``python scripts/architectures.py`` checks all of them in everything.
"""

import pytest

from tests.zoo.checks import COLUMNS, run_checks
from tests.zoo.page import failures
from tests.zoo.registry import LEFT_OUT, ZOO, without_row

# Libraries say this and that about tiny models; the numbers are what is tested.
pytestmark = [pytest.mark.bridge_only, pytest.mark.filterwarnings("ignore")]

SOME = {
    "Llama": [*COLUMNS],
    # attention that TransformerLens shows and transformers computes; MLP beside it
    "GPT-J": ["pattern", "paths", "site attention", "generate"],
    # norms behind what is added; TransformerLens leaves the causal mask out
    "OpenAI GPT": ["z", "resid", "paths", "AtP", "padding", "site output"],
    # windows, norms on either side
    "Gemma 3": ["z", "resid", "site attention", "generate"],
    # upper layers that read the keys of a lower one
    "Gemma 4, inputs by layer": ["z", "resid", "padding"],
    # ALiBi, a joint projection, the residual stream inside the modules
    "BLOOM": ["attn_out mlp_out", "resid", "paths", "MoELoRA"],
    "Falcon": ["z", "q k v", "paths", "padding"],
    # TransformerLens' adapter cannot take it apart
    "Falcon, new decoder": ["z", "q k v", "padding"],
    # queries and keys normed over all heads
    "OLMo 2": ["q k v", "AtP*"],
    # latent attention, experts
    "DeepSeek V3": ["z", "q k v", "attn_out mlp_out", "IG"],
    # sinks
    "gpt-oss": ["pattern", "AtP*", "site attention"],
    # layers of two kinds
    "Qwen 3 Next": ["z", "q k v", "attn_out mlp_out", "paths"],
    "Jamba": ["z", "resid", "generate", "padding"],
    # no heads at all
    "Mamba": ["z", "resid", "paths", "site attention", "beams", "padding", "MoELoRA"],
}

REFUSED = {"OpenAI GPT", "Falcon, new decoder"}
"""Models that are refused whole: docs/architectures.md says why."""


@pytest.mark.parametrize("name", SOME)
def test_architecture(name: str) -> None:
    row = run_checks(ZOO[name], SOME[name])
    assert not failures({name: row})
    kinds = {one.kind for column in SOME[name] for one in row.get(column, ())}
    if name in REFUSED:
        assert kinds <= {"refused"}
        assert "TransformerLens" in str(row["hooks"][0])
    else:
        assert "yes" in kinds


def test_every_column_is_tested_on_another_architecture_too() -> None:
    for column in set(COLUMNS) - {"beams"}:
        assert sum(column in columns for columns in SOME.values()) > 1, column


def test_every_architecture_that_both_libraries_know_has_a_row_or_a_reason() -> None:
    assert without_row() == []
    assert len(ZOO) > 60
    out = [name for names in LEFT_OUT.values() for name in names]
    assert len(out) == len(set(out))
