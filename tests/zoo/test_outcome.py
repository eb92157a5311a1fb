"""A check is right, refused in clear words, or wrong; nothing else passes."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from tests.zoo.outcome import judge

NAN = torch.nan


def kind_of(right: Any, got: Any) -> str:
    return judge("one", lambda: right, lambda: got).kind


def raising(error: Exception) -> Any:
    def ask() -> Any:
        raise error

    return ask


@pytest.mark.parametrize(
    ("right", "got", "kind"),
    [
        ([1.0, -2.0], [1.0, -2.00001], "yes"),
        ([1.0, -2.0], [1.0, -2.01], "FAIL"),
        ([1.0, NAN], [1.0, NAN], "yes"),
        ([1.0, NAN], [1.0, 0.0], "FAIL"),
        ([1.0, 2.0], [1.0, NAN], "FAIL"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "FAIL"),
        ([3e-4, 1e-4], [0.0, 0.0], "FAIL"),  # small effects are not right by being small
        ([300.0, 1.0], [300.02, 1.0], "yes"),  # relative to the largest
    ],
)
def test_numbers(right: list[float], got: list[float], kind: str) -> None:
    assert kind_of(torch.tensor(right), torch.tensor(got)) == kind


def test_tokens_are_equal_or_wrong() -> None:
    assert kind_of([[3, 4]], [[3, 4]]) == "yes"
    assert kind_of([[3, 4]], [[3, 5]]) == "FAIL"


def test_a_clear_line_is_a_refusal_and_an_exception_from_inside_is_not() -> None:
    right = torch.zeros(2)
    refused = judge("one", lambda: right, raising(UserError("this model has no 'k'")))
    assert (refused.kind, refused.said) == ("refused", "this model has no 'k'")
    unclear = UserError("'NoneType' object has no attribute 'shape'")
    for error in (unclear, IndexError("index 3 is out of range"), KeyError("hook_z")):
        assert judge("one", lambda: right, raising(error)).kind == "FAIL"


def test_what_a_model_has_not_may_be_refused_or_be_nan() -> None:
    def right() -> Any:
        raise LookupError("no layer has k")

    assert judge("k", right, lambda: torch.full((2, 2), NAN)).kind == "yes"
    assert judge("k", right, raising(UserError("this model has no 'k'"))).kind == "refused"
    assert judge("k", right, lambda: torch.zeros(2, 2)).kind == "FAIL"
    assert judge("k", right, lambda: [[1, 2]]).kind == "FAIL"


def test_a_reference_that_breaks_is_no_yes() -> None:
    broken = judge("one", raising(ValueError("no")), lambda: torch.zeros(1))
    assert broken.kind == "FAIL"
    assert "the reference itself" in broken.said
