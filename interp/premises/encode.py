"""Premises as tokens: prompts, token spans of subject and object, and the answers' tokens.

A prompt is the rendered question followed by the cloze, so that the next token is the answer's
(FAITH, arXiv 2402.19103, section 3.1). Spans are carried over from characters by the tokenizer's
offsets on the whole rendered text, never by tokenizing a name alone. Where the true and the false
object begin with the same tokens, those are appended to the prompt, and the first tokens that
differ are scored.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from interp.arguments import check_choice, indices
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Span, TokenBatch
from interp.models import RenderedChat, render_chat
from interp.models.joining import gap_between
from interp.models.spans import shared_length, token_span, tokenize_with_offsets
from interp.premises.joint import DEFAULT_MASK, AnyPremises
from interp.premises.questions import Question, QuestionKind
from interp.premises.relation import FilledQuestion


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of one prompt, with the token spans [start, end) of subject and object."""

    tokens: tuple[int, ...]
    subject: Span
    object: Span


@dataclass(frozen=True)
class EncodedPremise:
    """One question as three prompts, and the tokens that tell its two answers apart."""

    question: Question
    false: EncodedPrompt
    twin: EncodedPrompt
    masked: EncodedPrompt
    true_token: int
    false_token: int

    def prompt(self, kind: QuestionKind) -> EncodedPrompt:
        """One of the three prompts."""
        return getattr(self, check_choice("kind of question", kind, get_args(QuestionKind)))


@dataclass(frozen=True)
class EncodedPremises:
    """Premises as token ids; ``len`` is the number of questions."""

    items: tuple[EncodedPremise, ...]
    device: torch.device | str = "cpu"
    mask: str = DEFAULT_MASK

    def __len__(self) -> int:
        return len(self.items)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subject of each question."""
        return tuple(item.question.subject for item in self.items)

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of each question."""
        return tuple(item.question.template for item in self.items)

    @cached_property
    def true_tokens(self) -> Int[Tensor, " prompt"]:
        """The first token of the true answer that the false one does not share."""
        return torch.tensor([item.true_token for item in self.items], device=self.device)

    @cached_property
    def false_tokens(self) -> Int[Tensor, " prompt"]:
        """The first token of the false answer that the true one does not share."""
        return torch.tensor([item.false_token for item in self.items], device=self.device)

    def to(self, device: torch.device) -> "EncodedPremises":
        """The same, with batches and tokens on that device."""
        return self if torch.device(self.device) == device else replace(self, device=device)

    def batch(self, kind: QuestionKind) -> TokenBatch:
        """All prompts of one kind, left-padded."""
        return TokenBatch.from_lists(
            [item.prompt(kind).tokens for item in self.items], device=self.device
        )

    def objects(self, kind: QuestionKind) -> Tensor:
        """Bool[prompt pos]: the object's positions in ``batch(kind)``."""
        return self.batch(kind).span_mask([item.prompt(kind).object for item in self.items])

    def by_length(self, kind: QuestionKind) -> list[int]:
        """Indices of the prompts, by the number of tokens from the object on: what runs again."""
        prompts = [item.prompt(kind) for item in self.items]
        lengths = [len(prompt.tokens) - prompt.object[0] for prompt in prompts]
        return sorted(range(len(lengths)), key=lambda index: lengths[index])

    def take(self, prompts: Iterable[int]) -> "EncodedPremises":
        """Some of the questions, by index, or by a mask."""
        places = indices("prompts", prompts, len(self.items))
        return replace(self, items=tuple(self.items[place] for place in places))


def tokenize(tokenizer: Any, rendered: RenderedChat) -> Any:
    """Ids and character offsets of a rendered chat's text."""
    special = rendered.add_special_tokens
    return tokenize_with_offsets(tokenizer, rendered.text, add_special_tokens=special)


@checked
def encode_question(
    tokenizer: Any, filled: FilledQuestion, *, answer: str = "", system: str | None = None
) -> EncodedPrompt:
    """A filled question, and perhaps the beginning of its answer, with its token spans."""
    rendered = render_chat(tokenizer, filled.text, answer, system=system)
    return _with_spans(tokenizer, rendered, filled)


def encode_questions(
    tokenizer: Any, premises: AnyPremises, kind: QuestionKind, *, system: str | None = None
) -> tuple[EncodedPrompt, ...]:
    """Every question as a user would ask it, without the cloze."""
    filled = [premises.fill(question, kind) for question in premises.questions()]
    return tuple(encode_question(tokenizer, question, system=system) for question in filled)


def _with_spans(
    tokenizer: Any, rendered: RenderedChat, filled: FilledQuestion, *, length: int | None = None
) -> EncodedPrompt:
    """The first ``length`` tokens of a rendered question, with its spans."""
    encoding = tokenize(tokenizer, rendered)
    begin, offsets = rendered.question_start, encoding["offset_mapping"]
    spans = [
        token_span(offsets, rendered.text, (begin + start, begin + end), what=what)
        for what, (start, end) in (("subject", filled.subject), ("object", filled.object))
    ]
    return EncodedPrompt(tuple(encoding["input_ids"][:length]), *spans)


def answer_tokens(
    tokenizer: Any, rendered: RenderedChat, answers: Sequence[str]
) -> list[list[int]]:
    """The ids of the text followed by each answer and a full stop.

    The full stop makes answers differ even when one begins with the other.
    """
    continued = [_with_answer(rendered, answer) for answer in answers]
    return [list(tokenize(tokenizer, text)["input_ids"]) for text in continued]


def _with_answer(rendered: RenderedChat, answer: str) -> RenderedChat:
    """The text, an answer that continues it, and a full stop."""
    text = f"{rendered.text}{gap_between(rendered.text, answer)}{answer}."
    return replace(rendered, text=text)


def _encode_kind(
    tokenizer: Any,
    premises: AnyPremises,
    question: Question,
    *,
    kind: QuestionKind,
    system: str | None,
) -> tuple[EncodedPrompt, int, int]:
    """A question's prompt of one kind, and the first tokens in which its two answers differ."""
    filled = premises.fill(question, kind)
    rendered = render_chat(tokenizer, filled.text, premises.cloze(question), system=system)
    true_ids, false_ids = answer_tokens(
        tokenizer, rendered, [question.true_object, question.false_object]
    )
    shared = shared_length(true_ids, false_ids)
    if shared == min(len(true_ids), len(false_ids)):
        raise UserError(
            f"{question.true_object!r} and {question.false_object!r} have the same tokens: "
            f"the answers about {question.subject!r} cannot be told apart"
        )
    # The prompt ends with the tokens that both answers share.
    answered = _with_answer(rendered, question.true_object)
    prompt = _with_spans(tokenizer, answered, filled, length=shared)
    return prompt, true_ids[shared], false_ids[shared]


@checked
def encode_premises(
    tokenizer: Any,
    premises: AnyPremises,
    *,
    device: torch.device | str = "cpu",
    system: str | None = None,
) -> EncodedPremises:
    """Every question of ``premises`` as a false-premise prompt, its twin and its masked version.

    Args:
        device: where batches and answer tokens are put.
        system: a system prompt, in place of the chat template's own.

    Raises:
        UserError: a name that no token contains, or answers that cannot be told apart.
    """
    items = []
    for question in premises.questions():
        (false, true_token, false_token), (twin, *_), (masked, *_) = (
            _encode_kind(tokenizer, premises, question, kind=kind, system=system)
            for kind in get_args(QuestionKind)
        )
        items.append(EncodedPremise(question, false, twin, masked, true_token, false_token))
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device {device!r} does not exist") from error
    return EncodedPremises(tuple(items), device, premises.mask)
