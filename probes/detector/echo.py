"""The echo: does the model still name an object when the located heads cannot read it?

After the question, the answer begins by repeating it up to the candidate words: "Why is Paris the
capital of". The model continues either with what it knows of the subject or with the words that it
reads in the question. With the attention of the located heads to those words cut, a known object
keeps its probability, and one that was only copied loses it. Nothing of this is trained on a
relation, so it carries over to relations that no probe has seen.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from interp.errors import UserError
from interp.forward.batch import Span, TokenBatch, by_length
from interp.forward.finite import check_finite
from interp.forward.hook_points import hook_name
from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, can_skip_layers, hooked, skipping_layers
from interp.forward.prompts import call_positions
from interp.forward.prompts import device_of as device_of
from interp.forward.transfer import upload
from interp.heads.headset import HeadSet
from interp.models.hooked_model import HookedModel
from interp.patching.edits import AttentionEdit
from interp.progress import progress_bar
from probes.activation_reader import DEFAULT_BATCH_TOKENS, KeysValues
from probes.detector.questions import AskedQuestion

LEAST_PROBABILITY = 1e-4
"""Probabilities are kept this far from 0 and 1: below it, log-odds are noise."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a pass over questions left behind.

    Attributes:
        keys_values: of the prompts that ran, padded on the right.
        rows: which of them each question is.
    """

    keys_values: KeysValues
    rows: Int[Tensor, " question"]

    def before(
        self,
        first: int,
        offsets: Int[Tensor, " question"],
        cache: DynamicCache | None = None,
    ) -> DynamicCache:
        """The cache of positions before ``first`` of padded prompts.

        Args:
            offsets: where each prompt begins behind its padding on the left.
            cache: an empty one to fill; by default a new one.
        """
        cache = DynamicCache() if cache is None else cache
        # Where the padding is, anything may stand.
        places = (torch.arange(first) - offsets[:, None]).clamp(min=0)
        for layer, pair in enumerate(self.keys_values):
            of_layer = []
            for part in pair:
                row, place = upload(self.rows[:, None], part.device), upload(places, part.device)
                of_layer.append(part.transpose(1, 2)[row, place].transpose(1, 2))
            cache.update(*of_layer, layer)
        return cache


def check_echo_heads(model: HookedModel, heads: HeadSet) -> None:
    """Raise UserError for no heads, of another site, or that do not exist."""
    if heads.site != "attention":
        raise UserError(f"an echo needs heads of site 'attention', not {heads.site!r}")
    if not len(heads):
        raise UserError("an echo needs at least one head")
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    for layer, head in heads:
        if layer >= n_layers or head >= n_heads:
            raise UserError(f"head ({layer}, {head}) does not exist in this model")


def echo_prompt(asked: AskedQuestion, span: Span) -> list[int]:
    """The prompt, and then the question again up to the span's first token."""
    return [*asked.tokens, *asked.tokens[asked.span[0] : span[0]]]


