"""Where a constraint acts: spans, masks, callables, premises."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.heads import HeadSet
from interp.interventions import Constraint, constrain, positions_at
from interp.interventions.object_positions import positions_in_premises
from interp.models import HookedModel
from interp.patching import TokenBatch, last_logits
from interp.premises import Premises, load_premises
from interp.premises.encode import encode_premises

HEADS = ((0, 1), (1, 2), (0, 3))
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 5e-5}


def constraint(
    site: Any, mode: Any = "zero", factor: float = 0.0, heads: Any = HEADS
) -> Constraint:
    return Constraint(HeadSet(heads, site), mode, factor)


@torch.no_grad()
def test_premises_are_found_in_any_order_and_part(model: HookedModel, premises: Premises) -> None:
    encoded = encode_premises(model.tokenizer, premises)
    order = [7, 2, 4, 0]
    with constrain(model, constraint("output"), premises=premises):
        all_of_them = last_logits(model, encoded.batch("false"))[:, -1]
        some = last_logits(model, encoded.take(order).batch("false"))[:, -1]
        # A prompt that goes on differently after the object is still that prompt.
        longer = [(*encoded.items[index].false.tokens, 5, 6) for index in order]
        last_logits(model, TokenBatch.from_lists(longer))
    torch.testing.assert_close(some, all_of_them[order], **CLOSE)


@torch.no_grad()
def test_a_prompt_that_is_not_among_the_premises_is_told(
    tiny_llama: HookedModel, premises: Premises
) -> None:
    others = load_premises("capitals", limit=9)
    encoded = encode_premises(tiny_llama.tokenizer, others)
    with (
        pytest.raises(UserError, match="prompt 0 of the batch is not one of the premises"),
        constrain(tiny_llama, constraint("output"), premises=premises),
    ):
        last_logits(tiny_llama, encoded.take([-1]).batch("false"))


@torch.no_grad()
def test_a_mask_or_a_callable_says_where(model: HookedModel) -> None:
    prompts, spans = [[5, 9, 7, 8, 30, 31], [20, 21, 22, 23]], [(2, 4), (1, 2)]
    batch = TokenBatch.from_lists(prompts)
    for site in ("output", "attention"):
        one = constraint(site)
        with constrain(model, one, at=spans):
            expected = last_logits(model, batch)
        with constrain(model, one, at=batch.span_mask(spans)):
            assert torch.equal(last_logits(model, batch), expected)

        def find(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (tokens == 7) | (tokens == 8) | (tokens == 21)

        with constrain(model, one, at=find):
            assert torch.equal(last_logits(model, batch), expected)

        def find_in_first(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (tokens == 7) | (tokens == 8)

        free = last_logits(model, batch)
        with constrain(model, one, at=find_in_first):
            half = last_logits(model, batch)
        torch.testing.assert_close(half[0], expected[0], **CLOSE)
        torch.testing.assert_close(half[1], free[1], **CLOSE)
        assert float((expected[1] - free[1]).abs().max()) > 1e-4


@torch.no_grad()
def test_a_detector_that_finds_nothing_changes_nothing(model: HookedModel) -> None:
    batch = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31], [20, 21, 22, 23]])
    free = last_logits(model, batch)
    for site, mode in (("output", "zero"), ("output", "resample"), ("attention", "zero")):
        with constrain(
            model, constraint(site, mode), at=lambda tokens, mask: torch.zeros_like(mask)
        ):
            torch.testing.assert_close(last_logits(model, batch), free, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([(0, 1)], "1 spans for 2 prompts"),
        ([(0, 1), (2, 9)], r"span \[2, 9\) of prompt 1 is not in its 3 tokens"),
        ([(1, 1), (0, 1)], r"span \[1, 1\) of prompt 0"),
        (torch.ones(2, 9, dtype=torch.bool), "the mask at= has shape"),
    ],
)
@torch.no_grad()
def test_places_that_do_not_fit_the_prompts_are_told(
    tiny_llama: HookedModel, at: Any, message: str
) -> None:
    batch = TokenBatch.from_lists([[1, 2, 3, 4], [5, 6, 7]])
    with (
        pytest.raises(UserError, match=message),
        constrain(tiny_llama, [(0, 0)], at=at),
    ):
        last_logits(tiny_llama, batch)


def test_every_copy_of_a_prompt_has_its_span() -> None:
    """``generate`` runs a prompt once a beam, copies one after the other."""
    tokens = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 8, 9], [5, 8, 9]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for at in ([(1, 2), (2, 3)], torch.tensor([[0, 1, 0], [0, 0, 1]])):
        found = positions_at(at)(tokens, mask)
        assert found.tolist() == [[False, True, False]] * 2 + [[False, False, True]] * 2


def test_rows_that_are_no_copies_are_refused() -> None:
    tokens = torch.tensor([[5, 6, 7], [5, 6, 8]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with pytest.raises(UserError, match="1 spans for 2 prompts"):
        positions_at([(1, 2)])(tokens, mask)


def test_premises_must_be_encoded() -> None:
    with pytest.raises(UserError, match="encoded is a EncodedPremises, not 'capitals'"):
        positions_in_premises("capitals")  # type: ignore[arg-type]


@pytest.mark.parametrize("site", ["output", "attention"])
@pytest.mark.parametrize(
    ("at", "said"),
    [
        (lambda tokens, mask: None, "gives NoneType, and not a mask"),
        (lambda tokens, mask: mask[:, :3], r"gives \(1, 3\), and not a mask \[prompt pos\]"),
        (lambda tokens, mask: mask[:1, :1], r"gives \(1, 1\)"),
        (lambda tokens, mask: tokens, "other values than True and False"),
        (lambda tokens, mask: 1 / 0, "cannot be used .ZeroDivisionError"),
        (lambda tokens: tokens, "cannot be used .TypeError"),
    ],
)
def test_functions_that_give_no_mask_are_told(
    model: HookedModel, site: Any, at: Any, said: str
) -> None:
    with (
        torch.no_grad(),
        pytest.raises(UserError, match=said),
        constrain(model, constraint(site), at=at),
    ):
        model(torch.tensor([[5, 9, 7, 8, 30]]))


@torch.no_grad()
def test_a_function_may_give_ones_and_zeros(model: HookedModel) -> None:
    tokens = torch.tensor([[5, 9, 7, 8, 30]])
    with constrain(model, constraint("output"), at=lambda tokens, mask: mask & (tokens == 7)):
        expected = model(tokens)
    with constrain(model, constraint("output"), at=lambda tokens, mask: (tokens == 7).float()):
        torch.testing.assert_close(model(tokens), expected)
