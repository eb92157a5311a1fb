"""The knowledge filter on a model whose answers are known."""

import logging
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.models import HookedModel, render_chat
from interp.premises import Fact, Premises, load_premises
from interp.premises.knowledge import _first_word, check_knowledge, filter_known


@pytest.fixture
def mistaken(planted_premises: Premises) -> Premises:
    """The planted facts, of which three say what the model does not: city1 is in land2."""
    facts = list(planted_premises.facts)
    for index in (1, 5, 9):
        facts[index] = Fact(f"city{index}", f"land{index + 1}")
    return planted_premises.with_facts(facts)


@pytest.mark.parametrize("check", ["strict", "answer"])
def test_planted_facts_are_known_and_others_are_not(
    planted: HookedModel, mistaken: Premises, check: Any
) -> None:
    knowledge = check_knowledge(planted, mistaken, check=check, progress=False)
    unknown = [fact for fact in knowledge.facts if not fact.known]
    assert [fact.subject for fact in unknown] == ["city1", "city5", "city9"]
    assert [fact.true_object for fact in unknown] == ["land2", "land6", "land10"]
    assert all(
        fact.answer.startswith(f"land{i}") for fact, i in zip(unknown, (1, 5, 9), strict=True)
    )
    assert knowledge.n_known == 13
    assert knowledge.summary.startswith(
        f"13 of 16 facts known ({check} check); the others answered"
    )
    assert list(knowledge.to_dataframe()["known"]) == [fact.known for fact in knowledge.facts]


def test_the_known_facts_are_kept_in_order(planted: HookedModel, mistaken: Premises) -> None:
    known = filter_known(planted, mistaken, minimum=13, progress=False)
    expected = [f"city{i}" for i in range(16) if i not in (1, 5, 9)]
    assert list(known.subjects) == expected
    assert known.templates == mistaken.templates
    # False objects are drawn anew among what is known.
    assert {question.false_object for question in known.questions()} <= {
        fact.object for fact in known.facts
    }


@pytest.mark.parametrize("check", ["strict", "answer"])
def test_too_few_known_facts_are_refused(
    planted: HookedModel, mistaken: Premises, check: Any
) -> None:
    with pytest.raises(UserError, match=r"too few facts of 'planted'.*at least 14") as caught:
        filter_known(planted, mistaken, check=check, minimum=14, progress=False)
    assert "13 of 16 facts known" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_random_model_knows_nothing(tiny_llama: HookedModel) -> None:
    premises = load_premises("capitals", limit=20)
    knowledge = check_knowledge(tiny_llama, premises, progress=False)
    assert knowledge.n_known == 0
    with pytest.raises(UserError, match="0 of 20 facts known"):
        filter_known(tiny_llama, premises, progress=False)


def test_how_many_are_kept_is_logged(
    planted: HookedModel, mistaken: Premises, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="interp"):
        filter_known(planted, mistaken, minimum=1, progress=False)
    assert "13 of 16 facts known (strict check)" in caplog.text


def test_another_name_of_the_object_counts_in_the_answer(
    planted: HookedModel, planted_premises: Premises
) -> None:
    facts = [Fact("city0", "land7", also_true=("land0",)), *planted_premises.facts[1:]]
    premises = planted_premises.with_facts(facts)
    strict = check_knowledge(planted, premises, check="strict", progress=False)
    loose = check_knowledge(planted, premises, check="answer", progress=False)
    assert not strict.facts[0].known
    assert loose.facts[0].known


def test_every_token_of_the_object_is_checked(tiny_llama: HookedModel) -> None:
    """Strict, literally: each token of the answer is the most likely after those before it."""
    premises = load_premises("capitals", limit=12)
    tokenizer = tiny_llama.tokenizer
    knowledge = check_knowledge(tiny_llama, premises, progress=False)
    for fact, found in zip(premises.facts, knowledge.facts, strict=True):
        rendered = render_chat(tokenizer, premises.direct(fact), premises.cloze(fact))
        ids = tokenizer(rendered.text, add_special_tokens=rendered.add_special_tokens)["input_ids"]
        answer = tokenizer(f" {fact.object}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            top = tiny_llama(torch.tensor([ids + answer]))[0].argmax(-1).tolist()
        said = top[len(ids) - 1 : -1]
        assert found.known == (said == answer)
        assert found.answer == _first_word(tokenizer, said)


def test_what_was_answered_is_shown_in_whole_characters(smollm: HookedModel) -> None:
    tokens = smollm.tokenizer("西班牙", add_special_tokens=False)["input_ids"]
    assert "\ufffd" in smollm.tokenizer.decode(tokens[:1])
    assert _first_word(smollm.tokenizer, tokens) == "西"
    assert _first_word(smollm.tokenizer, tokens[:1]) == "…"
    paris = smollm.tokenizer(" Paris is", add_special_tokens=False)["input_ids"]
    assert _first_word(smollm.tokenizer, paris) == "Paris"
