"""Direct logit attribution: by hand, sums to the logits, and what a head's write does literally."""

from typing import Any

import pytest
import torch
from torch import nn

from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import TokenBatch, logit_attribution
from interp.patching.edges.frozen_norm import FrozenNorm
from tests.patching.prompts import BATCH

TOKENS = torch.tensor([[3, 65], [14, 35], [7, 8]])


def test_components_sum_to_the_logits(family: HookedModel) -> None:
    found = logit_attribution(family, BATCH, TOKENS)
    torch.testing.assert_close(found.values.sum(dim=1), found.logits, rtol=1e-5, atol=1e-4)
    n_writers = 1 + family.cfg.n_layers * (family.cfg.n_heads + 1)
    assert found.values.shape == (3, n_writers + 1, 2)
    assert found.values[:, 1:-1].abs().min() > 0
    for row, ids in enumerate([[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22]]):  # padding is left out
        with torch.no_grad():
            logits = family(torch.tensor([ids]))[0, -1, TOKENS[row]]
        torch.testing.assert_close(found.logits[row], logits, rtol=0, atol=1e-4)


def test_parts_of_a_linear_model_as_computed_by_hand(micro: HookedModel) -> None:
    """See test_path: at the last of four positions u is 30, v 90, c 7, m 144, w 21 (corrupted)."""
    found = logit_attribution(micro, [[1, 3, 5, 7]], torch.tensor([[0, 1]]))
    parts = dict(zip(found.components, found.difference()[0].tolist(), strict=True))
    expected = {"a1.h0": 30, "a1.h1": 900, "a0.h1": 700, "m0": 144, "a2.h0": 336}
    for name, part in parts.items():
        assert part == pytest.approx(expected.get(name, 0.0), rel=1e-5, abs=1e-3), name
    assert found.to_dataframe()["component"].tolist()[:3] == ["a1.h1", "a0.h1", "a2.h0"]


def test_the_text_states_the_sum_of_the_table(micro: HookedModel) -> None:
    """By hand: the parts of the difference are 30, 900, 700, 144 and 336."""
    found = logit_attribution(micro, [[1, 3, 5, 7]], torch.tensor([[0, 1]]))
    assert found.to_dataframe()["logits"].sum() == pytest.approx(2110)
    assert "the first token less the second's, 1 prompts; they sum to 2.11e+03" in str(found)
    alone = logit_attribution(micro, [[1, 3, 5, 7]], torch.tensor([0]))
    total = alone.to_dataframe()["logits"].sum()
    assert f"components to the logits, 1 prompts; they sum to {total:.3g}" in str(alone)


@pytest.mark.bridge_only
def test_a_part_is_the_write_through_the_norm_at_the_runs_scale(tiny_llama: HookedModel) -> None:
    batch = TokenBatch.from_lists([[5, 9, 7, 8]])
    seen: dict[str, torch.Tensor] = {}
    names = ["blocks.1.attn.hook_z", "blocks.2.hook_resid_post"]
    hooks: Any = [
        (name, lambda value, hook, name=name: seen.update({name: value.detach().clone()}))
        for name in names
    ]
    with torch.no_grad(), tiny_llama.hooks(fwd_hooks=hooks):
        tiny_llama(batch.tokens)
    write = seen[names[0]][0, -1, 2] @ tiny_llama.blocks[1].attn.W_O[2]
    end, norm = seen[names[1]][0, -1], tiny_llama.original_model.model.norm
    scale = (end.square().mean() + norm.variance_epsilon).sqrt()
    unembedding = tiny_llama.original_model.lm_head.weight[3]
    expected = (write / scale * norm.weight) @ unembedding
    found = logit_attribution(tiny_llama, batch, torch.tensor([3]))
    part = found.values[0, found.components.index("a1.h2"), 0]
    torch.testing.assert_close(part, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_frozen_norms_are_linear_and_sum_to_the_norm(kind: Any) -> None:
    torch.manual_seed(0)
    norm = kind(16, eps=0.1)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
        parts = torch.randn(3, 2, 4, 16)
        frozen = FrozenNorm(norm, parts.sum(dim=0))
        whole = sum(frozen.part(part) for part in parts) + frozen.bias
        torch.testing.assert_close(whole, norm(parts.sum(dim=0)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(frozen.part(3 * parts[0]), 3 * frozen.part(parts[0]))
        assert float(frozen.part(torch.zeros(2, 4, 16)).abs().max()) == 0


@pytest.mark.parametrize(
    "tokens", [torch.tensor([1, 2]), torch.tensor([1, 2, 10**6]), torch.tensor([0.5, 1, 2])]
)
def test_bad_tokens_are_one_line(tiny_llama: HookedModel, tokens: Any) -> None:
    with pytest.raises(UserError, match="tokens"):
        logit_attribution(tiny_llama, BATCH, tokens)
