"""Gain against cost, and the choice of a setting."""

from typing import Any

import pandas as pd
import pytest

from interp.errors import UserError
from interp.evaluation import choose_setting, compare_settings, preference
from interp.heads import HeadSet, locate_heads
from interp.interventions import Constraint
from interp.models import HookedModel
from interp.premises import Premises
from interp.premises.encode import encode_premises


def settings(*rows: tuple[int, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["n_heads", "gain", "cost"])


def test_the_choice_by_hand() -> None:
    table = settings((3, 0.50, 0.20), (3, 0.497, 0.05), (3, 0.40, 0.00), (8, 0.90, 0.01))
    # 0.497 is as good as 0.50 and costs less; 0.40 is worse; eight heads were not asked for.
    assert choose_setting(table, n_heads=3) == 1
    assert choose_setting(table, n_heads=8) == 3
    assert choose_setting(table.iloc[::-1], n_heads=3) == 1
    with pytest.raises(UserError, match="no setting with 5 heads was compared"):
        choose_setting(table, n_heads=5)


def test_gain_and_cost_of_every_setting(planted: HookedModel, planted_premises: Premises) -> None:
    premises = planted_premises.first(6).with_templates(["why", "famous"])
    sites: tuple[Any, ...] = ("output", "attention")
    effects = {site: locate_heads(planted, premises, site=site, progress=False) for site in sites}
    modes: dict[Any, Any] = {
        "output": [("zero", 0.0), ("mean", 0.0)],
        "attention": [("zero", 0.0), ("scale", 0.9)],
    }
    table = compare_settings(planted, premises, effects, counts=(1, 2), modes=modes, progress=False)
    assert list(zip(table["site"], table["mode"], table["n_heads"], strict=True)) == [
        *(
            ("output", "zero", 1),
            ("output", "zero", 2),
            ("output", "mean", 1),
            ("output", "mean", 2),
        ),
        *(("attention", "zero", 1), ("attention", "zero", 2)),
        *(("attention", "scale 0.9", 1), ("attention", "scale 0.9", 2)),
    ]
    assert list(table["head_fraction"]) == [1 / 12, 2 / 12] * 4
    assert (table["gain_low"] <= table["gain"]).all()
    assert (table["gain"] <= table["gain_high"]).all()
    assert not table["chosen"].any()
    by = table.set_index(["site", "mode", "n_heads"])
    assert by.loc[("output", "zero", 1), "gain"] == 1.0
    assert by.loc[("attention", "zero", 1), "gain"] == 1.0
    # Nine tenths of the attention copy the false object nearly as strongly.
    assert by.loc[("attention", "scale 0.9", 1), "gain"] == 0.0
    encoded = encode_premises(planted.tokenizer, premises)
    chosen = HeadSet((effects["output"].ranked()[0],))
    twin = preference(
        planted,
        encoded,
        "twin",
        constraint=Constraint(chosen),
        sets=[HeadSet(()), chosen],
        progress=False,
    )
    cost = (twin.p_true[:, 0] - twin.p_true[:, 1]).mean()
    assert by.loc[("output", "zero", 1), "cost"] == pytest.approx(cost)
    assert cost > 0.1
