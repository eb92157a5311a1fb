import math

import pandas as pd
import pytest

from interp.errors import UserError
from interp.figures.measures import (
    Measure,
    count_at,
    format_digits,
    format_number,
    format_small,
    measure_at,
)
from interp.report.text_table import text_table


def test_a_measure_is_written_with_its_interval() -> None:
    assert Measure(0.694, 0.52, 0.834).format() == "0.69 [0.52, 0.83]"
    assert Measure(0.5).format(3) == "0.500"


def test_no_negative_zero() -> None:
    assert format_number(-0.001) == "0.00"
    assert format_number(-0.01) == "-0.01"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.0031, "0.0031"), (0.00001234, "1.2e-05"), (0.9, "0.9")]
)
def test_small_numbers_keep_two_digits(value: float, text: str) -> None:
    assert format_small(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0, "0"), (0.00041237, "0.000412"), (-2.0, "-2"), (12.345, "12.3"), (12345.6, "12346")],
)
def test_effects_keep_three_digits(value: float, text: str) -> None:
    assert format_digits(value) == text


def test_a_table_as_text() -> None:
    row = {"layer": 3, "effect": 0.00041237, "ci_low": math.nan, "p_value": 0.00004, "rank": 2.0}
    texts = text_table(pd.DataFrame([row])).iloc[0].tolist()
    assert texts == ["3", "0.000412", "–", "4.0e-05", "2"]
    share = pd.DataFrame({"token": ["a"], "attention": [0.12345]})
    assert text_table(share, decimals=3).iloc[0].tolist() == ["a", "0.123"]


def test_measures_are_found_by_their_path() -> None:
    evaluation = {"a": {"b": [0.5, 0.25, 0.75], "n": 58, "none": None, "nan": [float("nan")] * 3}}
    assert measure_at(evaluation, "a", "b") == Measure(0.5, 0.25, 0.75)
    assert count_at(evaluation, "a", "n") == 58
    assert measure_at(evaluation, "a", "none") is None
    assert measure_at(evaluation, "a", "nan") is None
    assert measure_at(evaluation, "x", "y", "z") is None


@pytest.mark.parametrize("bad", ["0.5", True, [0.5], [0.5, 0.9, 0.1], [1, None, 2], float("inf")])
def test_what_is_no_measure_is_refused_with_its_place(bad: object) -> None:
    with pytest.raises(UserError, match=r"evaluation\.json: a\.b "):
        measure_at({"a": {"b": bad}}, "a", "b")


def test_a_step_through_something_else_than_an_object_is_refused() -> None:
    with pytest.raises(UserError, match="a must be an object"):
        measure_at({"a": [1, 2, 3]}, "a", "b")


def test_half_an_interval_is_no_measure() -> None:
    with pytest.raises(ValueError, match="both of its ends"):
        Measure(0.5, low=0.1)
