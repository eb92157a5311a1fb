"""What a head writes is its column of the direct attribution, for every token."""

from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

import interp.models
from interp.errors import UserError
from interp.inspection.head_writing import head_writing, written_logits
from interp.models import HookedModel
from interp.patching import TokenBatch, logit_attribution, logit_lens
from tests.fixtures import READER
from tests.patching.prompts import BATCH


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_written_logits_are_the_heads_column_of_the_attribution(
    name: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    tokens = torch.tensor([[3, 65, 9], [14, 35, 0], [7, 8, 1]])
    columns = logit_attribution(model, BATCH, tokens)
    for head in [(0, 1), (1, 3)]:
        found = written_logits(model, BATCH, head)[:, 0]
        of_head = columns.values[:, columns.components.index(f"a{head[0]}.h{head[1]}")]
        torch.testing.assert_close(found.gather(1, tokens), of_head, rtol=1e-4, atol=1e-5)


def test_a_position_is_that_of_the_prompt_cut_there(tiny_llama: HookedModel) -> None:
    whole, cut = [[5, 9, 7, 8, 30]], [[5, 9, 7]]
    both = written_logits(tiny_llama, whole, (2, 1), positions=[-3, -1])
    alone = written_logits(tiny_llama, cut, (2, 1))
    torch.testing.assert_close(both[:, 0], alone[:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[:, 1], alone[:, 0], atol=1e-3)


def test_the_planted_head_promotes_the_country_in_the_question(planted: HookedModel) -> None:
    """READER copies the country that it looks at, a logit of 10, and suppresses nothing."""
    ids = planted.tokenizer("Why is city3 the capital of land5 ?").input_ids
    found = head_writing(planted, [ids], READER, k=3)
    table = found.to_dataframe()
    assert table["promoted"][0] == "land5"
    assert table["up"][0] == pytest.approx(10, abs=0.5)
    assert abs(table["down"][0]) < 1
    idle = head_writing(planted, [ids], (2, 0), k=3).to_dataframe()  # the negative control: noise
    assert idle["up"].max() < 1
    bars: Any = found.plot().data[0]
    assert next(iter(bars.y)) == "1. land5"


@pytest.mark.bridge_only  # TransformerLens 3 has no Gemma 2
def test_a_model_that_caps_its_logits_is_refused(plain_tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(plain_tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.5,
        final_logit_softcapping=3.0,
    )
    model = interp.models.from_hf(Gemma2ForCausalLM(config).eval(), plain_tokenizer, spec="capped")
    batch = TokenBatch.from_lists([[5, 9, 7, 8]])
    for call in (
        lambda: written_logits(model, batch, (0, 1)),
        lambda: logit_lens(model, batch, torch.tensor([3])),
    ):
        with pytest.raises(UserError, match="caps or scales"):
            call()


@pytest.mark.parametrize(
    ("head", "options"),
    [((9, 0), {}), ((0, 0), {"positions": [0]}), ((0, 0), {"positions": []}), ((0, 0), {"k": 0})],
)
def test_what_is_not_there_is_told(
    head: tuple[int, int], options: Any, tiny_llama: HookedModel
) -> None:
    with pytest.raises(UserError):
        head_writing(tiny_llama, BATCH, head, **options)
