"""The checks of types and shapes that run beside all other tests find what they are there for."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from interp.arguments import whole_number
from interp.files.documents import read_json
from tests.type_checks import OFTEN, begin_test, checked_types


def checks(function: Any) -> Any:
    return checked_types(typechecker=beartype)(function)


def test_they_are_on() -> None:
    assert jaxtyping.jaxtyped is checked_types
    wrong: Any = 3
    with pytest.raises(TypeCheckError, match="violates type hint"):
        read_json(wrong)
    with pytest.raises(TypeCheckError, match="violates type hint"):
        whole_number(wrong, 3)


def test_a_result_of_another_type_is_found() -> None:
    @checks
    def number(value: Any) -> int:
        return value

    assert number(3) == 3
    with pytest.raises(TypeCheckError, match="return"):
        number("three")


def test_axes_have_one_size_in_arguments_and_result() -> None:
    @checks
    def rows(
        one: Float[Tensor, "row x"], other: Float[Tensor, "row y"], n: int
    ) -> Float[Tensor, " row"]:
        return torch.zeros(n)

    assert len(rows(torch.ones(2, 3), torch.ones(2, 4), 2)) == 2
    for wrong in ((torch.ones(2, 3), torch.ones(3, 4), 2), (torch.ones(2, 3), torch.ones(2, 4), 3)):
        with pytest.raises(TypeCheckError):
            rows(*wrong)
    assert len(rows(torch.ones(5, 3), torch.ones(5, 4), 5)) == 5  # not those of the call before


def test_axes_inside_other_annotations_count() -> None:
    @checks
    def both(pair: tuple[Float[Tensor, " n"], Float[Tensor, " n"]] | None) -> None:
        pass

    both(None)
    both((torch.ones(2), torch.ones(2)))
    with pytest.raises(TypeCheckError):
        both((torch.ones(2), torch.ones(3)))


def test_axes_of_a_function_are_its_own() -> None:
    @checks
    def inner(value: Float[Tensor, " n"]) -> int:
        return len(value)

    @checks
    def outer(value: Float[Tensor, " n"]) -> int:
        return inner(torch.ones(len(value) + 1))

    assert outer(torch.ones(2)) == 3


def maker(kind: Any) -> Callable[..., Any]:
    """A function whose annotation is only known when it is made."""

    def made(value: Any, *, default: Any = None) -> Any:
        return kind, value, default

    made.__annotations__ = {"value": kind, "default": list[str] | None}
    return checks(made)


def test_a_function_in_a_function_is_checked_each_time_that_it_is_made() -> None:
    for kind, right, wrong in ((int, 3, "3"), (str, "3", 3), (int, 4, None), (str, "4", None)):
        begin_test()  # the checks of the same kind are shared, and would soon look at few calls
        made = maker(kind)
        assert made(right) == (kind, right, None)  # with its own closure
        assert made(right, default=["a"]) == (kind, right, ["a"])
        assert made.__name__ == "made"
        with pytest.raises(TypeCheckError, match="value="):
            made(wrong)
        with pytest.raises(TypeCheckError, match="default="):
            made(right, default=[1])


def test_what_is_made_of_functions_is_checked_too(tmp_path: Path) -> None:
    from interp.commands.locate import LocateSettings  # a dataclass

    wrong: Any = "many"
    with pytest.raises(TypeCheckError):
        LocateSettings(limit=wrong)

    @checks
    def several(n: int) -> Iterator[int]:
        yield from range(n)

    assert list(several(2)) == [0, 1]
    with pytest.raises(TypeCheckError):
        list(several(wrong))

    @checks
    def rows(value: Float[Tensor, "n x"]) -> Iterator[Tensor]:
        yield from value

    assert len(list(rows(torch.ones(2, 3)))) == 2
    with pytest.raises(TypeCheckError):
        rows(torch.ones(2))


def number(value: Any) -> int:
    return value


def test_the_first_calls_and_a_few_later_ones_are_looked_at() -> None:
    checked, seen = checks(number), []
    begin_test()
    for call in range(1, 41):
        try:
            checked("three")
        except TypeCheckError:
            seen.append(call)
    assert seen == [1, 2, 3, 4, 8, 16]


def test_what_was_looked_at_often_is_looked_at_once_in_each_test() -> None:
    checked = checks(number)
    for _ in range(OFTEN):
        begin_test()
        checked(3)
    for _ in range(2):
        begin_test()
        with pytest.raises(TypeCheckError):
            checked("three")
        assert checked("three") == "three"
