"""Side effects of a constraint on text without a false premise.

At known positions, or with a detector that does not fire, a constraint never acts on other text.
This measures the harm of acting where there is nothing to correct: in every sentence of a small
neutral text the constraint is applied to one content word (the longest in the sentence's first
half), and the later positions are compared with the unconstrained run.

* ``neutral_kl``: mean KL(unconstrained ‖ constrained) per later token, in nats;
* ``neutral_perplexity_ratio``: perplexity of the later tokens, constrained over unconstrained.
"""

import math
import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import check_batch, device_of, finite_logits
from interp.interventions.context import constrain
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.models.hooked_model import HookedModel
from interp.models.spans import tokenize_with_offsets
from interp.precision import widened
from interp.premises.encode import token_span
from interp.premises.registry import data_dir

PART_LOGITS = 2**25
"""Logits of a run in memory at once: later tokens times vocabulary."""


@dataclass(frozen=True)
class SideEffects(Displayed):
    """Cost on ``n`` neutral sentences."""

    neutral_kl: float
    neutral_perplexity_ratio: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """The fields, as evaluation.json holds them."""
        return dict(vars(self))

    def _shown(self) -> Shown:
        words = (
            f"On {self.n} neutral sentences: KL {self.neutral_kl:.3g} nats a token, perplexity "
            f"times {self.neutral_perplexity_ratio:.4g}."
        )
        return Shown(words)


@checked
def neutral_sentences() -> tuple[str, ...]:
    """The neutral text that ships with the package, a sentence a line."""
    text = (data_dir() / "neutral.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def content_span(sentence: str) -> tuple[int, int]:
    """Characters [start, end) of the longest word in the first half of a sentence."""
    words = list(re.finditer(r"\w+", sentence))
    half = words[1 : max(2, len(words) // 2)] or words
    longest = max(half, key=lambda match: len(match.group()))
    return longest.span()


@checked
@torch.no_grad()
def side_effects(
    model: HookedModel,
    constraint: Constraint | Intervention,
    *,
    sentences: tuple[str, ...] | None = None,
    mean: Float[Tensor, "layer head d_head"] | None = None,
    everywhere: bool = False,
) -> SideEffects:
    """Measure the constraint's cost on neutral sentences.

    Args:
        everywhere: constrain every token of a sentence, and compare the same later positions.
    """
    sentences = neutral_sentences() if sentences is None else sentences
    prompts, spans = [], []
    for sentence in sentences:
        encoding = tokenize_with_offsets(model.tokenizer, sentence)
        prompts.append(list(encoding["input_ids"]))
        spans.append(token_span(encoding["offset_mapping"], sentence, content_span(sentence)))
    batch = TokenBatch.from_lists(prompts, device=device_of(model))
    check_batch(model, batch)

    def sums(part: TokenBatch, rows: range) -> Float[Tensor, " sum"]:
        at = spans[rows.start : rows.stop]
        begins = [offset + end for offset, (_, end) in zip(part.offsets.tolist(), at, strict=True)]
        first = min(begins)
        total = torch.zeros(5, dtype=torch.float64, device=part.tokens.device)
        if first >= part.width:
            return total
        free = finite_logits(model, part, keep=part.width - first)
        where = [(0, part.width - offset) for offset in part.offsets.tolist()] if everywhere else at
        with constrain(model, constraint, at=where, mean=mean):
            constrained = finite_logits(model, part, keep=part.width - first)
        for row, begin in enumerate(begins):
            later, following = slice(begin - first, -1), part.tokens[row, begin + 1 :]
            sums = _sums(free[row, later], constrained[row, later], following)
            total = total + torch.cat([sums, (sums[3:] > 0).to(sums)]).to(total)
        return total

    tokens = max(1, PART_LOGITS // model.cfg.d_vocab)
    total = torch.stack(list(over_parts(batch, sums, batch_tokens=tokens))).sum(dim=0)
    if total[3] == 0:
        raise UserError(
            "no neutral sentence has two tokens behind its constrained words: give longer ones"
        )
    kl, surprisal, constrained = (total[:3] / total[3]).tolist()
    return SideEffects(kl, math.exp(constrained - surprisal), int(total[4]))


def _sums(
    free: Float[Tensor, "pos d_vocab"], constrained: Float[Tensor, "pos d_vocab"], following: Tensor
) -> Float[Tensor, " sum"]:
    """Over the positions: KL, both runs' surprisal at the following tokens, and their number."""
    p, q = widened(free).log_softmax(-1), widened(constrained).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(dim=-1)
    surprisals = [-logs.gather(1, following[:, None]) for logs in (p, q)]
    sums = [values.sum(dtype=torch.float64) for values in (kl, *surprisals)]
    return torch.stack([*sums, torch.full_like(sums[0], len(following))])
