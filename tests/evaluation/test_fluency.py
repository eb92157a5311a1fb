"""Mean log-probabilities of answers, beside a slow reference."""

from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.evaluation.fluency import answer_log_probabilities
from interp.forward.partial import last_logits
from interp.models import HookedModel
from interp.patching import TokenBatch
from interp.premises import Premises
from interp.premises.encode import encode_questions

ANSWERS = ["land3 it is", "", "the capital of land1 is city1", "land2"]


def by_hand(model: Any, prompt: Any, answer: str) -> float:
    """One token after the other, each from a whole run of what comes before it."""
    tokens, total = list(prompt.tokens), 0.0
    ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
    for token in ids:
        logits = last_logits(model, TokenBatch.from_lists([tokens]))[0, -1]
        total += float(logits.double().softmax(dim=-1)[token].log())
        tokens.append(token)
    return total / len(ids)


@torch.no_grad()
def test_each_answer_after_its_own_question(
    planted: HookedModel, planted_premises: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = encode_questions(planted.tokenizer, planted_premises, "twin")[:4]
    found = answer_log_probabilities(planted, prompts, ANSWERS)
    wanted = [
        by_hand(planted, prompt, answer) if answer else float("nan")
        for prompt, answer in zip(prompts, ANSWERS, strict=True)
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (found[[0, 2, 3]] < 0).all()
    # The same in passes of one answer each.
    monkeypatch.setattr("interp.evaluation.fluency.PART_LOGITS", 1)
    np.testing.assert_allclose(
        answer_log_probabilities(planted, prompts, ANSWERS), found, atol=1e-5
    )
    assert np.isnan(answer_log_probabilities(planted, prompts[:1], [""])).all()
    with pytest.raises(UserError, match="3 answers for 4 prompts"):
        answer_log_probabilities(planted, prompts, ANSWERS[:3])
