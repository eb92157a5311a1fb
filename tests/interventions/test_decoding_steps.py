"""Constraints that end after some decoding steps, and constraints of some strength."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.forward.generate import generate_tokens
from interp.forward.partial import hooked
from interp.heads import HeadSet
from interp.interventions import Constraint, ExpertConstraint, Intervention, constrain
from interp.models import HookedModel
from interp.patching import TokenBatch, last_logits
from interp.patching.edits import scale_scores, scores_hook_name
from tests.devices import on_device

HEADS = ((0, 1), (1, 2), (0, 3))
PROMPTS = [[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22, 23], [40, 41, 42, 43, 44, 45]]
SPANS = [(5, 7), (1, 2), (0, 3)]
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 5e-5}
N_STEPS = 6


def cut(steps: int | None = None, mode: Any = "zero", factor: float = 0.0) -> Constraint:
    return Constraint(HeadSet(HEADS, "attention"), mode, factor, steps)


@torch.no_grad()
def stepwise(
    model: Any, constraint: Constraint, prompts: Any = PROMPTS, spans: Any = SPANS, **more: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens with the batch before them, and every step's logits [prompt step d_vocab]."""
    batch = TokenBatch.from_lists(prompts)
    with constrain(model, constraint, at=spans, **more):
        out = model.original_model.generate(
            input_ids=on_device(batch.tokens),
            attention_mask=on_device(batch.mask.long()),
            max_new_tokens=N_STEPS,
            min_new_tokens=N_STEPS,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return out.sequences, torch.stack(out.logits, dim=1)


@torch.no_grad()
def whole_run(model: Any, sequences: torch.Tensor, last_cut: int) -> torch.Tensor:
    """The same logits from one run of the text, its cut written out query by query."""
    batch = TokenBatch.from_lists(PROMPTS)
    where = torch.zeros(len(PROMPTS), sequences.shape[1] - 1, sequences.shape[1] - 1).bool()
    for row, (start, end) in enumerate(SPANS):
        offset = int(batch.offsets[row])
        for query in range(offset + end, batch.width + last_cut):
            where[row, query, offset + start : offset + end] = True

    def of_layer(layer: int) -> Any:
        heads = torch.tensor([(layer, head) in HEADS for head in range(model.cfg.n_heads)])
        there = where[:, None] & heads[None, :, None, None]

        def hook(scores: torch.Tensor, hook: Any) -> torch.Tensor:
            return scores.masked_fill(there.to(scores.device), torch.finfo(scores.dtype).min)

        return scores_hook_name(layer), hook

    ones = torch.ones(len(PROMPTS), N_STEPS - 1, dtype=torch.bool)
    text = TokenBatch(sequences[:, :-1], on_device(torch.cat([batch.mask.cpu(), ones], dim=1)))
    with hooked(model, [of_layer(0), of_layer(1)]):
        return last_logits(model, text, keep=N_STEPS)


@pytest.mark.parametrize("steps", [0, 2])
def test_only_the_first_steps_are_cut(model: HookedModel, steps: int) -> None:
    """Queries of the prompt and of so many generated tokens are cut, later ones are not."""
    sequences, logits = stepwise(model, cut(steps))
    torch.testing.assert_close(logits, whole_run(model, sequences, steps), **CLOSE)
    # The negative control: with one more step cut, the numbers are others.
    other = whole_run(model, sequences, steps + 1)
    assert float((logits - other)[:, : steps + 1].abs().max()) < 5e-5
    assert float((logits - other)[:, steps + 1].abs().max()) > 1e-3


@torch.no_grad()
def test_after_the_prefill_it_is_plain_decoding_from_its_cache(tiny_llama: HookedModel) -> None:
    prompt, hf_model = on_device(torch.tensor([PROMPTS[0]])), tiny_llama.original_model
    with constrain(tiny_llama, cut(), at=SPANS[:1]):
        out = hf_model(input_ids=prompt, use_cache=True)
    by_hand = [out.logits[:, -1]]
    for _ in range(N_STEPS - 1):
        token = by_hand[-1].argmax(dim=-1, keepdim=True)
        out = hf_model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        by_hand.append(out.logits[:, -1])
    _, logits = stepwise(tiny_llama, cut(0), PROMPTS[:1], SPANS[:1])
    torch.testing.assert_close(logits, torch.stack(by_hand, dim=1), **CLOSE)


def test_as_many_steps_as_the_answer_has_are_all(tiny_llama: HookedModel) -> None:
    _, always = stepwise(tiny_llama, cut())
    assert torch.equal(stepwise(tiny_llama, cut(N_STEPS))[1], always)
    assert not torch.equal(stepwise(tiny_llama, cut(0))[1], always)


def test_answers_of_a_batch_equal_one_by_one(tiny_llama: HookedModel) -> None:
    def answers(rows: list[int]) -> list[str]:
        return generate_tokens(
            tiny_llama,
            [PROMPTS[row] for row in rows],
            max_new_tokens=N_STEPS,
            within=lambda chunk, batch: constrain(
                tiny_llama, cut(1), at=[SPANS[rows[index]] for index in chunk]
            ),
            progress=False,
        )

    assert answers([0, 1, 2]) == [answers([row])[0] for row in range(3)]


def test_scores_are_scaled_row_by_row() -> None:
    """By hand: weights 2:1:1, the first times 0, a half and one."""
    scores = torch.tensor([2.0, 1.0, 1.0]).log().expand(3, 3).clone()
    where = torch.tensor([True, False, False]).expand(3, 3)
    factor = torch.tensor([[0.0], [0.5], [1.0]])
    weights = scale_scores(scores, where, factor).softmax(dim=-1)
    wanted = [[0, 1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 4, 1 / 4]]
    torch.testing.assert_close(weights, torch.tensor(wanted))


@pytest.mark.parametrize("site", ["attention", "output"])
def test_a_strength_is_a_factor_of_its_own_for_each_prompt(
    tiny_llama: HookedModel, site: Any
) -> None:
    """Of mode zero, strength s is a factor of 1 - s; in one batch, as in one run for each."""
    heads = HeadSet(HEADS, site)
    _, together = stepwise(tiny_llama, Constraint(heads), strengths=[0.0, 0.25, 1.0])
    for row, factor in enumerate((1.0, 0.75, 0.0)):
        _, alone = stepwise(tiny_llama, Constraint(heads, "scale", factor))
        torch.testing.assert_close(together[row], alone[row], **CLOSE)
    _, free = stepwise(tiny_llama, Constraint(HeadSet((), site)))
    torch.testing.assert_close(together[0], free[0], **CLOSE)
    assert float((together[2] - free[2]).abs().max()) > 1e-3
    # Of mode scale it goes that far towards the factor: 1 - 0.5 (1 - 0.5).
    _, half = stepwise(tiny_llama, Constraint(heads, "scale", 0.5), strengths=[0.5] * 3)
    _, wanted = stepwise(tiny_llama, Constraint(heads, "scale", 0.75))
    torch.testing.assert_close(half, wanted, **CLOSE)


def test_strengths_go_with_copies_of_prompts(tiny_llama: HookedModel) -> None:
    """``generate`` runs a prompt several times for several returned answers."""
    twice = TokenBatch.from_lists([PROMPTS[0], PROMPTS[0]])
    with constrain(tiny_llama, cut(), at=SPANS[:1], strengths=[0.25]):
        both = last_logits(tiny_llama, twice)
    with constrain(tiny_llama, cut(None, "scale", 0.75), at=SPANS[:1]):
        alone = last_logits(tiny_llama, TokenBatch.from_lists(PROMPTS[:1]))
    torch.testing.assert_close(both, alone.expand_as(both), **CLOSE)


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ([0.5, 1.5, 1.0], "a strength lies between 0 and 1, not 1.5"),
        ([float("nan"), 1.0, 1.0], "a strength is a finite number"),
        ([0.5, 0.5], "2 strengths for 3 prompts"),
        ([], "0 strengths for 3 prompts"),
    ],
)
def test_wrong_strengths_are_told(tiny_llama: HookedModel, strengths: Any, message: str) -> None:
    with (
        pytest.raises(UserError, match=message),
        constrain(tiny_llama, cut(), at=SPANS, strengths=strengths),
    ):
        last_logits(tiny_llama, TokenBatch.from_lists(PROMPTS))


