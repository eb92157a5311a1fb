"""Edits as values: what is written, what is cut, and how an edit is narrowed to some prompts."""

import pytest
import torch

from interp.errors import UserError
from interp.patching import ActivationEdit, AttentionEdit
from interp.patching.edits import scale_scores, take_edit

KEYS = torch.tensor([[False, True, True, False, False], [True, False, False, False, False]])
ROWS = torch.arange(2)


def causal_scores(start: int = 0) -> torch.Tensor:
    """Random scores [prompt head query key], masked so that no query sees a later key."""
    scores = torch.randn(2, 3, 5, 5).masked_fill(~torch.ones(5, 5).bool().tril(), -1e9)
    return scores[:, :, start:]


def test_attention_is_changed_after_the_last_key_only() -> None:
    assert AttentionEdit(KEYS).changed.tolist() == [
        [False, False, False, True, True],
        [False, True, True, True, True],
    ]
    nowhere = AttentionEdit(torch.zeros(1, 4, dtype=torch.bool))
    assert not bool(nowhere.changed.any())


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0, 4.0])
def test_an_edited_pattern_is_the_softmax_of_scaled_scores(factor: float, start: int) -> None:
    edit, scores = AttentionEdit(KEYS, factor), causal_scores(start)
    name, cut = edit.hook(4, rows=ROWS, units=torch.ones(2, 3, dtype=torch.bool), start=start)
    assert name == "blocks.4.attn.hook_attn_scores"
    hooked = cut(scores, None)
    assert hooked is not None
    edited = edit.edited(scores.softmax(-1), rows=ROWS, start=start)
    torch.testing.assert_close(edited, hooked.softmax(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(edited.sum(-1), torch.ones(2, 3, 5 - start), rtol=0, atol=1e-6)


def test_a_cut_pattern_by_hand() -> None:
    pattern = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]).expand(2, 1, 5, 5)
    edited = AttentionEdit(KEYS, 0.5).edited(pattern, rows=ROWS, start=0)
    # Prompt 0, queries 3 and 4: keys 1 and 2 halved, 0.1 + 0.1 + 0.15 + 0.4 = 0.75.
    half = torch.tensor([0.1, 0.1, 0.15, 0.4, 0.0]) / 0.75
    torch.testing.assert_close(edited[0, 0, 3:], half.expand(2, 5))
    torch.testing.assert_close(edited[0, 0, :3], pattern[0, 0, :3])
    torch.testing.assert_close(edited[1, 0, 1], torch.tensor([0.05, 0.2, 0.3, 0.4, 0.0]) / 0.95)


def test_only_the_heads_asked_for_are_cut() -> None:
    scores = causal_scores()
    heads = torch.tensor([[True, False, False], [False, False, True]])
    _, cut = AttentionEdit(KEYS).hook(0, rows=ROWS, units=heads, start=0)
    pattern = cut(scores, None).softmax(-1)  # type: ignore[union-attr]
    before = scores.softmax(-1)
    assert float(pattern[0, 0, 3:, 1:3].max()) == 0.0
    assert float(pattern[1, 2, 1:, 0].max()) == 0.0
    torch.testing.assert_close(pattern[0, 1:], before[0, 1:])
    torch.testing.assert_close(pattern[1, :2], before[1, :2])


def test_scores_of_a_factor() -> None:
    scores, where = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[True, False, False]])
    weights = scale_scores(scores, where, 3.0).softmax(-1)
    # e : e : e² with the first tripled.
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(weights[0], torch.stack([3 * e, e, e * e]) / (4 * e + e * e))
    assert scale_scores(scores, where, 0.0).softmax(-1)[0, 0] == 0.0


def test_a_written_output_by_hand() -> None:
    at = torch.tensor([[False, True, False], [False, True, True]])
    source = torch.arange(8.0).reshape(1, 2, 2, 2, 1)  # [layer prompt column head d_head], from 1
    z = torch.full((2, 2, 2, 1), 10.0)
    edit = ActivationEdit(at, source=source, scale=0.5, first=1)
    edited = edit.edited(z, 0, rows=ROWS, start=1)
    assert edited[..., 0].tolist() == [[[5, 6], [10, 10]], [[9, 10], [11, 12]]]
    # A run that starts a column later takes the source's second column.
    later = edit.edited(z[:, 1:], 0, rows=torch.tensor([1, 0]), start=2)
    assert later[..., 0].tolist() == [[[11, 12]], [[10, 10]]]
    name, write = edit.hook(
        0, rows=ROWS, units=torch.tensor([[True, False], [False, True]]), start=1
    )
    assert name == "blocks.0.attn.hook_z"
    assert write(z, None)[..., 0].tolist() == [[[5, 10], [10, 10]], [[10, 10], [10, 12]]]  # type: ignore[index]


def test_narrowing_keeps_the_source_in_its_columns() -> None:
    """Columns are named by their number, so that a wrong shift shows."""
    width, first = 6, 2
    at = torch.zeros(3, width, dtype=torch.bool)
    at[:, 4] = True
    column = torch.arange(first, width).float()
    source = column[None, None, :, None, None].expand(1, 3, -1, 1, 1)
    source = source + 100 * torch.arange(3)[None, :, None, None, None]
    edit = ActivationEdit(at, source=source, first=first)
    for drop in range(5):
        narrow = take_edit(edit, torch.tensor([2, 0]), drop)
        assert isinstance(narrow, ActivationEdit)
        assert narrow.at.shape == (2, width - drop)
        start = 4 - drop
        z = torch.zeros(2, width - drop - start, 1, 1)
        edited = narrow.edited(z, 0, rows=ROWS, start=start)
        assert edited[:, 0, 0, 0].tolist() == [204, 4], drop
    keys = take_edit(AttentionEdit(at, 0.5), torch.tensor([1]), 3)
    assert isinstance(keys, AttentionEdit)
    assert keys.factor == 0.5
    assert keys.keys.tolist() == [[False, True, False]]


def test_a_negative_attention_factor_is_refused() -> None:
    with pytest.raises(UserError, match="zero or more, not -1"):
        AttentionEdit(KEYS, -1.0)


def test_a_sink_takes_its_share_of_what_is_cut() -> None:
    """Weights 0.4, 0.2 and a sink's 0.4: without the first, one third and two thirds are left."""
    edit = AttentionEdit(torch.tensor([[True, False]]))
    pattern = torch.tensor([[[[0.4, 0.2], [0.4, 0.2]]]])
    found = edit.edited(pattern, rows=torch.tensor([0]), start=0)
    torch.testing.assert_close(found[0, 0, 1], torch.tensor([0.0, 1 / 3]))
