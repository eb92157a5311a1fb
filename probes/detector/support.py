"""How far the earlier words of a premise support the later ones.

A premise joins two entities. If it is true and the model knows it, the one that is read first makes
the other more likely: "Paris" makes "France" likely in "Why is Paris the capital of France?". If it
is false, the first speaks for something else, and makes the other less likely. The *support* is the
logarithm of that ratio, the pointwise mutual information of both given the rest of the question:
the log-probability of the later words, less theirs where the earlier words are left out. How likely
the later words are in such a sentence, whatever it is about, falls out of the difference, so that
the support means the same in every relation, and is trained on none.

A low support says little where the earlier words, as far as the model knows, speak for nothing. So
it stands beside the *best support*: the highest that any of the likeliest tokens gets in the place
of the first later one.
"""

from collections.abc import Callable, Sequence
from itertools import starmap
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.forward.batch import TokenBatch, by_length
from interp.forward.finite import check_finite
from interp.forward.out_of_memory import halving
from interp.forward.prompts import call_positions, device_of
from interp.forward.transfer import upload
from interp.models.hooked_model import HookedModel
from interp.progress import progress_bar
from probes.activation_reader import DEFAULT_BATCH_TOKENS, KeysValues
from probes.detector.pair import Pair
from probes.detector.questions import AskedQuestion
from probes.detector.reading import Reading
from probes.detector.scored import TokenScores

MOST_SUPPORT = 3.0
"""In nats; supports beyond it count as this much, so that long and rare names do not outweigh
everything."""
MOST_BEST = 5.0
"""As `MOST_SUPPORT`, for the best support."""
LIKELIEST = 20
"""Tokens of which the best support is taken."""


class Contrast(NamedTuple):
    """What it changes in some questions that their earlier words are left out.

    Attributes:
        without: log-probability of the later words without the earlier ones.
        best: the highest support of the `LIKELIEST` tokens in the place of the first later one.
    """

    without: Float[np.ndarray, " question"]
    best: Float[np.ndarray, " question"]

    def rows(self) -> list[tuple[float, float]]:
        """Both numbers, question by question."""
        return list(zip(self.without.tolist(), self.best.tolist(), strict=True))


ReadContrast = Callable[[Sequence[AskedQuestion], Sequence[Pair]], Contrast]
"""From questions and their pairs to `contrast`."""


def without_earlier(asked: AskedQuestion, pair: Pair) -> list[int]:
    """The prompt up to the end of the later words, without the earlier ones."""
    return [*asked.tokens[: pair.earlier[0]], *asked.tokens[pair.earlier[1] : pair.later[1]]]


def supports(
    scores: Sequence[TokenScores],
    asked: Sequence[AskedQuestion],
    pairs: Sequence[Pair],
    read: Contrast,
) -> Float[np.ndarray, "question 2"]:
    """The support in each question and the best support, in nats.

    Args:
        scores: of each question's tokens, with what the model expected.
        read: what it changes that the earlier words are left out.
    """
    found = np.zeros(len(asked))
    for row, (of_tokens, question, pair) in enumerate(zip(scores, asked, pairs, strict=True)):
        assert of_tokens.log_probability is not None
        start, end = (at - question.span[0] for at in pair.later)
        found[row] = of_tokens.log_probability[start:end].sum()
    support = np.clip(found - read.without, -MOST_SUPPORT, MOST_SUPPORT)
    return np.column_stack([support, np.minimum(read.best, MOST_BEST)])


