"""Spans and answer tokens on tricky text."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.premises import Fact, FilledQuestion, Premises, Relation, Template
from interp.premises.encode import (
    encode_premises,
    encode_question,
)

TEMPLATES = {
    "why": "Why is {subject} the capital of {object}?",
    "first": "{object} chose {subject} as its capital, but when?",
    "quoted": 'Is it true that "{object}"-born people live in ({subject})?',
}


def premises_of(*facts: tuple[str, str], mask: str = "XXXX", **templates: str) -> Premises:
    templates = templates or TEMPLATES
    relation = Relation(
        name="tricky",
        description="",
        subject_kind="city",
        object_kind="country",
        templates=tuple(Template(name, text) for name, text in templates.items()),
        search_templates=(next(iter(templates)),),
        cloze="As I know, {subject} is the capital of",
        direct="Which country is {subject} the capital of?",
        facts=tuple(Fact(*fact) for fact in facts),
        mask=mask,
    )
    return Premises(relation, relation.facts, relation.template_names)


FACTS = [
    ("Paris", "France"),
    ("Berlin", "Germany"),
    ("Mexico City", "Mexico"),  # the subject begins with its true object
    ("Guatemala", "Guatemala Republic"),  # the object begins with the subject
    ("Brasília", "São Tomé"),
    ("東京", "日本"),
    ("Reykjavík 🌋", "Ísland 🧊"),
    ("N'Djamena", "Côte d'Ivoire"),
    ("capital of", "the capital"),  # names that the template itself holds
]


def text_of(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(list(ids))


@pytest.fixture(params=["chat", "plain"])
def tokenizer(request: pytest.FixtureRequest, chat_tokenizer: Any, plain_tokenizer: Any) -> Any:
    return chat_tokenizer if request.param == "chat" else plain_tokenizer


@pytest.mark.parametrize("kind", ["false", "twin", "masked"])
def test_every_span_holds_its_name_and_nothing_else(tokenizer: Any, kind: Any) -> None:
    premises = premises_of(*FACTS)
    encoded = encode_premises(tokenizer, premises)
    assert len(encoded) == len(FACTS) * len(TEMPLATES)
    for item in encoded.items:
        prompt, question = item.prompt(kind), item.question
        expected = {
            "false": question.false_object,
            "twin": question.true_object,
            "masked": "XXXX",
        }[kind]
        held = text_of(tokenizer, prompt.tokens[slice(*prompt.object)]).strip(' "()')
        assert held == expected
        held = text_of(tokenizer, prompt.tokens[slice(*prompt.subject)]).strip(' "()')
        assert held == question.subject
        # The place is the question's, not another mention: before it stand just the words before.
        filled = premises.fill(question, kind)
        before = text_of(tokenizer, prompt.tokens[: prompt.object[0]])
        assert before.rstrip(' "(').endswith(filled.text[: filled.object[0]].rstrip(' "('))


def test_the_object_twice_in_the_question(tokenizer: Any) -> None:
    """The template itself names France before and after the slot: the slot's is found."""
    premises = premises_of(
        ("Paris", "Peru"),
        ("Berlin", "France"),
        why="If France is {object}, is France the place of {subject}, France?",
        other="{subject} {object}?",
    )
    encoded = encode_premises(tokenizer, premises)
    item = next(one for one in encoded.items if one.question.false_object == "France")
    before = text_of(tokenizer, item.false.tokens[: item.false.object[0]])
    after = text_of(tokenizer, item.false.tokens[item.false.object[1] :])
    assert before.rstrip().endswith("If France is")
    assert after.startswith(", is France the place")


def test_the_object_as_a_prefix_of_the_subject_and_around_it(tokenizer: Any) -> None:
    for subject, false_object in [("Mexico City", "Mexico"), ("York", "New York"), ("ab", "a")]:
        question = f"Why is {subject} in {false_object}?"
        start = question.rindex(false_object)
        filled = FilledQuestion(question, (7, 7 + len(subject)), (start, start + len(false_object)))
        prompt = encode_question(tokenizer, filled)
        assert text_of(tokenizer, prompt.tokens[slice(*prompt.subject)]).strip() == subject
        assert text_of(tokenizer, prompt.tokens[slice(*prompt.object)]).strip() == false_object
        assert prompt.subject[1] <= prompt.object[0]


