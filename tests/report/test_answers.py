from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.report.answers import MarkedPair, Piece, mark_changes, mark_names


def test_the_question_is_cut_at_the_object(generation_row: dict[str, Any]) -> None:
    pieces = MarkedPair.from_row(generation_row).question_pieces()
    assert pieces[1] == Piece("Guinea", "object")
    assert "".join(piece.text for piece in pieces) == generation_row["question"]


def test_the_longer_name_wins_and_case_does_not_matter() -> None:
    pieces = mark_names(
        "Papua New Guinea, not guinea.", true_object="Papua New Guinea", false_object="Guinea"
    )
    assert pieces == (
        Piece("Papua New Guinea", "true"),
        Piece(", not "),
        Piece("guinea", "false"),
        Piece("."),
    )


def test_names_inside_other_words_are_not_marked() -> None:
    pieces = mark_names("Malians and Nigerians", true_object="Mali", false_object="Niger")
    assert pieces == (Piece("Malians and Nigerians"),)


def test_names_are_not_patterns() -> None:
    pieces = mark_names("a.c abc", true_object="a.c", false_object="(x")
    assert pieces == (Piece("a.c", "true"), Piece(" abc"))


@given(st.text(), st.text(max_size=4), st.text(max_size=4))
def test_the_pieces_are_the_answer_again(answer: str, true: str, false: str) -> None:
    pieces = mark_names(answer, true_object=true, false_object=false)
    assert "".join(piece.text for piece in pieces) == answer


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (False, True, "mended"),
        (True, True, "right"),
        (False, False, "wrong"),
        (True, False, "broken"),
    ],
)
def test_outcomes(generation_row: dict[str, Any], before: bool, after: bool, outcome: str) -> None:
    row = {**generation_row, "baseline_names_true": before, "constrained_names_true": after}
    assert MarkedPair.from_row(row).outcome == outcome


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "twin"}, "known are false_premise, true_premise"),
        ({"object_span": [5, 5]}, "outside the question"),
        ({"object_span": [0, 9999]}, "outside the question"),
        ({"object_span": "why"}, "two whole numbers"),
        ({"object_span": [0, True]}, "two whole numbers"),
        ({"baseline": None}, "baseline must be text"),
        ({"baseline_names_true": 1}, "baseline_names_true must be true or false"),
    ],
)
def test_malformed_rows_are_refused(
    generation_row: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MarkedPair.from_row({**generation_row, **change})


def test_a_missing_key_is_named(generation_row: dict[str, Any]) -> None:
    del generation_row["subject"]
    with pytest.raises(ValueError, match="lacks subject"):
        MarkedPair.from_row(generation_row)


def texts(pieces: tuple[Piece, ...], role: str) -> list[str]:
    return [piece.text for piece in pieces if piece.role == role]


def test_changed_words_by_hand() -> None:
    before, after = mark_changes(
        "Paris is the capital of Germany.", "Paris is the capital of France, not Germany."
    )
    assert before == (Piece("Paris is the capital of Germany."),)
    assert texts(after, "added") == ["France, not"]
    before, after = mark_changes("The river Nile flows north.", "The river Nile is\n dry.")
    assert texts(before, "removed") == ["flows north."]
    assert texts(after, "added") == ["is\n dry."]
    before, after = mark_changes("one two three", "four two five")
    assert texts(before, "removed") == ["one two three"]  # one word in common is chance
    assert texts(after, "added") == ["four two five"]
    before, after = mark_changes("巴黎是法国的首都", "巴黎是德国的首都")
    assert texts(before, "removed") == ["法"]
    assert texts(after, "added") == ["德"]


@given(before=st.text(max_size=30), after=st.text(max_size=30))
def test_changes_leave_the_texts_as_they_are(before: str, after: str) -> None:
    for first, second in ((before, after), (after, before), (before, before)):
        old, new = mark_changes(first, second)
        assert "".join(piece.text for piece in old) == first
        assert "".join(piece.text for piece in new) == second
        assert all(piece.text for piece in (*old, *new))
        assert (first == second) <= (not texts(old, "removed") and not texts(new, "added"))


def test_letters_that_only_a_search_takes_for_the_same() -> None:
    pieces = mark_names("Es liegt in Preuſſen.", true_object="Bayern", false_object="Preussen")
    assert [(piece.text, piece.role) for piece in pieces] == [
        ("Es liegt in ", ""),
        ("Preuſſen", "false"),
        (".", ""),
    ]
