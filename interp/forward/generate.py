"""Greedy answers to batches of left-padded prompts, with the key/value cache.

`greedy_answers` takes a transformers or PEFT model, `generate_tokens` a hooked one, whose hooks run
in the prefill and in every decoding step.

Greedy is the likeliest token each time, until an end token. A checkpoint's ``generation_config``
can say otherwise (penalties, suppressed tokens, stopping rules, beams, caches, what is returned),
and transformers merges it into every call. Here only its end tokens count.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from interp.arguments import shown
from interp.errors import UserError
from interp.forward.batch import TokenBatch, in_batches
from interp.forward.out_of_memory import halving
from interp.models.call import evaluating
from interp.models.hooked_model import HookedModel
from interp.models.limits import check_prompts, room_for_answer, vocabulary_size
from interp.models.placement import input_device
from interp.progress import progress_bar

logger = logging.getLogger(__name__)

BATCH_PROMPTS = 64
MAX_NEW_TOKENS = 32

Within = Callable[[list[int], TokenBatch], AbstractContextManager[Any]]
"""Makes a context for each batch, from the prompts' indices and the batch."""

Answer = Callable[[list[int], TokenBatch, dict[str, Any]], Tensor]
"""Generates for one batch: from the prompts' indices, the batch, and the arguments of ``generate``,
to token ids [prompt pos] that begin with the batch."""


def generate_tokens(
    model: HookedModel, prompts: Sequence[Sequence[int]], **options: Any
) -> list[str]:
    """The greedy continuation of each prompt by a hooked model; options of `greedy_answers`."""
    return greedy_answers(model.original_model, model.tokenizer, prompts, **options)


@torch.no_grad()
def greedy_answers(
    hf_model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_prompts: int = BATCH_PROMPTS,
    within: Within | None = None,
    answer: Answer | None = None,
    progress: bool = True,
    description: str = "answers",
) -> list[str]:
    """The greedy continuation of each prompt, as text without special tokens.

    The model is left in the mode, training or evaluation, that it was in. An answer that would grow
    beyond the model's table of positions ends there; the log says so.

    Args:
        hf_model: a transformers model, or a PEFT model around one.
        prompts: token ids, one list per prompt.
        end: a token that ends an answer, besides those of the checkpoint (`end_tokens`).
        within: makes a context for each batch; a constraint goes here.
        answer: generates for each batch; by default the model's ``generate``, greedily.

    Raises:
        UserError: prompts beyond the model's positions or vocabulary, or a ``max_new_tokens`` that
            is no number of tokens.
    """
    max_new_tokens = check_max_new_tokens(max_new_tokens)
    check_prompts(hf_model, prompts)
    answers = [""] * len(prompts)
    if not max_new_tokens:
        return answers
    pad = _pad_token(hf_model, tokenizer, end)
    ends = end_tokens(hf_model, tokenizer, end)
    settings: dict[str, Any] = {"num_beams": 1, "pad_token_id": pad}
    if end is not None:
        settings["eos_token_id"] = ends
    device = input_device(hf_model)
    bar = progress_bar(total=len(prompts), description=description, shown=progress)
    with evaluating(hf_model), only_end_tokens(hf_model, ends), bar:
        chunks = _chunks(hf_model, prompts, wanted=max_new_tokens, most=batch_prompts)
        for chunk, room in chunks:

            def answer_some(some: list[int], room: int = room) -> list[str]:
                tokens = [prompts[index] for index in some]
                batch = TokenBatch.from_lists(tokens, pad=pad, device=device)
                arguments = {
                    "input_ids": batch.tokens,
                    "attention_mask": batch.mask.long(),
                    **settings,
                    "max_new_tokens": room,
                }
                with within(some, batch) if within else nullcontext():
                    if answer is not None:
                        ids = answer(some, batch, arguments)
                    else:
                        ids = hf_model.generate(**arguments, do_sample=False)
                return tokenizer.batch_decode(ids[:, batch.width :], skip_special_tokens=True)

            for some, texts in halving([chunk], answer_some):
                for index, text in zip(some, texts, strict=True):
                    answers[index] = text.strip()
                bar.update(len(some))
    return answers


