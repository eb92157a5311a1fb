"""Greedy answers in batches of left-padded prompts, with the key/value cache.

Hooks that stand on the model act here too: on the prefill, and on every decoding step that they
choose to act on.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from tqdm.auto import tqdm

from interp.patching.batch import TokenBatch
from interp.patching.forward import device_of

BATCH_PROMPTS = 64
MAX_NEW_TOKENS = 32


@torch.no_grad()
def generate_tokens(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_prompts: int = BATCH_PROMPTS,
    within: Callable[[list[int], TokenBatch], AbstractContextManager[Any]] | None = None,
    progress: bool = True,
    description: str = "answers",
) -> list[str]:
    """The greedy continuation of each prompt, as text without special tokens.

    Args:
        prompts: token ids, one list per prompt.
        within: makes a context for each batch, from the prompts' indices and the batch; a
            constraint goes here.
    """
    hf_model, tokenizer = model.original_model, model.tokenizer
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    with tqdm(total=len(prompts), desc=description, disable=not progress) as bar:
        for begin in range(0, len(order), batch_prompts):
            chunk = order[begin : begin + batch_prompts]
            batch = TokenBatch.from_lists(
                [prompts[index] for index in chunk], pad=pad, device=device_of(model)
            )
            with within(chunk, batch) if within else nullcontext():
                ids = hf_model.generate(
                    input_ids=batch.tokens,
                    attention_mask=batch.mask.long(),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=pad,
                )
            new = ids[:, batch.width :]
            for index, text in zip(
                chunk, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
            ):
                answers[index] = text.strip()
            bar.update(len(chunk))
    return answers