def test_wrong_steps_are_told(tiny_llama: HookedModel) -> None:
    with pytest.raises(UserError, match="decoding_steps is at least 0, not -1"):
        cut(-1)
    with pytest.raises(UserError, match="site 'output' acts in the prefill only"):
        Constraint(HeadSet(HEADS, "output"), decoding_steps=2)
    with pytest.raises(UserError, match="decoding_steps is part of a Constraint"):
        Intervention.of(cut(), decoding_steps=2)
    with pytest.raises(UserError, match="mode and factor are part of a Constraint"):
        Intervention.of(cut(), mode="scale", factor=0.5)
    expert = ExpertConstraint([(0, "attn.q", 0)], "off")
    with pytest.raises(UserError, match="gate 'soft' is for heads"):
        _ = Intervention.of(cut(), gate="soft") | expert


def test_steps_belong_to_the_constraint() -> None:
    assert cut(4).name == "attention, zero, 4 decoding steps, 3 heads"
    assert cut(1, "scale", 0.5).rows()[0]["action"] == "scale 0.5, 1 decoding step"
    assert cut(4).with_heads(HeadSet(((2, 0),), "attention")).decoding_steps == 4
    assert Intervention.of(cut(4)) != Intervention.of(cut()) == Intervention.of(cut(None))
    other = Intervention.of([(2, 0)], "attention", decoding_steps=4)
    assert len((other | cut(4)).heads) == 1
    assert len((other | cut()).heads) == 2
