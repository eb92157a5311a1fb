"""Names whose difference is not seen are one; letters that are seen, or matter, stay."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.files.cells import clean_name, name_key, whole_number

PERSIAN = "می\u200cخواهم"  # the joiner keeps two letters apart
SINHALA = "ශ්\u200dරී ලංකා"  # without the joiner another letter
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("New\u00a0Zealand", "New Zealand"),
        ("  New  \n Zealand\t", "New Zealand"),
        ("France\u200b", "France"),
        ("Fra\u200bnce", "France"),
        ("\ufeffFrance\u200e ", "France"),
        ("\u200f \u202bFrance\u202c \u00ad", "France"),
        ("\u200b \u200e", ""),
        (PERSIAN, PERSIAN),
        (SINHALA, SINHALA),
        (ENGLAND, ENGLAND),
    ],
)
def test_names_by_hand(text: str, name: str) -> None:
    assert clean_name(text) == name


@given(st.text())
def test_a_clean_name_stays(text: str) -> None:
    name = clean_name(text)
    assert clean_name(name) == name
    assert name_key(name_key(text)) == name_key(text) == name_key(name)


def test_one_name_has_one_key() -> None:
    forms = ["São Paulo", "são\u00a0paulo ", unicodedata.normalize("NFD", "SÃO  PAULO")]
    assert {name_key(form) for form in forms} == {"são paulo"}
    # Negative control: an accent makes another name here, and so does a joiner.
    assert len({name_key(name) for name in ("Sao Paulo", "São Paulo", "SaoPaulo")}) == 3
    assert name_key(PERSIAN) != name_key(PERSIAN.replace("\u200c", ""))


@pytest.mark.parametrize(
    ("text", "number"),
    [("1912.0", "1912"), ("-3.0", "-3"), ("3.14", "3.14"), ("v2.0", "v2.0"), ("10.0.0", "10.0.0")],
)
def test_whole_numbers_lose_their_point(text: str, number: str) -> None:
    assert whole_number(text) == number
