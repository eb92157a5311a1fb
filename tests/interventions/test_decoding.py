"""Under a constraint, decoding with the cache is what running the whole text again is."""

from typing import Any

import pytest
import torch

from interp.forward.generate import generate_tokens
from interp.interventions import Constraint, constrain
from interp.models import HookedModel
from interp.patching import TokenBatch, last_logits
from interp.premises import Premises
from interp.premises.encode import encode_premises
from tests.interventions.settings import CLOSE, SETTINGS, constraint


@torch.no_grad()
def decode_with_cache(model: Any, batch: TokenBatch, steps: int) -> torch.Tensor:
    ids = model.original_model.generate(
        input_ids=batch.tokens,
        attention_mask=batch.mask.long(),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        pad_token_id=0,
    )
    return ids[:, batch.width :]


def decode_without_cache(model: Any, batch: TokenBatch, steps: int) -> torch.Tensor:
    """Greedy continuation; every step runs the whole text again."""
    tokens, mask = batch.tokens, batch.mask
    for _ in range(steps):
        logits = last_logits(model, TokenBatch(tokens, mask))[:, -1]
        tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return tokens[:, batch.width :]


@torch.no_grad()
def steps_and_whole(model: Any, batch: TokenBatch, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each decoding step's logits with the cache, and the same read from one whole run."""
    out = model.original_model.generate(
        input_ids=batch.tokens,
        attention_mask=batch.mask.long(),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ones = torch.ones(len(batch), steps - 1, dtype=torch.bool)
    text = TokenBatch(out.sequences[:, :-1], torch.cat([batch.mask, ones], dim=1))
    return torch.stack(out.logits, dim=1), last_logits(model, text, keep=steps)


@pytest.mark.parametrize(("site", "mode", "factor"), SETTINGS)
def test_decoding_with_the_cache_equals_running_everything_again(
    model: HookedModel, premises: Premises, site: str, mode: str, factor: float
) -> None:
    encoded = encode_premises(model.tokenizer, premises.first(2))
    batch = encoded.batch("false")
    with constrain(model, constraint(site, mode, factor), premises=encoded):
        held = decode_with_cache(model, batch, 3)
        assert torch.equal(held, decode_without_cache(model, batch, 3))


@pytest.mark.parametrize(("site", "mode", "factor"), [SETTINGS[2], SETTINGS[3], SETTINGS[5]])
def test_every_decoding_steps_logits_equal_the_whole_run(
    model: HookedModel, premises: Premises, site: str, mode: str, factor: float
) -> None:
    """Tokens may agree by luck; logits do not."""
    encoded = encode_premises(model.tokenizer, premises.first(2))
    with constrain(model, constraint(site, mode, factor), premises=encoded):
        stepwise, whole = steps_and_whole(model, encoded.batch("false"), 4)
    torch.testing.assert_close(stepwise, whole, **CLOSE)


def test_an_object_slides_out_of_the_window_while_decoding(sliding: HookedModel) -> None:
    """It is inside the window of six at first and outside it later."""
    batch = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31], [20, 21, 22, 23]])
    with constrain(sliding, constraint("attention"), at=[(2, 4), (1, 2)]):
        stepwise, whole = steps_and_whole(sliding, batch, 9)
    torch.testing.assert_close(stepwise, whole, **CLOSE)
    free, _ = steps_and_whole(sliding, batch, 1)
    assert float((free - stepwise[:, :1]).abs().max()) > 1e-2


def test_generated_answers_of_a_batch_equal_one_by_one(model: HookedModel) -> None:
    prompts = [[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22, 23], [40, 41, 42, 43, 44, 45]]
    spans = [(5, 7), (1, 2), (0, 3)]

    def answers(one: Constraint, some: list[int], batch_prompts: int) -> list[str]:
        return generate_tokens(
            model,
            [prompts[index] for index in some],
            max_new_tokens=3,
            batch_prompts=batch_prompts,
            within=lambda chunk, batch: constrain(
                model, one, at=[spans[some[index]] for index in chunk]
            ),
            progress=False,
        )

    free = generate_tokens(model, prompts, max_new_tokens=3, progress=False)
    for site in ("output", "attention"):
        every = [(layer, head) for layer in range(2) for head in range(4)]
        one = constraint(site, "zero", heads=tuple(every))
        together = answers(one, [0, 1, 2], 32)
        assert together == [answers(one, [index], 1)[0] for index in range(3)]
        last, *others = answers(one, [2, 0, 1], 2)
        assert together == [*others, last]
        assert together != free
