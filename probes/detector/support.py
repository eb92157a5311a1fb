"""How far the earlier words of a premise support the later ones.

A premise joins two entities. If it is true and the model knows it, the one that is read first makes
the other more likely: "Paris" makes "France" likely in "Why is Paris the capital of France?". If it
is false, the first speaks for something else, and makes the other less likely. The *support* is the
logarithm of that ratio, the pointwise mutual information of both given the rest of the question:
the log-probability of the later words, less theirs where the earlier words are left out. How likely
the later words are in such a sentence, whatever it is about, falls out of the difference, so that
the support means the same in every relation, and is trained on none.
"""

from collections.abc import Callable, Sequence
from itertools import starmap

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


ReadWithout = Callable[[Sequence[AskedQuestion], Sequence[Pair]], Float[np.ndarray, " question"]]
"""From questions and their pairs to `log_probability_without`."""


def without_earlier(asked: AskedQuestion, pair: Pair) -> list[int]:
    """The prompt up to the end of the later words, without the earlier ones."""
    return [*asked.tokens[: pair.earlier[0]], *asked.tokens[pair.earlier[1] : pair.later[1]]]


def supports(
    scores: Sequence[TokenScores],
    asked: Sequence[AskedQuestion],
    pairs: Sequence[Pair],
    without: Float[np.ndarray, " question"],
) -> Float[np.ndarray, " question"]:
    """The support in each question, in nats.

    Args:
        scores: of each question's tokens, with what the model expected.
        without: the log-probability of the later words without the earlier ones.
    """
    found = np.zeros(len(asked))
    for row, (of_tokens, question, pair) in enumerate(zip(scores, asked, pairs, strict=True)):
        assert of_tokens.log_probability is not None
        start, end = (at - question.span[0] for at in pair.later)
        found[row] = of_tokens.log_probability[start:end].sum()
    return np.clip(found - without, -MOST_SUPPORT, MOST_SUPPORT)


@torch.no_grad()
def log_probability_without(
    model: HookedModel,
    asked: Sequence[AskedQuestion],
    pairs: Sequence[Pair],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Float[np.ndarray, " question"]:
    """The log-probability of each question's later words where the earlier ones are left out.

    Raises UserError for a prompt beyond the model's positions.
    """
    found = np.zeros(len(asked))
    chosen = list(zip(asked, pairs, strict=True))
    chunks = by_length([len(prompt) for prompt in starmap(without_earlier, chosen)], batch_tokens)

    def run(indices: list[int]) -> Float[Tensor, " question"]:
        return _log_probabilities(model, [chosen[index] for index in indices])

    with progress_bar(total=len(asked), description="supports", shown=progress) as bar:
        for indices, values in halving(chunks, run):
            found[indices] = values.cpu().numpy()
            bar.update(len(indices))
    return found


@torch.no_grad()
def log_probability_after_reading(
    model: HookedModel,
    asked: Sequence[AskedQuestion],
    pairs: Sequence[Pair],
    *,
    keys_values: KeysValues,
    rows: Sequence[int],
) -> Float[np.ndarray, " question"]:
    """`log_probability_without` of questions that the model has read.

    Only what follows the earlier words runs, up to the later ones: before them nothing changes.

    Args:
        keys_values: of the reading, as `probes.activation_reader.ReadChunk` has them.
        rows: which of the prompts that were read each question is.
    """
    found = np.zeros(len(asked))
    chosen = list(zip(asked, pairs, strict=True))

    def run(indices: list[int]) -> Float[Tensor, " question"]:
        read = Reading(keys_values, torch.tensor([rows[index] for index in indices]))
        return _log_probabilities(model, [chosen[index] for index in indices], read=read)

    for indices, values in halving([list(range(len(asked)))] if asked else [], run):
        found[indices] = values.cpu().numpy()
    return found


def _log_probabilities(
    model: HookedModel,
    chosen: Sequence[tuple[AskedQuestion, Pair]],
    *,
    read: Reading | None = None,
) -> Float[Tensor, " question"]:
    """Of the later words of some questions, without the earlier ones."""
    device = device_of(model)
    prompts = list(starmap(without_earlier, chosen))
    batch = TokenBatch.from_lists([prompt[:-1] for prompt in prompts], device=device)
    offsets, first = batch.offsets.cpu(), 0
    sizes = [pair.later[1] - pair.later[0] for _, pair in chosen]
    if read is not None:  # all rows run from the first of the earlier words' places on
        begins = torch.tensor([pair.earlier[0] for _, pair in chosen])
        # The later words are predicted from the token before them, which must run.
        first = min(int((offsets + begins).min()), batch.width - max(sizes))
    keep = max(sizes)

    def run() -> Float[Tensor, "prompt keep d_vocab"]:
        cache = None if read is None or not first else read.before(first, offsets)
        return call_positions(
            model.original_model, batch, batch.every_row, start=first, cache=cache, keep=keep
        )

    logits = check_finite(run(), model, run).double()
    wanted = torch.tensor([[0] * (keep - n) + p[-n:] for n, p in zip(sizes, prompts, strict=True)])
    of_tokens = logits.log_softmax(-1).gather(-1, upload(wanted, logits.device)[..., None])[..., 0]
    counted = torch.arange(keep) >= keep - torch.tensor(sizes)[:, None]
    return (of_tokens * upload(counted, logits.device)).sum(dim=1)
