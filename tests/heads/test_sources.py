"""Where a replaced output comes from: aligned spans, means, and masked or twin runs."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.heads import premise_edit
from interp.heads.object_edits import aligned_positions, last_true, mean_output
from interp.models import HookedModel
from interp.patching import ActivationEdit, AttentionEdit
from interp.premises import load_premises
from interp.premises.encode import EncodedPremises, encode_premises


def spans_to_mask(spans: list[tuple[int, int]], width: int) -> torch.Tensor:
    return torch.tensor([[start <= i < end for i in range(width)] for start, end in spans])


def test_spans_of_equal_and_of_different_length_are_aligned_by_hand() -> None:
    here = spans_to_mask([(2, 5), (1, 3), (0, 1)], 6)
    there = spans_to_mask([(1, 4), (3, 4), (2, 5)], 7)
    columns = aligned_positions(here, there)
    assert columns[0, 2:5].tolist() == [1, 2, 3]
    assert columns[1, 1:3].tolist() == [3, 3]  # the longer span repeats the other's first token
    assert columns[2, 0:1].tolist() == [4]  # the shorter one takes the last


@given(st.data())
def test_alignment_stays_inside_the_other_span(data: st.DataObject) -> None:
    spans = []
    for width in (9, 8):
        start = data.draw(st.integers(0, width - 1))
        spans.append((start, data.draw(st.integers(start + 1, width))))
    columns = aligned_positions(spans_to_mask(spans[:1], 9), spans_to_mask(spans[1:], 8))[0]
    taken = columns[slice(*spans[0])].tolist()
    assert taken[-1] == spans[1][1] - 1
    for earlier, later in itertools.pairwise(taken):
        assert later - earlier == 1 or earlier == later == spans[1][0]
    assert all(spans[1][0] <= column < spans[1][1] for column in taken)


def test_only_the_last_mark_of_a_row() -> None:
    marks = torch.tensor([[True, True, False, True], [False, True, False, False], [False] * 4])
    assert last_true(marks).tolist() == [
        [False, False, False, True],
        [False, True, False, False],
        [False] * 4,
    ]


@pytest.fixture(scope="module")
def encoded(tiny_llama: HookedModel) -> EncodedPremises:
    premises = load_premises("capitals", limit=5).with_templates(["why", "famous"])
    return encode_premises(tiny_llama.tokenizer, premises)


@torch.no_grad()
def outputs(model: Any, tokens: tuple[int, ...]) -> torch.Tensor:
    """Every head's output [layer pos head d_head] of one unpadded prompt."""
    _, cache = model.run_with_cache(torch.tensor([tokens]))
    layers = range(model.cfg.n_layers)
    return torch.stack([cache[f"blocks.{layer}.attn.hook_z"][0] for layer in layers])


@pytest.mark.parametrize("source", ["masked", "twin"])
@pytest.mark.parametrize("last_only", [False, True])
def test_a_source_run_is_read_at_the_aligned_tokens(
    tiny_llama: HookedModel, encoded: EncodedPremises, source: Any, last_only: bool
) -> None:
    edit = premise_edit(tiny_llama, encoded, source=source, last_only=last_only)
    assert isinstance(edit, ActivationEdit)
    assert edit.source is not None
    batch = encoded.batch("false")
    for row, item in enumerate(encoded.items):
        z = outputs(tiny_llama, item.prompt(source).tokens)
        (start, end), (first, last) = item.false.object, item.prompt(source).object
        marked = edit.at[row].nonzero()[:, 0].tolist()
        offset = int(batch.offsets[row])
        positions = range(end - 1, end) if last_only else range(start, end)
        assert marked == [offset + position for position in positions]
        for position in positions:
            there = max(last - (end - position), first)
            taken = edit.source[:, row, offset + position - edit.first]
            torch.testing.assert_close(taken, z[:, there], rtol=0, atol=5e-5)


def test_the_mean_is_over_the_prompts_own_object_tokens(
    tiny_llama: HookedModel, encoded: EncodedPremises
) -> None:
    pieces = [
        outputs(tiny_llama, item.false.tokens)[:, slice(*item.false.object)]
        for item in encoded.items
    ]
    expected = torch.cat(pieces, dim=1).mean(dim=1)
    torch.testing.assert_close(mean_output(tiny_llama, encoded), expected, rtol=0, atol=5e-5)
    edit = premise_edit(tiny_llama, encoded, source="mean")
    assert isinstance(edit, ActivationEdit)
    assert edit.source is not None
    torch.testing.assert_close(edit.source[:, 3, 0], expected, rtol=0, atol=5e-5)


def test_the_attention_site_cuts_the_objects_columns(
    tiny_llama: HookedModel, encoded: EncodedPremises
) -> None:
    edit = premise_edit(tiny_llama, encoded, "twin", site="attention", factor=0.25)
    assert isinstance(edit, AttentionEdit)
    assert edit.factor == 0.25
    assert torch.equal(edit.keys, encoded.objects("twin"))
    with pytest.raises(UserError, match="source 'masked' is for site 'output'"):
        premise_edit(tiny_llama, encoded, site="attention", source="masked")
