"""A constraint as a value."""

from typing import Any

import pytest

from interp.errors import UserError
from interp.heads import HeadSet
from interp.interventions import SITE_MODES, Constraint
from interp.interventions.head_constraint import check_mode

HEADS = HeadSet(((0, 1), (2, 3)), "attention")


def test_a_constraint_has_the_site_of_its_heads_and_a_name() -> None:
    assert Constraint(HEADS).site == "attention"
    assert Constraint(HEADS).name == "attention, zero, 2 heads"
    assert Constraint(HEADS, "scale", 0.25).name == "attention, scale 0.25, 2 heads"


def test_the_same_constraint_on_other_heads() -> None:
    other = Constraint(HEADS, "scale", 0.25).with_heads(HeadSet(((1, 1),), "attention"))
    assert (other.mode, other.factor, other.heads.heads) == ("scale", 0.25, ((1, 1),))


def test_equal_constraints_are_equal() -> None:
    same = HeadSet(((0, 1), (2, 3)), "attention", chosen_by="something else")
    assert Constraint(HEADS) == Constraint(same)
    assert Constraint(HEADS) != Constraint(HEADS, "scale", 0.5)


@pytest.mark.parametrize("site", ["output", "attention"])
def test_every_mode_of_a_site_can_be_made_and_no_other(site: Any) -> None:
    for mode in ("zero", "mean", "resample", "scale"):
        if mode in SITE_MODES[site]:
            assert Constraint(HeadSet(((0, 0),), site), mode).mode == mode
        else:
            with pytest.raises(UserError, match=f"mode '{mode}' does not fit site '{site}'"):
                Constraint(HeadSet(((0, 0),), site), mode)


def test_an_unknown_mode_lists_the_known() -> None:
    with pytest.raises(UserError, match="unknown mode 'melt'; known: zero, mean, resample, scale"):
        check_mode("output", "melt")