def check_max_new_tokens(count: Any) -> int:
    """The number of tokens. Raises UserError unless it is one."""
    if isinstance(count, bool | Tensor) or not hasattr(count, "__index__") or int(count) < 0:
        raise UserError(f"max_new_tokens is a whole number from 0 on, not {shown(count)}")
    return int(count)


def end_tokens(hf_model: Any, tokenizer: Any, end: int | None = None) -> int | list[int] | None:
    """The tokens that end an answer: those of the checkpoint, and ``end`` if it is given.

    The checkpoint's are what its generation config says, else its config, else the tokenizer.
    Raises UserError for anything but numbers of tokens.
    """
    configured = (
        getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None),
        getattr(getattr(hf_model, "config", None), "eos_token_id", None),
        tokenizer.eos_token_id,
    )
    ends = as_end_tokens(next((found for found in configured if found is not None), []))
    if end is not None and end not in ends:
        ends.insert(0, end)
    return ends[0] if len(ends) == 1 else ends or None


def as_end_tokens(configured: Any) -> list[int]:
    """A generation config's ``eos_token_id`` as a list.

    Raises:
        UserError: anything but numbers of tokens.
    """
    ends = list(configured) if isinstance(configured, list | tuple | set) else [configured]
    if any(type(end) is not int or end < 0 for end in ends):
        raise UserError(
            "eos_token_id of the model is a token's number, or a list of such, not "
            f"{shown(configured)}: mend generation_config.json, or set "
            "model.generation_config.eos_token_id"
        )
    return ends


@contextmanager
def only_end_tokens(hf_model: nn.Module, ends: int | list[int] | None) -> Iterator[None]:
    """While open, the model's generation config has these end tokens, and nothing else.

    An argument of ``generate`` cannot do this: transformers takes whatever a call leaves open from
    the model's config. A PEFT model and the model inside it each have one.
    """
    models: list[Any] = [part for part in hf_model.modules() if "generation_config" in vars(part)]
    # Entries for generation that somebody put on the model's own config, which `generate` refuses.
    configs = [
        model.config for model in models if hasattr(model.config, "_get_generation_parameters")
    ]
    entries = [(config, config._get_generation_parameters()) for config in configs]
    with ExitStack() as stack:
        for model in models:
            stack.callback(setattr, model, "generation_config", model.generation_config)
            model.generation_config = GenerationConfig(eos_token_id=ends)
        for config, found in entries:
            for name in found.keys() & vars(config).keys():
                stack.callback(setattr, config, name, found[name])
                delattr(config, name)
        yield


def _chunks(
    hf_model: Any, prompts: Sequence[Sequence[int]], *, wanted: int, most: int
) -> Iterator[tuple[list[int], int]]:
    """Prompts of similar length together, with the number of tokens that their answers may have.

    Prompts whose answers have less room than wanted are only together with those of their own
    length, so that an answer does not depend on the other prompts.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    rooms = {index: room_for_answer(hf_model, len(prompts[index]), wanted) for index in order}
    if short := sum(room < wanted for room in rooms.values()):
        logger.warning(
            "%d of %d answers may end early: the model has no positions for more", short, len(order)
        )
    for room, same in groupby(order, key=rooms.__getitem__):
        for chunk in in_batches(list(same), most):
            yield chunk, room


def _pad_token(hf_model: Any, tokenizer: Any, end: int | None) -> int:
    """The token that pads a batch, also behind a finished answer, where it must not be text."""
    size = vocabulary_size(hf_model)
    for token in (tokenizer.pad_token_id, end, tokenizer.eos_token_id):
        if token is not None and (size is None or token < size):
            return int(token)
    return 0
