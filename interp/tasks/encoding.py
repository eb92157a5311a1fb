"""Pairs as tokens: token batches, the answers' tokens, and spans in tokens.

The answers are scored by the first token in which they differ as continuations of the text. Each
text is tokenized together with each answer, never apart from it; what the two continuations share
is the prompt, so answers that begin with the same tokens put those at the prompt's end.

Text and answer are joined by the pair's ``gap``; without one, mostly by a space
(`interp.models.joining`). In a chat (``chat=True``) the text is the user's turn and the answer
begins the assistant's, after a gap only if the pair has one. Spans are found by the tokenizer's
character offsets on the whole text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.arguments import indices
from interp.checked import checked
from interp.errors import UserError, errors_in
from interp.forward.batch import Span, TokenBatch
from interp.forward.partial import unedited_logits
from interp.models import render_chat
from interp.models.hooked_model import HookedModel
from interp.models.joining import gap_between
from interp.models.spans import check_offsets, shared_length, token_span, tokenize_with_offsets
from interp.patching.metrics import LogitDifference
from interp.tasks.pairs import Pair, Pairs


@dataclass(frozen=True, eq=False)
class EncodedPairs:
    """Pairs as token ids.

    Attributes:
        clean, corrupted: the prompts, left-padded.
        answer, wrong: Int[prompt], the first tokens that tell the two answers apart.
        spans: by name, the token spans [start, end) of the clean and of the corrupted prompts, in
            unpadded positions.
        groups, templates: of each prompt.
    """

    clean: TokenBatch
    corrupted: TokenBatch
    answer: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"]
    spans: dict[str, tuple[tuple[Span, ...], tuple[Span, ...]]]
    groups: tuple[str, ...]
    templates: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def metric(self) -> LogitDifference:
        """logit(answer) − logit(wrong answer): high in the clean run."""
        return LogitDifference(self.answer, self.wrong)

    @property
    def aligned(self) -> bool:
        """Whether every clean prompt has as many tokens as its corrupted twin."""
        return torch.equal(self.clean.mask, self.corrupted.mask)

    def content(self) -> dict[str, Any]:
        """All fields as JSON types, without padding."""
        return {
            "clean": _unpadded(self.clean),
            "corrupted": _unpadded(self.corrupted),
            "answer": self.answer.tolist(),
            "wrong": self.wrong.tolist(),
            "spans": {name: [list(side) for side in pair] for name, pair in self.spans.items()},
            "groups": list(self.groups),
            "templates": list(self.templates),
        }

    def take(self, prompts: Sequence[int]) -> "EncodedPairs":
        """Some of the prompts, by index, or by a mask."""
        index = indices("prompts", prompts, len(self.groups))
        return replace(
            self,
            clean=self.clean.take(index),
            corrupted=self.corrupted.take(index),
            answer=self.answer[index],
            wrong=self.wrong[index],
            spans={
                name: (tuple(a[i] for i in index), tuple(b[i] for i in index))
                for name, (a, b) in self.spans.items()
            },
            groups=tuple(self.groups[i] for i in index),
            templates=tuple(self.templates[i] for i in index),
        )


@checked
def encode_pairs(
    tokenizer: Any,
    pairs: Pairs,
    *,
    chat: bool = False,
    system: str | None = None,
    device: torch.device | str = "cpu",
) -> EncodedPairs:
    """Token batches of all pairs.

    Args:
        chat: put the texts into the tokenizer's chat template as the user's words.
        system: with ``chat``, a system prompt.

    Raises:
        UserError: answers that cannot be told apart, a span that no token holds, or a system prompt
            without ``chat``.
    """
    if system is not None and not chat:
        raise UserError("a system prompt needs the chat template: set chat=True, or leave it out")
    check_offsets(tokenizer)
    rows = []
    for number, pair in enumerate(pairs):
        with errors_in(f"{pairs.name}, pair {number + 1}"):
            rows.append(_encode_pair(tokenizer, pair, chat=chat, system=system))
    return EncodedPairs(
        clean=TokenBatch.from_lists([row[0][0] for row in rows], device=device),
        corrupted=TokenBatch.from_lists([row[1][0] for row in rows], device=device),
        answer=torch.tensor([row[2] for row in rows], device=device),
        wrong=torch.tensor([row[3] for row in rows], device=device),
        spans={
            name: (tuple(row[0][1][name] for row in rows), tuple(row[1][1][name] for row in rows))
            for name in pairs.span_names
        },
        groups=pairs.groups,
        templates=pairs.templates,
    )


def _unpadded(batch: TokenBatch) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(batch.tokens, batch.mask, strict=True)]


_Prompt = tuple[list[int], dict[str, Span]]


def _encode_pair(
    tokenizer: Any, pair: Pair, *, chat: bool, system: str | None
) -> tuple[_Prompt, _Prompt, int, int]:
    """Both prompts with their spans, and the two answers' tokens."""
    found = []
    for text, which in ((pair.clean, 0), (pair.corrupted, 1)):
        spans = {name: both[which] for name, both in pair.spans.items()}
        found.append(_encode_text(tokenizer, text, pair, spans=spans, chat=chat, system=system))
    (clean, *answers), (corrupted, *others) = found
    if answers != others:
        raise UserError(
            f"the first tokens of {pair.answer!r} and {pair.wrong_answer!r} after the clean text "
            "differ from those after the corrupted one: end both texts alike"
        )
    return clean, corrupted, answers[0], answers[1]


