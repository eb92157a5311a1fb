"""The echo: does the model still name an object when the located heads cannot read it?

After the question, the answer begins by repeating it up to the candidate words: "Why is Paris the
capital of". The model continues either with what it knows of the subject or with the words that it
reads in the question. With the attention of the located heads to those words cut, a known object
keeps its probability, and one that was only copied loses it. Nothing of this is trained on a
relation, so it carries over to relations that no probe has seen.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import Span, TokenBatch, by_length
from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, finite_logits, hooked
from interp.forward.prompts import check_limits
from interp.forward.prompts import device_of as device_of
from interp.forward.transfer import upload
from interp.heads.headset import HeadSet
from interp.models.hooked_model import HookedModel
from interp.patching.edits import AttentionEdit
from interp.progress import progress_bar
from probes.activation_reader import DEFAULT_BATCH_TOKENS
from probes.detector.questions import AskedQuestion

LEAST_PROBABILITY = 1e-4
"""Probabilities are kept this far from 0 and 1: below it, log-odds are noise."""


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
    prompts = [echo_prompt(question, span) for question, span in zip(asked, spans, strict=True)]
    found = np.zeros((len(prompts), 2))

    def run(indices: list[int]) -> Float[Tensor, "question 2"]:
        batch = TokenBatch.from_lists(
            [prompts[index] for index in indices], device=device_of(model)
        )
        check_limits(model.original_model, batch)
        keys = torch.zeros(batch.mask.shape, dtype=torch.bool)
        for row, (index, offset) in enumerate(zip(indices, batch.offsets.tolist(), strict=True)):
            start, end = spans[index]
            keys[row, offset + start : offset + end] = True
        tokens = torch.tensor([asked[index].tokens[spans[index][0]] for index in indices])
        hooks = _cut(model, heads, upload(keys, device_of(model)))
        uncut = _log_odds(finite_logits(model, batch)[:, -1], tokens)
        with hooked(model, hooks):
            return torch.stack([uncut, _log_odds(finite_logits(model, batch)[:, -1], tokens)], 1)

    chunks = by_length([len(prompt) for prompt in prompts], batch_tokens)
    with progress_bar(total=len(prompts), description="echoes", shown=progress) as bar:
        for indices, values in halving(chunks, run):
            found[indices] = values.cpu().numpy()
            bar.update(len(indices))
    return found


def _cut(model: HookedModel, heads: HeadSet, keys: Tensor) -> list[Hook]:
    """The hooks that cut these heads' attention to ``keys`` (Bool[prompt pos]) in whole runs."""
    edit, rows = AttentionEdit(keys), torch.arange(len(keys), device=keys.device)
    chosen: dict[int, Tensor] = {}
    for layer, head in heads:
        of_layer = chosen.setdefault(layer, torch.zeros(len(keys), model.cfg.n_heads).bool())
        of_layer[:, head] = True
    return [
        edit.hook(layer, rows=rows, units=upload(units, keys.device), start=0)
        for layer, units in chosen.items()
    ]


def _log_odds(logits: Float[Tensor, "prompt d_vocab"], tokens: Tensor) -> Float[Tensor, " prompt"]:
    """Log-odds of one token a prompt, in double precision."""
    probability = logits.double().softmax(dim=-1).gather(1, upload(tokens, logits.device)[:, None])
    return probability[:, 0].clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY).logit()
