"""What the constraint does to text that has no false premise in it.

With known places, or a detector that does not fire, the constraint never acts on other text, and
its cost there is zero. What is measured is the harm of acting where there is nothing to correct: in
every sentence of a small neutral text the constraint is applied to one content word (the longest of
the sentence's first half), and the later positions are compared with the unconstrained run.

* ``neutral_kl``: mean KL(unconstrained ‖ constrained) per later token, in nats;
* ``neutral_perplexity_ratio``: perplexity of the later tokens, constrained over unconstrained.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.interventions.constrain import constrain
from interp.interventions.constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.patching.batch import TokenBatch
from interp.patching.forward import device_of, tail_logits
from interp.premises.encode import token_span
from interp.premises.registry import data_dir


@dataclass(frozen=True)
class SideEffects(Displayed):
    """Cost on neutral text; see the module's text. ``n`` sentences."""

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
    model: Any,
    constraint: Constraint | Intervention,
    *,
    sentences: tuple[str, ...] | None = None,
    mean: Float[Tensor, "layer head d_head"] | None = None,
) -> SideEffects:
    """Measure the constraint's cost on neutral sentences."""
    sentences = neutral_sentences() if sentences is None else sentences
    prompts, spans = [], []
    for sentence in sentences:
        encoding = model.tokenizer(sentence, return_offsets_mapping=True)
        prompts.append(list(encoding["input_ids"]))
        spans.append(token_span(encoding["offset_mapping"], sentence, *content_span(sentence)))
    batch = TokenBatch.from_lists(prompts, device=device_of(model))
    free = tail_logits(model, batch, keep=batch.width).float().log_softmax(-1)
    with constrain(model, constraint, at=spans, mean=mean):
        held = tail_logits(model, batch, keep=batch.width).float().log_softmax(-1)
    ends = torch.tensor([end for _, end in spans], device=batch.tokens.device) + batch.offsets
    columns = torch.arange(batch.width, device=batch.tokens.device)
    later = columns[None, :-1] >= ends[:, None]
    kl = (free.exp() * (free - held)).sum(dim=-1)[:, :-1][later].mean()
    following = batch.tokens[:, 1:, None]
    loss = [-run[:, :-1].gather(2, following)[..., 0][later].mean() for run in (free, held)]
    return SideEffects(float(kl), float((loss[1] - loss[0]).exp()), len(sentences))
