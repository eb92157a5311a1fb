"""How people call an attached model: chats of several turns, threads, arguments by position."""

import threading
from typing import Any

import pytest
import torch

from interp.attached import attach
from interp.attached.prompt_text import PromptText, QuestionFrame
from interp.errors import UserError
from interp.heads import HeadSet
from interp.models.passes import call_arguments
from tests.attached.architectures import make
from tests.attached.test_equality import PROMPTS, SPANS, padded

HEADS = HeadSet(((0, 1), (1, 2)), "attention")
GEMMA = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}
{{ raise_exception('no system prompt') }}{% endif %}<start_of_turn>{{ message['role'] }}
{{ message['content'] }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
[INST] {{ message['content'] }} [/INST]{% elif message['role'] == 'assistant' %}\
{{ message['content'] }}{{ eos_token }}{% else %}{{ raise_exception('no system prompt') }}\
{% endif %}{% endfor %}"""
CHAT = [
    {"role": "user", "content": "Why is Rome the capital of Italy?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Why is Paris the capital of Germany?"},
]


@pytest.fixture
def hf_model(plain_tokenizer: Any) -> Any:
    return make("llama", plain_tokenizer)


@pytest.mark.parametrize("template", ["its own", GEMMA, MISTRAL])
@pytest.mark.parametrize("turns", [1, 3])
def test_the_last_turn_is_the_question(
    chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: str, turns: int
) -> None:
    """Whatever the template writes at the beginning of a chat only."""
    if template != "its own":
        monkeypatch.setattr(chat_tokenizer, "chat_template", template)
    chat = CHAT[-turns:]
    text = chat_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = chat_tokenizer(text, add_special_tokens=False)["input_ids"]
    frame, prompt = QuestionFrame(chat_tokenizer), PromptText.of(chat_tokenizer, ids)
    asked = frame.question_in(prompt)
    assert asked is not None
    assert asked.text == CHAT[-1]["content"]
    assert frame.before_answer(prompt) == prompt.ids  # nothing is put into the answer's mouth


def test_a_prompt_of_pieces_keeps_the_bytes_of_its_letters(chat_tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        return chat_tokenizer(text, add_special_tokens=False)["input_ids"]

    rest = " is Åland the capital of Germany?"
    whole = PromptText.of(chat_tokenizer, ids("Why" + rest))
    pieces = PromptText.of(chat_tokenizer, [*ids("Wh"), *ids("y"), *ids(rest)])
    assert pieces.ids != whole.ids
    found = [
        prompt.ids[slice(*prompt.last_mention(word))]
        for prompt in (whole, pieces)
        for word in ("Åland",)
    ]
    assert found[0] == found[1]
    assert chat_tokenizer.decode(found[0]).strip() == "Åland"


def test_one_thread_at_a_time(hf_model: Any, plain_tokenizer: Any) -> None:
    """Threads that take turns are right; a step of another thread's prompt is refused."""
    inputs = padded("left")
    options = {"max_new_tokens": 3, "do_sample": False}
    found: list[Any] = []

    def run(call: Any) -> None:
        try:
            found.append(call())
        except UserError as error:
            found.append(str(error))

    def elsewhere(call: Any) -> Any:
        thread = threading.Thread(target=run, args=(call,))
        thread.start()
        thread.join()
        return found.pop()

    with attach(hf_model, plain_tokenizer, HEADS, at=SPANS) as model, torch.no_grad():
        expected = model.generate(**inputs, **options)
        assert torch.equal(elsewhere(lambda: model.generate(**inputs, **options)), expected)
        begun = model(**inputs, use_cache=True)
        step = torch.zeros(len(PROMPTS), 1, dtype=torch.long)

        def go_on() -> Any:
            return model(input_ids=step, past_key_values=begun.past_key_values)

        assert "another thread" in elsewhere(go_on)
        go_on()  # the thread that began may
        during: list[Any] = []
        hook = model.model.layers[0].register_forward_pre_hook(
            lambda *given: during.append(elsewhere(lambda: model(**inputs)))
        )
        model(**inputs)
        hook.remove()
        assert len(during) == 1
        assert "another thread" in during[0]
        assert torch.equal(model.generate(**inputs, **options), expected)


def test_arguments_by_position(hf_model: Any, plain_tokenizer: Any) -> None:
    inputs = padded("left")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert not mask.bool().all()
    with attach(hf_model, plain_tokenizer, HEADS, at=SPANS) as model, torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(model(ids, mask).logits, expected)
        assert torch.equal(model(ids, attention_mask=mask).logits, expected)


def test_the_names_of_what_is_given() -> None:
    class Named(torch.nn.Module):
        def forward(self, input_ids: Any = None, mask: Any = None, **more: Any) -> None: ...

    class Unnamed(torch.nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> None: ...

    assert call_arguments(Named(), (1, 2), {"x": 3}) == {"input_ids": 1, "mask": 2, "x": 3}
    assert call_arguments(Unnamed(), (1, 2), {"x": 3}) == {"input_ids": 1, "x": 3}
    assert call_arguments(Named(), (1, 2, 3), {"x": 3}) == {"x": 3}  # the call will fail


def test_a_handle_that_was_detached_is_not_entered(hf_model: Any, plain_tokenizer: Any) -> None:
    handle = attach(hf_model, plain_tokenizer, HEADS, at=SPANS)
    with handle:
        pass
    with pytest.raises(UserError, match="was detached: attach it again"), handle:
        pass


def test_a_cache_from_outside_is_told_as_such(hf_model: Any, plain_tokenizer: Any) -> None:
    with torch.no_grad():
        begun = hf_model(**padded("left"), use_cache=True)
        step = torch.zeros(len(PROMPTS), 1, dtype=torch.long)
        with (
            attach(hf_model, plain_tokenizer, HEADS, at=SPANS) as model,
            pytest.raises(UserError, match="a cache from outside the constraint"),
        ):
            model(input_ids=step, past_key_values=begun.past_key_values)