@torch.no_grad()
def echo_log_odds(
    model: HookedModel,
    asked: Sequence[AskedQuestion],
    spans: Sequence[Span],
    *,
    heads: HeadSet,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Float[np.ndarray, "question 2"]:
    """Log-odds of the span's first token when the question is repeated: uncut, and cut.

    Args:
        spans: tokens [start, end) of each prompt, such as a detection's ``token_span``.
        heads: at site ``attention``; in the second run they do not attend to the span.

    Raises:
        UserError: see `check_echo_heads`; a prompt beyond the model's positions.
    """
    check_echo_heads(model, heads)
    found = np.zeros((len(asked), 2))
    lengths = [len(echo_prompt(*each)) for each in zip(asked, spans, strict=True)]
    chunks = by_length(lengths, batch_tokens)

    def run(indices: list[int]) -> Float[Tensor, "question 2"]:
        chosen = [(asked[index], spans[index]) for index in indices]
        return _run_echoes(model, chosen, heads)

    with progress_bar(total=len(asked), description="echoes", shown=progress) as bar:
        for indices, values in halving(chunks, run):
            found[indices] = values.cpu().numpy()
            bar.update(len(indices))
    return found


@torch.no_grad()
def echo_after_reading(
    model: HookedModel,
    asked: Sequence[AskedQuestion],
    spans: Sequence[Span],
    *,
    heads: HeadSet,
    keys_values: KeysValues,
    rows: Sequence[int],
) -> Float[np.ndarray, "question 2"]:
    """`echo_log_odds` of questions that the model has read: only what follows the spans runs.

    The cut heads' attention changes for tokens behind the span only, so that what the model
    computed up to there holds in both runs.

    Args:
        keys_values: of the reading, as `probes.activation_reader.ReadChunk` has them, for each
            question up to its end at least.
        rows: which of the prompts that were read each question is.
    """
    check_echo_heads(model, heads)
    found = np.zeros((len(asked), 2))

    def run(indices: list[int]) -> Float[Tensor, "question 2"]:
        chosen = [(asked[index], spans[index]) for index in indices]
        read = Reading(keys_values, torch.tensor([rows[index] for index in indices]))
        return _run_echoes(model, chosen, heads, read=read)

    for indices, values in halving([list(range(len(asked)))] if asked else [], run):
        found[indices] = values.cpu().numpy()
    return found


def _run_echoes(
    model: HookedModel,
    chosen: Sequence[tuple[AskedQuestion, Span]],
    heads: HeadSet,
    *,
    read: Reading | None = None,
) -> Float[Tensor, "question 2"]:
    """The log-odds of some questions in both echoes."""
    device = device_of(model)
    batch = TokenBatch.from_lists([echo_prompt(*each) for each in chosen], device=device)
    offsets, first = batch.offsets.cpu(), 0
    keys = torch.zeros(batch.mask.shape, dtype=torch.bool)
    for row, (offset, (_, span)) in enumerate(zip(offsets.tolist(), chosen, strict=True)):
        keys[row, offset + span[0] : offset + span[1]] = True
    if read is not None:  # all rows run from the first end of a span on
        first = int((offsets + torch.tensor([span[1] for _, span in chosen])).min())

    def run() -> Float[Tensor, "prompt 1 d_vocab"]:
        cache = None if read is None else read.before(first, offsets)
        return call_positions(
            model.original_model, batch, batch.every_row, start=first, cache=cache
        )

    lowest, streams = min(layer for layer, _ in heads), list[Tensor]()
    skips = lowest > 0 and can_skip_layers(model)
    reading = [(hook_name("resid_post", lowest - 1), lambda stream, hook: streams.append(stream))]
    with hooked(model, reading if skips else []):
        uncut = check_finite(run(), model, run)[:, -1]
    # Below the lowest cut head both echoes are the same.
    skipping = skipping_layers(model, lowest, streams[0]) if skips else nullcontext()
    with skipping, hooked(model, _cut(model, heads, upload(keys, device), start=first)):
        cut = check_finite(run(), model, run)[:, -1]
    tokens = torch.tensor([question.tokens[span[0]] for question, span in chosen])
    return torch.stack([_log_odds(uncut, tokens), _log_odds(cut, tokens)], dim=1)


def _cut(model: HookedModel, heads: HeadSet, keys: Tensor, *, start: int) -> list[Hook]:
    """The hooks that cut these heads' attention to ``keys`` (Bool[prompt pos]).

    They are for runs that begin at position ``start``.
    """
    edit, rows = AttentionEdit(keys), torch.arange(len(keys), device=keys.device)
    chosen: dict[int, Tensor] = {}
    for layer, head in heads:
        of_layer = chosen.setdefault(layer, torch.zeros(len(keys), model.cfg.n_heads).bool())
        of_layer[:, head] = True
    return [
        edit.hook(layer, rows=rows, units=upload(units, keys.device), start=start)
        for layer, units in chosen.items()
    ]


def _log_odds(logits: Float[Tensor, "prompt d_vocab"], tokens: Tensor) -> Float[Tensor, " prompt"]:
    """Log-odds of one token a prompt, in double precision."""
    probability = logits.double().softmax(dim=-1).gather(1, upload(tokens, logits.device)[:, None])
    return probability[:, 0].clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY).logit()