def _encode_text(
    tokenizer: Any, text: str, pair: Pair, *, spans: dict[str, Span], chat: bool, system: str | None
) -> tuple[_Prompt, int, int]:
    wholes, begin = [], 0
    for answer in (pair.answer, pair.wrong_answer):
        if chat:
            answer = answer.lstrip() if pair.gap is None else answer
            rendered = render_chat(tokenizer, text, answer, system=system, gap=pair.gap)
            whole, begin = rendered.text, rendered.question_start
            special = rendered.add_special_tokens
        else:
            gap = gap_between(text, answer) if pair.gap is None else pair.gap
            whole, special = f"{text}{gap}{answer}", True
        wholes.append(whole)
    encodings = [tokenize_with_offsets(tokenizer, w, add_special_tokens=special) for w in wholes]
    right, wrong = (list(encoding["input_ids"]) for encoding in encodings)
    shared = shared_length(right, wrong)
    if shared == min(len(right), len(wrong)):
        # One answer begins with the other: a full stop behind both makes them differ.
        ended = [f"{whole}." for whole in wholes]
        again = [tokenize_with_offsets(tokenizer, w, add_special_tokens=special) for w in ended]
        before = (right[:shared], wrong[:shared])
        right, wrong = (list(encoding["input_ids"]) for encoding in again)
        if (right[:shared], wrong[:shared]) != before:  # it is joined to an answer
            right = wrong = before[0]
    if shared == min(len(right), len(wrong)) or right[shared] == wrong[shared]:
        raise UserError(
            f"{pair.answer!r} and {pair.wrong_answer!r} have the same tokens: they cannot be told "
            "apart"
        )
    if shared == 0:
        raise UserError("there are no tokens of the text before the answers' first tokens")
    offsets = encodings[0]["offset_mapping"][:shared]
    token_spans = {
        name: token_span(offsets, wholes[0], (begin + start, begin + end), what=f"span {name!r}")
        for name, (start, end) in spans.items()
    }
    return (right[:shared], token_spans), right[shared], wrong[shared]


@checked
@torch.no_grad()
def answered_right(model: HookedModel, encoded: EncodedPairs) -> Bool[Tensor, " prompt"]:
    """Whether the model prefers the answer to the wrong one after each clean text."""
    return (encoded.metric(unedited_logits(model, encoded.clean)) > 0).cpu()
