"""Arguments of the wrong kind are refused by name, and what is plainly meant is taken."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import (
    as_path,
    check_choice,
    listed,
    of_kind,
    pairs_of_numbers,
    real_number,
    whole_number,
)
from interp.checked import checked
from interp.errors import UserError
from interp.interventions import Intervention


@checked
def echo(
    count: int,
    share: float = 0.5,
    *,
    names: Sequence[str] = (),
    heads: tuple[tuple[int, int], ...] = (),
    many: Iterable[int] = (),
    kind: Literal["a", "b"] = "a",
    values: Float[Tensor, " prompt"] | None = None,
    path: str | Path = "",
    loud: bool = False,
    function: Callable[[int], int] | None = None,
    anything: Any = None,
) -> tuple[Any, ...]:
    return count, share, names, heads, many, kind, values, path, loud, function, anything


@pytest.mark.parametrize("count", [3, np.int64(3), torch.tensor(3), np.uint8(3)])
def test_every_whole_number_is_a_count(count: Any) -> None:
    assert echo(count)[0] == 3
    assert type(echo(count)[0]) is int


@pytest.mark.parametrize(
    "heads", [[[0, 1]], ((0, 1),), np.array([[0, 1]]), torch.tensor([[0, 1]]), iter([(0, 1)])]
)
def test_every_list_of_pairs_is_taken(heads: Any) -> None:
    assert echo(1, heads=heads)[3] == ((0, 1),)
    assert pairs_of_numbers("heads", [(0, 1)]) == [(0, 1)]


def test_a_generator_can_be_read_more_than_once_inside() -> None:
    assert echo(1, many=(n for n in range(3)))[4] == [0, 1, 2]
    assert echo(1, share=1)[1] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": None}, "count is a whole number, not None"),
        ({"count": 2.0}, "count is a whole number, not 2.0"),
        ({"count": "3"}, "count is a whole number, not '3'"),
        ({"share": "half"}, "share is a number, not 'half'"),
        ({"names": "Paris"}, "names is a list of entries, not 'Paris'"),
        ({"names": ["Paris", 3]}, "an entry of names is a text, not 3"),
        ({"heads": [(0, 1, 2)]}, "an entry of heads has 2 entries, not 3"),
        ({"heads": 3}, "heads is a list of entries, not 3"),
        ({"kind": []}, "kind is a name, not"),
        ({"values": [1.0]}, "values is a Tensor"),
        ({"path": 3}, "path is a text, not 3"),
        ({"loud": "no"}, "loud is True or False, not 'no'"),
        ({"function": 3}, "function is a function, not 3"),
    ],
)
def test_the_wrong_kind_is_refused_by_its_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        echo(**{"count": 1, **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_annotations_do_not_say_is_left_alone() -> None:
    thing = object()
    assert echo(1, anything=thing)[-1] is thing
    with pytest.raises(TypeError, match="unexpected keyword"):  # as of any function
        echo(1, unknown=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: whole_number("k", -1, least=0), "k is at least 0, not -1"),
        (lambda: real_number("factor", float("nan")), "factor is a finite number"),
        (lambda: listed("prompts", {"a": 1}), "prompts is a list"),
        (lambda: pairs_of_numbers("heads", [0, 1]), "heads are pairs"),
        (lambda: pairs_of_numbers("heads", [(0.5, 1)]), "heads are pairs"),
        (lambda: of_kind("edit", 3, Path, advice="make one"), "edit is a Path, not 3: make one"),
        (lambda: check_choice("mode", "loud", ["soft"]), "unknown mode 'loud'; known: soft"),
        (lambda: as_path("path", b"x"), "path is a path"),
    ],
)
def test_single_checks_name_the_argument(ask: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask()


def test_what_is_taken_by_name_may_still_be_given_by_position() -> None:
    call: Any = echo
    with pytest.warns(DeprecationWarning, match=r"echo takes names by name: echo\(\.\.\., names="):
        assert call(1, 0.5, ["a"])[:3] == (1, 0.5, ["a"])
    old: Any = Intervention.of
    new = Intervention.of([(1, 2)], "attention", mode="scale", factor=0.5)
    with pytest.warns(DeprecationWarning, match="of takes mode, factor by name"):
        assert old([(1, 2)], "attention", "scale", 0.5) == new
    with pytest.raises(TypeError, match=r"multiple values|too many positional"):
        call(1, 0.5, ["a"], names=["b"])
    with pytest.raises(TypeError, match="too many positional"):
        call(*range(12))
