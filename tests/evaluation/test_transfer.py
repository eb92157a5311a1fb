"""Heads found in some relations, scored on another: a planted head, and a model without one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.errors import UserError
from interp.evaluation import Transfer, evaluate, leave_one_out, preference
from interp.evaluation.transfer import OTHERS
from interp.heads import HeadSet, JointEffects, locate_heads
from interp.interventions import Constraint
from interp.models import HookedModel
from interp.premises import JointPremises, Premises, encode_premises

NAMES = ("planted", "second", "third")


@pytest.fixture(scope="module")
def premises(planted_premises: Premises) -> JointPremises:
    facts = planted_premises.facts
    return JointPremises(
        tuple(
            Premises(
                replace(planted_premises.relation, name=name),
                facts[first : first + 6],
                ("when", "famous"),
            )
            for name, first in zip(NAMES, (0, 5, 10), strict=True)
        )
    )


@pytest.fixture(scope="module")
def effects(planted: HookedModel, premises: JointPremises) -> JointEffects:
    return locate_heads(planted, premises.parts, site="attention", progress=False)


def test_leave_one_out(planted: HookedModel, premises: Any, effects: JointEffects) -> None:
    found = leave_one_out(
        planted, premises, effects, counts=(1, 2), each=True, random_sets=5, progress=False
    )
    table = found.table
    assert len(table) == 3 * 2 * 4
    assert set(table["searched"]) == {OTHERS, *NAMES}
    assert (table["baseline"] == 0).all()
    assert (table["preference_accuracy"] == 1).all()
    assert (table["n"] == 12).all()
    assert (table["n_subjects"] == 6).all()
    null = table[table["random_mean"].notna()]
    assert set(null["searched"]) == {OTHERS}
    assert set(null["n_heads"]) == {2}
    assert (null["random_mean"] < 0.5).all()
    means = found.over_relations().set_index(["setting", "n_heads"])
    assert set(means.index) == {(s, n) for s in (OTHERS, "itself", "another") for n in (1, 2)}
    assert means.loc[(OTHERS, 1), "worst"] == 1
    assert means.loc[(OTHERS, 1), "relations"] == 3
    matrix = found.plot(n_heads=1).to_dict()["data"][0]
    assert list(matrix["y"]) == [OTHERS, *NAMES]
    assert list(matrix["x"]) == list(NAMES)
    assert all(value == 1 for row in matrix["z"] for value in row)
    with pytest.raises(UserError, match="3 heads were not scored; known: 1, 2"):
        found.plot(n_heads=3)
    with pytest.raises(UserError, match="unknown value 'price'"):
        found.plot("price")


def test_the_set_is_not_searched_in_the_relation_left_out(
    planted: HookedModel, premises: Any, effects: JointEffects
) -> None:
    # A relation in which another head is the largest: its own set is that head, the others' is not.
    planted_head = effects.select(count=1).heads[0]
    own = effects.by_relation["third"]
    values = own.values.clone()
    values[:, 0, 0] = 3 * values[:, planted_head[0], planted_head[1]]
    by = {**effects.by_relation, "third": replace(own, values=values)}
    found = leave_one_out(planted, premises, JointEffects(by), counts=(1,), progress=False).table
    rows = found.set_index(["searched", "scored"])
    assert rows.loc[("third", "third"), "heads"] == "0.0"
    assert rows.loc[("third", "third"), "gain"] == 0
    assert rows.loc[(OTHERS, "third"), "heads"] == "{}.{}".format(*planted_head)
    assert rows.loc[(OTHERS, "third"), "gain"] == 1


def test_against_preferences_one_by_one(
    planted: HookedModel, premises: Any, effects: JointEffects
) -> None:
    row = leave_one_out(planted, premises, effects, counts=(2,), progress=False).table.iloc[0]
    heads = effects.without(row["scored"]).select(count=2)
    encoded = encode_premises(planted.tokenizer, premises.of(row["scored"]))
    sets = [HeadSet((), "attention"), heads]
    twin = preference(
        planted, encoded, "twin", constraint=Constraint(heads), sets=sets, progress=False
    )
    cost = (twin.p_true[:, 0] - twin.p_true[:, 1]).mean()
    assert row["p_true_cost"] == pytest.approx(cost)
    assert row["p_true_cost"] > 0
    assert row["p_true_cost_low"] <= row["p_true_cost"] <= row["p_true_cost_high"]


def test_without_a_copying_head_nothing_is_gained(
    honest: HookedModel, premises: Any, effects: JointEffects
) -> None:
    table = leave_one_out(honest, premises, effects, counts=(1,), progress=False).table
    assert (table["gain"] == 0).all()
    assert (table["p_true_cost"].abs() < 0.05).all()


def test_what_cannot_be_left_out(planted: HookedModel, premises: Any, effects: Any) -> None:
    alone = JointPremises(premises.parts[:1])
    with pytest.raises(UserError, match="of different relations"):
        leave_one_out(planted, alone, effects, progress=False)
    with pytest.raises(UserError, match="at least two"):
        leave_one_out(planted, alone, effects.without("second", "third"), progress=False)


def test_joint_premises_are_evaluated_as_each_alone(
    planted: HookedModel, premises: Any, effects: JointEffects
) -> None:
    options: dict[str, Any] = {"random_sets": 0, "answers": False, "progress": False}
    heads = effects.select(count=1)
    together = evaluate(planted, premises, heads=heads, **options)
    each = [evaluate(planted, part, heads=heads, **options) for part in premises.parts]
    for kind in ("false", "twin"):
        parts = [getattr(found, kind).p_true for found in each]
        assert np.allclose(getattr(together, kind).p_true, np.concatenate(parts), atol=1e-6)
    names = together.to_dict()["splits"]["all"]["templates"]
    assert list(names) == [f"{name}/{at}" for name in NAMES for at in ("when", "famous")]


def test_means_over_relations_by_hand() -> None:
    rows = []
    for scored, value in (("a", 0.5), ("b", 1.0)):
        row: dict[str, Any] = {"searched": OTHERS, "scored": scored, "site": "attention"}
        row |= {"mode": "zero", "n_heads": 8, "baseline": 0.25, "random_mean": np.nan}
        for name in ("preference_accuracy", "gain", "cost", "p_true_cost"):
            row |= {name: value, f"{name}_low": value, f"{name}_high": value}
        rows.append(row)
    (row,) = Transfer(pd.DataFrame(rows)).over_relations().to_dict("records")
    assert row["preference_accuracy"] == 0.75
    assert (row["preference_accuracy_low"], row["preference_accuracy_high"]) == (0.5, 1.0)
    assert (row["worst"], row["worst_in"], row["relations"]) == (0.5, "a", 2)
