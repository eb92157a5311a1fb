"""Which columns are patched, and where in the other run their values come from."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.patching import TokenBatch
from interp.patching.alignment import align, aligned_columns, span_lists

LONG = [[1, 2, 3, 4, 5], [6, 7, 8]]
SAME = [[1, 2, 9, 4, 9], [6, 7, 8]]


def batch(prompts: list[list[int]]) -> TokenBatch:
    return TokenBatch.from_lists(prompts)


def test_all_positions_from_the_first_difference_on() -> None:
    found = align(batch(LONG), batch(SAME), "all")
    assert found.places.tolist() == [
        [[False, False, True, True, True], [False, False, False, False, True]]
    ]
    assert found.columns.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert (found.axis, found.labels) == (None, ("all",))


def test_everywhere_is_every_real_token() -> None:
    found = align(batch(LONG), batch(SAME), "all", everywhere=True)
    assert torch.equal(found.at, batch(SAME).mask)


def test_each_position_is_a_place_from_the_first_that_differs() -> None:
    found = align(batch(LONG), batch(SAME), "each")
    assert (found.axis, found.labels) == ("position", ("2", "3", "4"))
    assert found.places.shape == (3, 2, 5)
    assert found.places[:, 0].nonzero().tolist() == [[0, 2], [1, 3], [2, 4]]
    # A pair without a difference is edited at its last token, where that changes nothing.
    assert found.places[:, 1].nonzero().tolist() == [[2, 4]]


def test_spans_of_different_lengths_meet_at_their_ends() -> None:
    """Clean tokens 1 to 2 of 4 (left-padded: columns 1, 2), corrupted tokens 0 to 3 of 5."""
    clean, corrupted = batch([[1, 2, 3, 4]]), batch([[1, 2, 3, 4, 5]])
    found = align(clean, corrupted, {"name": ([(1, 3)], [(0, 4)]), "end": ([(3, 4)], [(4, 5)])})
    assert found.places.tolist() == [
        [[True, True, True, True, False]],
        [[False, False, False, False, True]],
    ]
    # The longer span repeats the shorter one's first token.
    assert found.columns.tolist() == [[1, 1, 1, 2, 3]]
    assert (found.axis, found.labels) == ("span", ("name", "end"))
    # A shorter span takes the longer one's last tokens.
    back = align(corrupted, clean, {"name": ([(0, 4)], [(1, 3)])})
    assert back.columns[0, 1:3].tolist() == [2, 3]


@given(st.data())
def test_aligned_columns_stay_in_the_span_and_move_by_one(data: st.DataObject) -> None:
    def span(width: int) -> tuple[int, int]:
        start = data.draw(st.integers(0, width - 1))
        return start, data.draw(st.integers(start + 1, width))

    widths = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    spans = [span(width) for width in widths]
    masks = [
        torch.tensor([[start <= column < end for column in range(width)]])
        for width, (start, end) in zip(widths, spans, strict=True)
    ]
    (start, end), (first, last) = spans
    taken = aligned_columns(*masks)[0, start:end].tolist()
    assert taken[-1] == last - 1
    assert all(first <= column < last for column in taken)
    assert all(b - a == 1 or (a == b == first) for a, b in itertools.pairwise(taken))


@pytest.mark.parametrize(
    ("clean", "positions", "message"),
    [
        (LONG[:1], "all", "1 clean prompts but 2 corrupted ones: give pairs"),
        ([[1, 2], [6, 7, 8]], "all", "differ in length: give spans to align them by"),
        ([[1, 2], [6, 7, 8]], "each", "differ in length: give spans to align them by"),
        (LONG, "last", "unknown positions 'last'; known: all, each, or named spans"),
        (LONG, {}, "there are no spans: name at least one"),
        (LONG, {"a": ([(0, 1)], [(0, 1)])}, "1 spans for 2 prompts: give one per prompt"),
        (
            LONG,
            {"a": ([(0, 1), (0, 1)], [(4, 6), (0, 1)])},
            r"span \[4, 6\) of prompt 0 is not in its 5 tokens",
        ),
        (
            LONG,
            {"a": ([(0, 1), (2, 4)], [(0, 1), (0, 1)])},
            r"span \[2, 4\) of prompt 1 is not in its 3 tokens",
        ),
        (
            LONG,
            {"a": ([(0, 2)] * 2, [(0, 2)] * 2), "b": ([(2, 3)] * 2, [(1, 3)] * 2)},
            "span 'b' overlaps another span: give spans that do not overlap",
        ),
    ],
)
def test_what_cannot_be_aligned_is_told(
    clean: list[list[int]], positions: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        align(batch(clean), batch(SAME), positions)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spans",
    [
        ([(1.0, 2.0)], [(1, 2)]),
        ([None], [None]),
        ([(1, 2, 3)], [(1, 2, 3)]),
        (["ab"], ["cd"]),
        (None, None),
        [(1, 2)],
        3,
    ],
)
def test_spans_that_are_none_are_told(spans: Any) -> None:
    with pytest.raises(UserError, match=r"positions\['s'\]"):
        span_lists("s", spans)