def test_the_prompt_ends_where_the_answers_part(tokenizer: Any) -> None:
    """What follows the prompt is the answer: its tokens and the next one make the whole text."""
    premises = premises_of(*FACTS)
    for item in encode_premises(tokenizer, premises).items:
        question = item.question
        for kind in ("false", "twin", "masked"):
            prompt = item.prompt(kind)
            text = text_of(tokenizer, prompt.tokens)
            cloze = f"As I know, {question.subject} is the capital of"
            said = text[text.rindex(cloze) + len(cloze) :].strip()
            # A character may be cut between its bytes; all before it is shared by both answers.
            said = said.rstrip("\ufffd")
            assert question.true_object.startswith(said)
            assert question.false_object.startswith(said)
        assert item.true_token != item.false_token


def test_shared_first_tokens_are_appended(tokenizer: Any) -> None:
    """Niger and Nigeria's neighbour: what both begin with is said already, then they differ."""
    premises = premises_of(("Malabo", "Guinea Ecuador"), ("Bissau", "Guinea Portugal"))
    item = encode_premises(tokenizer, premises).items[0]
    assert {item.question.true_object, item.question.false_object} == {
        "Guinea Ecuador",
        "Guinea Portugal",
    }
    text = text_of(tokenizer, item.false.tokens)
    assert text.rstrip().endswith("is the capital of Guinea")
    true = tokenizer.decode([item.true_token]).strip()
    false = tokenizer.decode([item.false_token]).strip()
    assert (true, false) == ("Ecuador"[: len(true)], "Portugal"[: len(false)])
    assert true
    assert false


def test_an_answer_that_begins_with_the_other_differs_by_what_follows(
    word_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the shorter answer comes a full stop, after the longer one its next word."""
    premises = premises_of(("city1", "land1"), ("city2", "land1 land2"), ("city3", "land3"))
    # The draw of false objects avoids such pairs, so the question is made by hand.
    made = replace(premises.questions()[3], false_object="land1")
    monkeypatch.setattr(Premises, "questions", lambda self: (made,))
    (item,) = encode_premises(word_tokenizer, premises).items
    assert item.question.true_object == "land1 land2"
    answers = word_tokenizer.convert_ids_to_tokens([item.true_token, item.false_token])
    assert answers == ["land2", "."]
    assert word_tokenizer.convert_ids_to_tokens(item.false.tokens[-1]) == "land1"


def test_answers_of_the_same_tokens_cannot_be_told_apart(word_tokenizer: Any) -> None:
    premises = premises_of(("city1", "Narnia"), ("city2", "Mordor"))  # both are unknown words
    with pytest.raises(UserError, match="cannot be told apart") as caught:
        encode_premises(word_tokenizer, premises)
    assert "\n" not in str(caught.value)


def test_batches_and_columns_of_the_objects(word_tokenizer: Any, planted_premises: Any) -> None:
    encoded = encode_premises(word_tokenizer, planted_premises)
    for kind in ("false", "twin", "masked"):
        batch, at = encoded.batch(kind), encoded.objects(kind)
        for row, item in enumerate(encoded.items):
            marked = word_tokenizer.convert_ids_to_tokens(batch.tokens[row][at[row]].tolist())
            expected = {
                "false": item.question.false_object,
                "twin": item.question.true_object,
                "masked": "XXXX",
            }[kind]
            assert marked == [expected]
    assert encoded.subjects[:5] == ("city0",) * 4 + ("city1",)
    assert encoded.templates[:4] == planted_premises.templates
    assert word_tokenizer.convert_ids_to_tokens(encoded.true_tokens[:1].tolist()) == ["land0"]
    some = encoded.take([5, 2])
    mask = [number == 2 for number in range(len(encoded.items))]
    assert encoded.take(mask).items == (encoded.items[2],)
    assert [item.question for item in some.items] == [
        encoded.items[5].question,
        encoded.items[2].question,
    ]
    assert torch.equal(some.false_tokens, encoded.false_tokens[[5, 2]])


def test_a_tokenizer_without_offsets_is_told() -> None:
    class Slow:
        is_fast = False
        chat_template = None

    premises = premises_of(("Paris", "France"), ("Berlin", "Germany"))
    with pytest.raises(UserError, match="no character offsets"):
        encode_premises(Slow(), premises)


def test_a_name_that_the_tokenizer_drops_is_told() -> None:
    """A tokenizer that leaves the country's letters out altogether."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(pattern="ö", behavior="removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    filled = FilledQuestion("Why öö a?", (7, 8), (4, 6))
    with pytest.raises(UserError, match="the object 'öö' is not found"):
        encode_question(tokenizer, filled)
