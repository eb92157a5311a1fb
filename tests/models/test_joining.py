"""What stands between a text and its answer where nobody says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.models.joining import gap_between


@pytest.mark.parametrize(
    ("text", "answer", "gap"),
    [
        ("The capital is", "Rome", " "),
        ("The capital is ", "Rome", ""),
        ("The capital is", " Rome", ""),
        ("The capital is\n", "Rome", ""),
        ("He said: (", "yes", ""),
        ("He said: “", "yes", ""),
        ("He said (no)", "yes", " "),
        ("He said «no»", "yes", " "),
        ("2 + 2 =", "4", " "),
        ("法国的首都是", "巴黎", ""),
        ("首都：", "Paris", ""),
        ("フランスの首都は", "パリ", ""),
        ("ฝรั่งเศสมีเมืองหลวงคือ", "ปารีส", ""),
        ("Das heißt auf Chinesisch", "巴黎", " "),
        ("The Hangul is", "서울", " "),
        ("Столица —", "Рим", " "),
    ],
)
def test_by_hand(text: str, answer: str, gap: str) -> None:
    assert gap_between(text, answer) == gap


@given(st.text(), st.text())
def test_never_two_spaces(text: str, answer: str) -> None:
    gap = gap_between(text, answer)
    assert gap in ("", " ")
    if gap:
        assert not text[-1].isspace()
        assert not answer[0].isspace()
