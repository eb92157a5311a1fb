"""Prompts and answers as tokens: what is trained on, what ends an answer, what does not fit."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.models import render_chat
from interp.moelora.data.encoding import (
    IGNORED,
    AnswerCollator,
    EncodedExample,
    encode_example,
    encode_examples,
    encode_prompt,
    end_token,
)
from interp.moelora.data.examples import Example
from interp.moelora.training.training import TrainingSettings
from tests.unchecked import unchecked

RIVER = Example("rivers", "Which river flows through Cairo?", "Nile", response="It is the Nile.")


@pytest.fixture(params=["chat", "plain"])
def tokenizer(request: pytest.FixtureRequest, chat_tokenizer: Any, plain_tokenizer: Any) -> Any:
    return {"chat": chat_tokenizer, "plain": plain_tokenizer}[request.param]


def test_only_the_answer_and_its_end_are_trained_on(tokenizer: Any) -> None:
    encoded = encode_example(tokenizer, RIVER)
    trained = [token for token in encoded.labels if token != IGNORED]
    assert tokenizer.decode(trained).strip() == "It is the Nile.<|end|>"
    assert trained[-1] == tokenizer.eos_token_id
    assert encoded.labels[: encoded.n_prompt] == (IGNORED,) * encoded.n_prompt
    assert encoded.labels[encoded.n_prompt :] == encoded.tokens[encoded.n_prompt :]


def test_prompt_is_the_same_in_training_and_in_answering(tokenizer: Any) -> None:
    encoded = encode_example(tokenizer, RIVER)
    assert encoded.tokens[: encoded.n_prompt] == encode_prompt(tokenizer, RIVER.prompt)


def test_whole_text_is_the_rendered_chat(tokenizer: Any) -> None:
    encoded = encode_example(tokenizer, RIVER)
    text = tokenizer.decode(encoded.tokens[:-1])
    assert text == render_chat(tokenizer, RIVER.prompt, RIVER.response).text


def test_tokens_across_the_border_are_kept_apart(plain_tokenizer: Any) -> None:
    """The merge of ':' and ' ' that this tokenizer would make belongs to neither side."""

    class Merging:
        """Joins the last word of the prompt and the first of the answer."""

        chat_template = None
        eos_token_id = 0
        all_special_ids = (0,)

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            words = text.replace("Answer: It", "Answer:It").split(" ")
            return {"input_ids": [sum(map(ord, word)) for word in words if word]}

    tokenizer = Merging()
    encoded = encode_example(tokenizer, RIVER)
    assert encoded.tokens[: encoded.n_prompt] == encode_prompt(tokenizer, RIVER.prompt)
    rest = tuple(tokenizer(" It is the Nile.")["input_ids"])
    assert encoded.tokens[encoded.n_prompt :] == (*rest, 0)


def test_end_is_what_the_chat_template_writes(chat_tokenizer: Any) -> None:
    import copy

    other = copy.deepcopy(chat_tokenizer)
    other.chat_template = other.chat_template.replace(
        "{{ message['content'] }}<|end|>", "{{ message['content'] }}<|start|>"
    )
    assert end_token(chat_tokenizer) == chat_tokenizer.eos_token_id
    assert end_token(other) == other.bos_token_id != other.eos_token_id


def test_a_tokenizer_without_an_end_is_told(plain_tokenizer: Any) -> None:
    import copy

    other = copy.deepcopy(plain_tokenizer)
    other.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        end_token(other)


def test_batch_by_hand() -> None:
    short, long = EncodedExample((5, 6, 7), 1), EncodedExample((1, 2, 3, 4), 2)
    batch = AnswerCollator(pad=9)([short, long])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 9], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100], [-100, -100, 3, 4]]
    assert batch["labels"].dtype == torch.long


def test_too_long_is_an_error_that_says_which(plain_tokenizer: Any) -> None:
    long = Example("rivers", "Which river? " * 30, "Nile")
    with pytest.raises(UserError, match=r"1 of 2 examples are longer than 60 tokens.*Which river"):
        encode_examples(plain_tokenizer, [RIVER, long], max_length=60)


def test_too_long_can_be_dropped_and_is_counted(
    plain_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    long = Example("rivers", "Which river? " * 30, "Nile")
    with caplog.at_level("INFO", logger="interp.moelora.data.encoding"):
        kept = encode_examples(plain_tokenizer, [RIVER, long], max_length=60, too_long="drop")
    assert kept == (encode_example(plain_tokenizer, RIVER),)
    assert "1 of 2 examples are longer than 60 tokens: dropped" in caplog.text


def test_dropping_everything_is_an_error(plain_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no example is at most 3 tokens long"):
        encode_examples(plain_tokenizer, [RIVER], max_length=3, too_long="drop")


def test_an_example_of_just_the_length_fits(plain_tokenizer: Any) -> None:
    length = len(encode_example(plain_tokenizer, RIVER).tokens)
    assert len(encode_examples(plain_tokenizer, [RIVER], max_length=length)) == 1
    with pytest.raises(UserError):
        encode_examples(plain_tokenizer, [RIVER], max_length=length - 1)


def test_unknown_policy() -> None:
    with pytest.raises(UserError, match="unknown too_long 'cut'; known: error, drop"):
        unchecked(TrainingSettings, too_long="cut")
