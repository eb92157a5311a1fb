"""Greedy answers in batches of left-padded prompts, with the key/value cache.

`greedy_answers` asks a transformers or PEFT model, `generate_tokens` a hooked one: hooks that stand
on the model act there too, on the prefill and on every decoding step that they choose to act on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from interp.patching.batch import TokenBatch
from interp.patching.out_of_memory import halving

BATCH_PROMPTS = 64
MAX_NEW_TOKENS = 32

Within = Callable[[list[int], TokenBatch], AbstractContextManager[Any]]
"""Makes a context for each batch, from the prompts' indices and the batch."""

Answer = Callable[[list[int], TokenBatch, dict[str, Any]], Tensor]
"""Generates for one batch; see `answers_in_batches`."""


def generate_tokens(model: Any, prompts: Sequence[Sequence[int]], **options: Any) -> list[str]:
    """The greedy continuation of each prompt by a hooked model; options of `greedy_answers`."""
    return greedy_answers(model.original_model, model.tokenizer, prompts, **options)


def greedy_answers(
    hf_model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_prompts: int = BATCH_PROMPTS,
    within: Within | None = None,
    progress: bool = True,
    description: str = "answers",
) -> list[str]:
    """The greedy continuation of each prompt, as text without special tokens.

    The model is left in the mode, training or evaluation, that it was in.

    Args:
        hf_model: a transformers model, or a PEFT model around one.
        prompts: token ids, one list per prompt.
        end: the token that ends an answer; by default what the model's generation config says.
        within: makes a context for each batch; a constraint goes here.
    """

    def answer(chunk: list[int], batch: TokenBatch, settings: dict[str, Any]) -> Tensor:
        with within(chunk, batch) if within else nullcontext():
            return hf_model.generate(**settings, do_sample=False)

    return answers_in_batches(
        hf_model, tokenizer, prompts, answer, end=end, max_new_tokens=max_new_tokens,
        batch_prompts=batch_prompts, progress=progress, description=description,
    )  # fmt: skip


@torch.no_grad()
def answers_in_batches(
    hf_model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    answer: Answer,
    *,
    end: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_prompts: int = BATCH_PROMPTS,
    progress: bool = True,
    description: str = "answers",
) -> list[str]:
    """What ``answer`` makes of batches of prompts of similar length, as text, in their order.

    Args:
        answer: from the prompts' indices, the batch, and settings for ``generate``, to token ids
            [prompt pos] that begin with the batch.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    pad = _pad_token(tokenizer, end)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "num_beams": 1, "pad_token_id": pad,
        **({} if end is None else {"eos_token_id": end}),
    }  # fmt: skip
    device = next(iter(hf_model.parameters())).device

    def of_chunk(chunk: list[int]) -> list[str]:
        batch = TokenBatch.from_lists([prompts[index] for index in chunk], pad=pad, device=device)
        inputs = {"input_ids": batch.tokens, "attention_mask": batch.mask.long()}
        ids = answer(chunk, batch, {**inputs, **settings})
        return tokenizer.batch_decode(ids[:, batch.width :], skip_special_tokens=True)

    chunks = [order[begin : begin + batch_prompts] for begin in range(0, len(order), batch_prompts)]
    bar = tqdm(total=len(prompts), desc=description, disable=not progress)
    with evaluating(hf_model), bar:
        for chunk, texts in halving(chunks, of_chunk):
            for index, text in zip(chunk, texts, strict=True):
                answers[index] = text.strip()
            bar.update(len(chunk))
    return answers


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; on exit in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _pad_token(tokenizer: Any, end: int | None) -> int:
    """What fills up a batch, also behind a finished answer: there it must not be read as text."""
    for token in (tokenizer.pad_token_id, end, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
