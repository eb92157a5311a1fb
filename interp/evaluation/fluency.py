"""How likely answers are: their mean log-probability per token, by the unconstrained model.

A constraint can push a model off its own language. An answer that was made under one is read by the
model without it, after a question of one's choice, such as the true-premise twin.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import last_logits
from interp.forward.prompts import device_of
from interp.models.hooked_model import HookedModel
from interp.premises.encode import EncodedPrompt

PART_LOGITS = 40_000_000
"""Logits that one pass may make."""


@checked
@torch.no_grad()
def answer_log_probabilities(
    model: HookedModel, prompts: Sequence[EncodedPrompt], answers: Sequence[str]
) -> Float[np.ndarray, " answer"]:
    """Mean log-probability per token, in nats, of each answer after its prompt.

    The answer is tokenized by itself, and its end token is not counted, since it may have been cut
    short. NaN for an answer without tokens.

    Raises:
        UserError: another number of answers than prompts.
    """
    if len(prompts) != len(answers):
        raise UserError(f"{len(answers)} answers for {len(prompts)} prompts: give one for each")
    tokens = [
        list(model.tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers
    ]
    found = np.full(len(answers), np.nan)
    rows = [row for row, ids in enumerate(tokens) if ids]
    if not rows:
        return found
    whole = [[*prompts[row].tokens, *tokens[row]] for row in rows]
    batch = TokenBatch.from_lists(whole, device=device_of(model))

    def measured(part: TokenBatch, at: range) -> torch.Tensor:
        lengths = [len(tokens[row]) for row in rows[at.start : at.stop]]
        logits = last_logits(model, part, keep=max(lengths) + 1)
        means = []
        for row, length in enumerate(lengths):  # prompts are padded on the left
            logs = logits[row, -length - 1 : -1].float().log_softmax(dim=-1)
            means.append(logs.gather(1, part.tokens[row, -length:, None]).mean())
        return torch.stack(means)

    size = max(1, PART_LOGITS // model.cfg.d_vocab)
    found[rows] = torch.cat(list(over_parts(batch, measured, batch_tokens=size))).cpu().numpy()
    return found
