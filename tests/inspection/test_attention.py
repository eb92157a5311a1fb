"""Patterns are those of the model's own cache, and find the planted heads."""

import pytest
import torch

import interp
from interp.errors import UserError
from interp.evaluation import attention_pattern
from interp.inspection.read_prompt import read_prompt
from interp.models import HookedModel
from interp.premises import Premises

QUESTION = "Why is Paris the capital of Germany?"
READER = (1, 2)


def test_patterns_are_those_of_the_cache(tiny_llama: HookedModel) -> None:
    found = attention_pattern(tiny_llama, QUESTION, [(2, 1), (0, 3)], false_object="Germany")
    ids = read_prompt(tiny_llama, QUESTION).ids
    _, cache = tiny_llama.run_with_cache(torch.tensor([ids]))
    for pattern, (layer, head) in zip(found.pattern, ((2, 1), (0, 3)), strict=True):
        expected = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
        torch.testing.assert_close(pattern, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pattern.sum(dim=-1), torch.ones(2, len(ids)))


def test_tokens_are_the_text_and_the_span_its_words(tiny_llama: HookedModel) -> None:
    found = attention_pattern(tiny_llama, QUESTION, [(0, 0)], false_object="Germany")
    assert "".join(found.tokens) == interp.models.render_chat(tiny_llama.tokenizer, QUESTION).text
    start, end = found.spans["object"]
    assert "".join(found.tokens[start:end]).strip() == "Germany"
    assert "".join(found.tokens[found.start :]).startswith("Why")


def test_the_planted_reader_looks_at_the_object(
    planted: HookedModel, planted_premises: Premises
) -> None:
    filled = planted_premises.fill(planted_premises.questions()[0], "false")
    found = attention_pattern(planted, filled, [READER, (2, 0)])
    reader, other = found.to_dataframe()["object"]
    assert reader > 0.9
    assert other < 0.3  # the negative control: a head of noise


def test_a_constraint_shows_in_the_pattern(
    planted: HookedModel, planted_premises: Premises
) -> None:
    filled = planted_premises.fill(planted_premises.questions()[0], "false")
    read = read_prompt(planted, filled)
    heads = interp.HeadSet((READER,), "attention")
    with interp.constrain(planted, heads, at=[read.spans["object"]]):
        found = attention_pattern(planted, filled, heads)
    assert found.to_dataframe()["object"][0] == 0.0


def test_plain_text_has_no_preamble(tiny_gpt2: HookedModel) -> None:
    found = attention_pattern(tiny_gpt2, "Berlin is the capital", [(1, 3)], chat=False)
    assert found.start == 0
    assert "".join(found.tokens) == "Berlin is the capital"
    assert found.spans == {}


def test_mistakes_are_said(tiny_llama: HookedModel) -> None:
    for heads, text, message in (
        ([], QUESTION, "at least one head"),
        ([(9, 0)], QUESTION, "does not exist"),
        ([(0, 0)], " ", "empty"),
    ):
        with pytest.raises(UserError, match=message):
            attention_pattern(tiny_llama, text, heads)
    with pytest.raises(UserError, match="not found in the question"):
        attention_pattern(tiny_llama, QUESTION, [(0, 0)], false_object="Spain")
    with pytest.raises(UserError, match="needs the chat template"):
        read_prompt(tiny_llama, QUESTION, chat=False, system="Be brief.")


def test_a_filled_question_brings_its_own_spans(
    planted: HookedModel, planted_premises: Premises
) -> None:
    question = planted_premises.questions()[0]
    filled = planted_premises.fill(question, "false")
    read = read_prompt(planted, filled)
    for name, words in (("subject", question.subject), ("object", question.false_object)):
        start, end = read.spans[name]
        assert "".join(read.tokens[start:end]).strip() == words
    with pytest.raises(UserError, match="leave false_object out"):
        read_prompt(planted, filled, false_object=question.false_object)
