"""Numbers are read exactly, however they are written, and compared as what they say."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.moelora.data.examples import Example
from interp.moelora.data.numbers import (
    as_a_word,
    as_text,
    numbers_in,
    parse_number,
    plain_number,
    same_number,
)
from interp.moelora.training.scoring import extract_number, is_right

HUGE = 2**80 + 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("57,500", "57500"),
        ("$57500", "57500"),
        ("-57,500", "-57500"),
        ("−$57,500", "-57500"),
        ("$-5", "-5"),
        ("70000.0", "70000"),
        ("5.75e4", "57500"),
        ("1E5", "100000"),
        ("+7", "7"),
        ("1e-3", "0.001"),
        ("57 500".replace(" ", "\u202f"), "57500"),
        ("57_500", "57500"),
        ("57{,}500", "57500"),
        ("1,00,000", "100000"),
        (".5", "0.5"),
        ("12%", "12"),
        ("7.", "7"),
        (str(HUGE), str(HUGE)),
        ("9" * 5000, "9" * 5000),
        ("₹12", "12"),
    ],
)
def test_numbers_are_read_exactly(text: str, number: str) -> None:
    found = parse_number(text)
    assert found is not None
    assert found == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "1,2", "1,20", "12,5000", "3 4", "1/2", "e5", "1e5x", "$", "-"]
)
def test_other_text_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,200 and 3,4", [1200, 3, 4]),
        ("COVID-19 in 2020", [19, 2020]),
        ("20-5=15", [20, 5, 15]),
        ("It fell by -3.", [-3]),
        ("version 1.5.2", [Decimal("1.5"), 2]),
        ("it costs $57,500.", [57500]),
        ("2e5 or 3ex", [200000, 3]),
    ],
)
def test_numbers_in_a_text(text: str, numbers: list[Decimal | int]) -> None:
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    ("right", "said", "same"),
    [
        ("57500", "57500.00", True),
        ("57500", "57504", False),
        ("57500", "57500.001", False),
        ("10000", "10001", False),
        (str(HUGE), str(HUGE), True),
        (str(HUGE), str(HUGE + 1), False),
        (str(2**53), str(2**53 + 1), False),
        ("0", "-0.0", True),
        ("1e5", "100000", True),
        ("12.50", "12.5", True),
        ("33.3333", "33.33333", True),
        ("33.33333", "33.3333", True),
        ("0.33333", "0.34", False),
        ("2.5", "2", False),
        ("2.5", "3", False),
        ("0.5", "0", False),
        ("33.3333", "33.3334", False),
        ("57500.25", "57500.50", False),
        ("12.5", "12.51", False),
        ("57500.25", "57504.25", False),
        ("0.66667", "0.666667", True),
        ("-1.25", "1.25", False),
        ("12345.25", "12345.75", False),
        ("0.125", "0.1250001", True),
        ("57500.5", "57500", False),
    ],
)
def test_what_is_the_same_number(right: str, said: str, same: bool) -> None:
    assert same_number(Decimal(right), Decimal(said)) is same
    assert is_right(Example("t", "How many?", right), f"The answer is {said}.") is same


@given(st.integers(), st.integers())
def test_whole_numbers_are_the_same_or_not(right: int, said: int) -> None:
    for text in (f"{said}", f"{said:,}", f"{said}.0"):
        found = extract_number(f"The answer is {text}.")
        assert found is not None
        assert same_number(Decimal(right), found) is (right == said)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9)))
def test_a_number_is_the_one_it_is_written_as(number: Decimal) -> None:
    back = parse_number(as_text(number))
    assert back == number
    assert same_number(number, number)


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("Answer: 57,500 (that is 2 more)", 57500),
        ("**Answer:** 5 of the 7", 5),
        ("So 3 and 4: \\boxed{12}, as 5 says", 12),
        ("the answer must be 8, not 9", 8),
        ("The answer is 4. No, the answer is 6.", 6),
    ],
)
def test_the_number_that_a_text_arrives_at(said: str, number: int) -> None:
    assert extract_number(said) == number


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("56.0", "56"),
        ("1,200", "1200"),
        ("0.50", "0.5"),
        ("$5", "$5"),
        ("12%", "12%"),
        ("Rome", "Rome"),
        (f"{HUGE}.0", str(HUGE)),
        ("33.333333333333336", "33.3333333333"),
        ("12345678901.25", "12345678901.25"),
        ("-0.0", "0"),
        ("100", "100"),
        ("1e22", f"{10**22}"),
    ],
)
def test_plain_numbers(text: str, plain: str) -> None:
    assert plain_number(text) == plain


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("6 * 3 = 18", "18"),
        ("(41 + 44) - 3 = 82", "82"),
        ("3+9=12", "12"),
        ("1/2", "0.5"),
        ("3/4 of it", "0.75"),
        ("2 1/2", "2.5"),
        (r"\frac{42}{5}", "8.4"),
        ("60 000", "60000"),
        ("1 000 000", "1000000"),
        ("10^6", "1000000"),
        ("7×10^4", "70000"),
        ("7k", "7000"),
        (r"$3\times 10^{5}$", "300000"),
        ("5 million", "5000000"),
        ("12 dozen", "144"),
        ("-1 1/2", "-1.5"),
        ("1/0", "1"),
        ("12 apples", "12"),
        ("18 (in 2019 500 of them)", "18"),
        ("1000 or 2000", None),
        ("between 40 and 44", None),
        ("on 2024-05-01", None),
        ("at 10:30", None),
    ],
)
def test_a_number_is_read_whole(said: str, number: str | None) -> None:
    found = extract_number(f"The answer is {said}.")
    assert found == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("5", "It is 5.", True),
        ("5", "It is 0.5.", False),
        ("5", "It is 5,000.", False),
        ("5", "It is -5.", False),
        ("5 km", "It is 1.5 km.", False),
        ("5 km", "It is 5 km.", True),
        ("0.5", "It is 0.5.", True),
        ("Rome", "In Rome.", True),
        ("Rome", "In Romet.", False),
    ],
)
def test_a_word_is_no_part_of_a_number(name: str, text: str, found: bool) -> None:
    assert (re.search(as_a_word(name), text) is not None) is found
