"""The lens of the last layer is the model, of a middle one what its stream says literally."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import logit_lens
from tests.patching.prompts import BATCH, PROMPTS

TOKENS = torch.tensor([[3, 65], [14, 35], [7, 8]])


def test_the_last_layer_gives_the_logits_at_every_position(family: HookedModel) -> None:
    found = logit_lens(family, BATCH, TOKENS)
    assert found.logits.shape == (3, family.cfg.n_layers + 1, BATCH.width, 2)
    for row, ids in enumerate(PROMPTS):
        with torch.no_grad():
            logits = family(torch.tensor([ids]))[0]
        last = found.logits[row, -1, -len(ids) :]
        torch.testing.assert_close(last, logits[:, TOKENS[row]], rtol=0, atol=1e-4)
        assert found.top[row, -1, -len(ids) :].tolist() == logits.argmax(dim=-1).tolist()
        logs = logits.log_softmax(dim=-1)
        found_logs = found.log_probabilities[row, -1, -len(ids) :]
        torch.testing.assert_close(found_logs, logs[:, TOKENS[row]], rtol=0, atol=1e-4)
        assert (found.top[row, :, : -len(ids)] == -1).all()
        assert found.logits[row, :, : -len(ids)].isnan().all()


def test_a_middle_layer_is_its_stream_through_norm_and_unembedding(tiny_gpt2: Any) -> None:
    seen: list[torch.Tensor] = []
    hooks = [("blocks.1.hook_resid_pre", lambda value, hook: seen.append(value.clone()))]
    with torch.no_grad(), tiny_gpt2.hooks(fwd_hooks=hooks):
        tiny_gpt2(torch.tensor([PROMPTS[1]]))
        expected = tiny_gpt2.unembed(tiny_gpt2.ln_final(seen[0]))[0]
    found = logit_lens(tiny_gpt2, [PROMPTS[1]], torch.tensor([9]))
    torch.testing.assert_close(found.logits[0, 1, :, 0], expected[:, 9], rtol=1e-5, atol=1e-5)
    ranks = (expected > expected[:, 9:10]).sum(dim=-1) + 1
    assert found.ranks[0, 1, :, 0].tolist() == ranks.tolist()


def test_the_lens_of_a_linear_model_by_hand(micro: HookedModel) -> None:
    """See test_path: c is 7 after one layer, u 30 and v 90 after two, w 21 after three."""
    found = logit_lens(micro, [[1, 3, 5, 7]], torch.tensor([[0, 1]]))
    by_layer = found.difference()[0, :, -1].tolist()
    assert by_layer == pytest.approx([0, 844, 1774, 2110], rel=1e-5)
    table = found.to_dataframe(position=-1)
    assert table["layer"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(table["position"]) == {3}


def test_table_and_figures(tiny_llama: HookedModel) -> None:
    found = logit_lens(tiny_llama, BATCH, TOKENS)
    table = found.to_dataframe()
    assert len(table) == 4 * 2 * sum(map(len, PROMPTS))
    assert not table.isna().any(axis=None)
    whole: Any = found.plot(prompt=1).data[0]
    assert len(whole.x) == len(PROMPTS[1])
    part: Any = found.plot(prompt=0, start=-2, colour="tokens").data[0]
    assert len(part.x) == 2
    last = len(PROMPTS[0])
    assert list(part.x) == [last - 2, last - 1]
    assert [place.split()[-1] for _, place in part.customdata[0]] == [
        f"({last - 2})",
        f"({last - 1})",
    ]
    for call in (
        lambda: found.plot(prompt=3),
        lambda: found.to_dataframe(position=9),
    ):
        with pytest.raises(UserError):
            call()


def test_bad_tokens_are_told(tiny_llama: HookedModel) -> None:
    with pytest.raises(UserError, match="tokens are one or more"):
        logit_lens(tiny_llama, BATCH, torch.tensor([1]))
