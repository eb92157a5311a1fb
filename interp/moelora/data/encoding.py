"""Questions and answers as tokens: a prompt in the model's chat format, a loss on the answer only.

The prompt is the rendered chat (`interp.models.render_chat`); its tokens are the same in training
and when the model answers. The answer's tokens follow, then the token that ends an answer, which is
learned too. Labels are -100 (`IGNORED`) on the prompt, so that only the answer is trained on.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from interp.arguments import check_choice
from interp.errors import UserError
from interp.models import RenderedChat, render_chat
from interp.models.chat import text_after_answer
from interp.models.spans import prompt_ids
from interp.moelora.data.examples import Example

logger = logging.getLogger(__name__)

TooLong = Literal["error", "drop"]
"""What happens to an example that does not fit into the context."""

IGNORED = -100


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of prompt, answer and end token in a row; the first `n_prompt` are the prompt's."""

    tokens: tuple[int, ...]
    n_prompt: int

    @property
    def labels(self) -> tuple[int, ...]:
        """The answer's tokens at their positions, `IGNORED` before."""
        return (IGNORED,) * self.n_prompt + self.tokens[self.n_prompt :]


def encode_prompt(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    """The tokens after which the model answers."""
    return _ids(tokenizer, render_chat(tokenizer, prompt))


def encode_example(tokenizer: Any, example: Example, *, end: int | None = None) -> EncodedExample:
    """The tokens of a question and its response, ended by `end` (see `end_token`).

    The response stands where the template puts an answer. What the template writes between the
    prompt that the model is asked with and the response, such as a closed thought, is learned too;
    a response that does not go on from that prompt has what stands before it as its prompt. Tokens
    that the tokenizer would put across the border of prompt and answer are kept apart, as they are
    when the model answers.
    """
    question = render_chat(tokenizer, example.prompt)
    rendered = render_chat(tokenizer, example.prompt, example.response)
    if not rendered.text.startswith(question.text):
        question = replace(rendered, text=rendered.text[: rendered.answer_start])
    prompt, whole = _ids(tokenizer, question), _ids(tokenizer, rendered)
    answer = whole[len(prompt) :]
    if whole[: len(prompt)] != prompt:
        rest = rendered.text[len(question.text) :]
        answer = tuple(tokenizer(rest, add_special_tokens=False)["input_ids"])
    # A response may say its end itself.
    ended = end_token(tokenizer) if end is None else end
    while answer and answer[-1] == ended:
        answer = answer[:-1]
    if not answer:
        raise UserError(f"the response {example.response!r} has no tokens")
    return EncodedExample((*prompt, *answer, ended), len(prompt))


def encode_examples(
    tokenizer: Any, examples: Sequence[Example], *, max_length: int, too_long: TooLong = "error"
) -> tuple[EncodedExample, ...]:
    """All examples as tokens; one longer than `max_length` is an error, or dropped and counted.

    Nothing is ever cut: half a question has no right answer. Raises `UserError` when an example
    does not fit and `too_long` is "error", or when none is left.
    """
    check_choice("too_long", too_long, get_args(TooLong))
    end = end_token(tokenizer)
    encoded = [encode_example(tokenizer, example, end=end) for example in examples]
    long = [index for index, code in enumerate(encoded) if len(code.tokens) > max_length]
    if long and too_long == "error":
        worst = max(long, key=lambda index: len(encoded[index].tokens))
        raise UserError(
            f"{len(long)} of {len(encoded)} examples are longer than {max_length} tokens; the "
            f"longest has {len(encoded[worst].tokens)} ({examples[worst].prompt[:60]!r}…): raise "
            "max_length up to the model's context, or drop them with too_long=drop"
        )
    if long:
        counts = len(long), len(encoded), max_length
        logger.info("%d of %d examples are longer than %d tokens: dropped", *counts)
    kept = tuple(code for code in encoded if len(code.tokens) <= max_length)
    if not kept:
        raise UserError(f"no example is at most {max_length} tokens long: raise max_length")
    return kept


def end_token(tokenizer: Any) -> int:
    """The token that ends an answer: what the chat template writes behind one, or else EOS."""
    special = set(tokenizer.all_special_ids)
    if getattr(tokenizer, "chat_template", None):
        after = text_after_answer(tokenizer)
        ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
        if ids and ids[0] in special:
            return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise UserError(
            "this model's tokenizer has no end-of-sequence token, so an answer cannot be ended: "
            "set tokenizer.eos_token in its directory"
        )
    return int(tokenizer.eos_token_id)


@dataclass(frozen=True)
class AnswerCollator:
    """Makes a training batch of encoded examples, padded on the right with any token `pad`."""

    pad: int = 0

    def __call__(self, batch: Sequence[EncodedExample]) -> dict[str, Int[Tensor, "example pos"]]:
        """Token ids, attention mask and labels."""
        width = max(len(example.tokens) for example in batch)

        def padded(rows: list[tuple[int, ...]], fill: int) -> Int[Tensor, "example pos"]:
            return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])

        return {
            "input_ids": padded([example.tokens for example in batch], self.pad),
            "attention_mask": padded([(1,) * len(example.tokens) for example in batch], 0),
            "labels": padded([example.labels for example in batch], IGNORED),
        }


def _ids(tokenizer: Any, rendered: RenderedChat) -> tuple[int, ...]:
    special = rendered.add_special_tokens
    return tuple(prompt_ids(tokenizer, rendered.text, add_special_tokens=special))