@torch.no_grad()
def contrast(
    model: HookedModel,
    asked: Sequence[AskedQuestion],
    pairs: Sequence[Pair],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Contrast:
    """What it changes in each question that the earlier words are left out.

    Raises UserError for a prompt beyond the model's positions.
    """
    found = np.zeros((len(asked), 2))
    chosen = list(zip(asked, pairs, strict=True))
    chunks = by_length([pair.later[1] for pair in pairs], batch_tokens)

    def run(indices: list[int]) -> Float[Tensor, "question 2"]:
        return _contrasts(model, [chosen[index] for index in indices])

    with progress_bar(total=len(asked), description="supports", shown=progress) as bar:
        for indices, values in halving(chunks, run):
            found[indices] = values.cpu().numpy()
            bar.update(len(indices))
    return Contrast(*found.T)


@torch.no_grad()
def contrast_after_reading(
    model: HookedModel,
    asked: Sequence[AskedQuestion],
    pairs: Sequence[Pair],
    *,
    keys_values: KeysValues,
    rows: Sequence[int],
) -> Contrast:
    """`contrast` in questions that the model has read.

    Only what follows the earlier words runs without them, up to the later ones; and once more the
    token in front of the later words.

    Args:
        keys_values: of the reading, as `probes.activation_reader.ReadChunk` has them.
        rows: which of the prompts that were read each question is.
    """
    found = np.zeros((len(asked), 2))
    chosen = list(zip(asked, pairs, strict=True))

    def run(indices: list[int]) -> Float[Tensor, "question 2"]:
        read = Reading(keys_values, torch.tensor([rows[index] for index in indices]))
        return _contrasts(model, [chosen[index] for index in indices], read=read)

    for indices, values in halving([list(range(len(asked)))] if asked else [], run):
        found[indices] = values.cpu().numpy()
    return Contrast(*found.T)


def _contrasts(
    model: HookedModel,
    chosen: Sequence[tuple[AskedQuestion, Pair]],
    *,
    read: Reading | None = None,
) -> Float[Tensor, "question 2"]:
    """`Contrast`'s numbers for some questions."""
    sizes = [pair.later[1] - pair.later[0] for _, pair in chosen]
    keep, prompts = max(sizes), list(starmap(without_earlier, chosen))
    begins = [pair.earlier[0] for _, pair in chosen]
    without = _log_probabilities(
        model, [prompt[:-1] for prompt in prompts], begins, keep=keep, read=read
    )
    wanted = torch.tensor([[0] * (keep - n) + p[-n:] for n, p in zip(sizes, prompts, strict=True)])
    of_tokens = without.gather(-1, upload(wanted, without.device)[..., None])[..., 0]
    counted = torch.arange(keep) >= keep - torch.tensor(sizes)[:, None]
    summed = (of_tokens * upload(counted, without.device)).sum(dim=1)
    whole = _log_probabilities(
        model,
        [asked.tokens[: pair.later[0]] for asked, pair in chosen],
        [pair.later[0] - 1 for _, pair in chosen],
        keep=1,
        read=read,
    )[:, 0]
    likeliest = whole.topk(min(LIKELIEST, whole.shape[-1])).indices
    rows = torch.arange(len(chosen), device=without.device)
    first = without[rows, upload(keep - torch.tensor(sizes), without.device)]
    gains = whole.gather(-1, likeliest) - first.gather(-1, likeliest)
    return torch.stack([summed, gains.amax(dim=-1)], dim=1)


def _log_probabilities(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    begins: Sequence[int],
    *,
    keep: int,
    read: Reading | None,
) -> Float[Tensor, "prompt keep d_vocab"]:
    """Of the next token, at the last ``keep`` positions of some prompts.

    Args:
        begins: from where each differs from what was read.
    """
    device = device_of(model)
    batch = TokenBatch.from_lists(prompts, device=device)
    offsets, first = batch.offsets.cpu(), 0
    if read is not None:  # all rows run from the first place on where one of them differs
        first = min(int((offsets + torch.tensor(begins)).min()), batch.width - keep)

    def run() -> Float[Tensor, "prompt keep d_vocab"]:
        cache = None if read is None or not first else read.before(first, offsets)
        return call_positions(
            model.original_model, batch, batch.every_row, start=first, cache=cache, keep=keep
        )

    return check_finite(run(), model, run).double().log_softmax(-1)
