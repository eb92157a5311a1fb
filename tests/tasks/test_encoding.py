"""Pairs as tokens: the scored tokens continue the text, and spans hold their words."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import UserError
from interp.models import HookedModel
from interp.tasks import Pair, Pairs, answered_right, encode_pairs

PARIS = Pair(
    "Paris is the capital of",
    "Rome is the capital of",
    "France",
    "Italy",
    {"city": ((0, 5), (0, 4)), "kind": ((13, 20), (12, 19))},
)


def text_of(tokenizer: Any, batch: Any, prompt: int, span: tuple[int, int] | None = None) -> str:
    tokens = batch.tokens[prompt][batch.mask[prompt]]
    return tokenizer.decode(tokens if span is None else tokens[span[0] : span[1]])


def test_the_answers_continue_the_text(plain_tokenizer: Any) -> None:
    encoded = encode_pairs(plain_tokenizer, Pairs((PARIS,)))
    prompt = text_of(plain_tokenizer, encoded.clean, 0)
    whole = plain_tokenizer("Paris is the capital of France.")["input_ids"]
    wrong = plain_tokenizer("Paris is the capital of Italy.")["input_ids"]
    n = int(encoded.clean.mask.sum())
    assert whole[:n] == wrong[:n] == encoded.clean.tokens[0].tolist()
    assert whole[n] == encoded.answer.item() != wrong[n] == encoded.wrong.item()
    assert prompt.startswith("Paris is the capital of")
    assert "France".startswith(plain_tokenizer.decode(encoded.answer).strip())


def test_a_space_is_put_before_a_bare_answer_only(
    name_tokenizer: Any, plain_tokenizer: Any
) -> None:
    bare, spaced = PARIS, Pair(PARIS.clean, PARIS.corrupted, " France", " Italy")
    ends_in_space = Pair(PARIS.clean + " ", PARIS.corrupted + " ", "France", "Italy")
    tokens = [
        encode_pairs(plain_tokenizer, Pairs((pair,))) for pair in (bare, spaced, ends_in_space)
    ]
    for one in tokens[1:]:
        assert torch.equal(one.clean.tokens, tokens[0].clean.tokens)
        assert torch.equal(one.answer, tokens[0].answer)


def test_answers_that_begin_alike_are_scored_where_they_differ(plain_tokenizer: Any) -> None:
    pair = Pair("They spoke of", "He spoke of", " Germany", " German")
    encoded = encode_pairs(plain_tokenizer, Pairs((pair,)))
    prompt = text_of(plain_tokenizer, encoded.clean, 0)
    assert prompt.startswith("They spoke of")
    rest = plain_tokenizer.decode(encoded.answer)
    assert "They spoke of Germany.".startswith(prompt + rest)
    assert "They spoke of German.".startswith(prompt + plain_tokenizer.decode(encoded.wrong))


def test_spans_hold_their_words(plain_tokenizer: Any, name_tokenizer: Any) -> None:
    encoded = encode_pairs(plain_tokenizer, Pairs((PARIS, PARIS)))
    for batch, spans, city in (
        (encoded.clean, 0, "Paris"),
        (encoded.corrupted, 1, "Rome"),
    ):
        for prompt in range(2):
            words = text_of(plain_tokenizer, batch, prompt, encoded.spans["city"][spans][prompt])
            assert words.strip() == city
            words = text_of(plain_tokenizer, batch, prompt, encoded.spans["kind"][spans][prompt])
            assert words.strip() == "capital"


def test_a_chat_holds_the_text_and_the_answer_begins_the_reply(chat_tokenizer: Any) -> None:
    encoded = encode_pairs(chat_tokenizer, Pairs((PARIS,)), chat=True, system="Be brief.")
    prompt = text_of(chat_tokenizer, encoded.clean, 0)
    assert "Be brief." in prompt
    assert "user\nParis is the capital of" in prompt
    assert "assistant\n" in prompt
    assert text_of(chat_tokenizer, encoded.clean, 0, encoded.spans["city"][0][0]) == "Paris"
    answer = chat_tokenizer.decode(encoded.answer)
    assert "France".startswith(prompt.split("assistant\n")[1] + answer)


def test_without_a_chat_template_the_plain_frame_is_used(plain_tokenizer: Any) -> None:
    encoded = encode_pairs(plain_tokenizer, Pairs((PARIS,)), chat=True)
    assert text_of(plain_tokenizer, encoded.clean, 0).startswith(
        "Question: Paris is the capital of\nAnswer:"
    )


def test_taking_some_prompts_keeps_everything_of_them(plain_tokenizer: Any) -> None:
    longer = Pair(
        "In fact Paris is the capital of",
        "Rome is the capital of",
        "France",
        "Italy",
        {"city": ((8, 13), (0, 4)), "kind": ((21, 28), (12, 19))},
        "g",
        "t",
    )
    encoded = encode_pairs(plain_tokenizer, Pairs((PARIS, longer)))
    assert not encoded.aligned
    one = encoded.take([1])
    alone = encode_pairs(plain_tokenizer, Pairs((longer,)))
    assert torch.equal(one.clean.tokens, alone.clean.tokens)
    assert torch.equal(one.corrupted.tokens, alone.corrupted.tokens)
    assert one.spans == alone.spans
    assert (one.groups, one.templates) == (("g",), ("t",))
    assert encoded.take([0]).aligned == (
        encoded.clean.mask[0].sum() == encoded.corrupted.mask[0].sum()
    )


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip),
    data=st.data(),
)
def test_any_span_of_any_text_is_found(
    plain_tokenizer: Any, text: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    if not text[start:end].strip():
        return
    pair = Pair(text, text, " yes", " no", {"piece": ((start, end), (start, end))})
    encoded = encode_pairs(plain_tokenizer, Pairs((pair,)))
    first, last = encoded.spans["piece"][0][0]
    words = text_of(plain_tokenizer, encoded.clean, 0, (first, last))
    assert text[start:end].strip() in words
    assert 0 <= first < last <= int(encoded.clean.mask.sum())


def test_what_cannot_be_scored_is_told(plain_tokenizer: Any, name_tokenizer: Any) -> None:
    unknown = Pair("Adam met", "Amy met", " Xanthippe", " Xerxes")  # both the unknown token
    with pytest.raises(UserError, match=r"pairs, pair 1: .*have the same tokens"):
        encode_pairs(name_tokenizer, Pairs((unknown,)))
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(UserError, match="no character offsets"):
        encode_pairs(slow, Pairs((PARIS,)))


def test_texts_that_end_differently_are_told(plain_tokenizer: Any) -> None:
    """On a new line an answer has no space before it, and so another first token."""
    pair = Pair("Paris is the capital of", "The country of Rome:\n", "France", "Italy")
    with pytest.raises(UserError, match="end both texts alike"):
        encode_pairs(plain_tokenizer, Pairs((pair,)))


def test_right_answers_are_those_the_model_prefers(tiny_gpt2: HookedModel) -> None:
    turned = Pair(PARIS.clean, PARIS.corrupted, PARIS.wrong_answer, PARIS.answer, PARIS.spans)
    encoded = encode_pairs(tiny_gpt2.tokenizer, Pairs((PARIS, turned)))
    right = answered_right(tiny_gpt2, encoded)
    logits = tiny_gpt2(encoded.clean.tokens)[:, -1]
    assert right[0].item() == bool(logits[0, encoded.answer[0]] > logits[0, encoded.wrong[0]])
    assert right.tolist() in ([True, False], [False, True])


@pytest.mark.parametrize(
    ("text", "gap", "whole"),
    [
        ("from 1732 to 17", "", "from 1732 to 1733."),
        ("The opposite of able is un", "", "The opposite of able is un33."),
        ("It says:", "\n", "It says:\n33."),
        ("It says:", None, "It says: 33."),
        ("It says: (", None, "It says: (33."),
    ],
)
def test_the_gap_stands_between_text_and_answer(
    text: str, gap: str | None, whole: str, plain_tokenizer: Any
) -> None:
    pair = Pair(text, f"In fact {text}", "33", "02", gap=gap)
    encoded = encode_pairs(plain_tokenizer, Pairs((pair,)))
    ids = plain_tokenizer(whole)["input_ids"]
    n = int(encoded.clean.mask[0].sum())
    assert [*encoded.clean.tokens[0][-n:].tolist(), encoded.answer.item()] == ids[: n + 1]


@pytest.mark.parametrize("gap", [None, "", "\n", " "])
def test_in_a_chat_the_gap_begins_the_assistants_turn(
    gap: str | None, chat_tokenizer: Any, plain_tokenizer: Any
) -> None:
    pair = Pair("Say a number", "Say a word", "33", "02", gap=gap)
    encoded = encode_pairs(chat_tokenizer, Pairs((pair,)), chat=True)
    prompt = text_of(chat_tokenizer, encoded.clean, 0) + chat_tokenizer.decode(encoded.answer)
    assert prompt.endswith(f"assistant\n{gap or ''}3")
    encoded = encode_pairs(plain_tokenizer, Pairs((pair,)), chat=True)
    prompt = text_of(plain_tokenizer, encoded.clean, 0) + plain_tokenizer.decode(encoded.answer)
    assert prompt.endswith(f"Answer:{' ' if gap is None else gap}3")


def test_a_system_prompt_needs_a_chat(plain_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="a system prompt needs the chat template"):
        encode_pairs(plain_tokenizer, Pairs((PARIS,)), system="Be brief.")


@pytest.mark.parametrize(("answer", "wrong"), [(")", "]"), ("?", "!"), (":", ","), ("}", ")")])
def test_answers_of_punctuation_are_scored_by_their_own_tokens(
    answer: str, wrong: str, smollm: HookedModel
) -> None:
    """A full stop behind them would be joined to them, as in ")."."""
    pair = Pair("print(x", "print(y", answer, wrong, gap="")
    encoded = encode_pairs(smollm.tokenizer, Pairs((pair,)))
    own = [smollm.tokenizer(text)["input_ids"] for text in (answer, wrong)]
    assert [encoded.answer.tolist(), encoded.wrong.tolist()] == own
