from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from interp.errors import UserError
from interp.figures.tables import (
    COMPARISON_COLUMNS,
    comparison_table,
    rich_table,
    setting_name,
    template_table,
)


def test_one_row_a_setting_with_its_null(evaluation: dict[str, Any]) -> None:
    table = comparison_table(evaluation)
    assert tuple(table.columns) == COMPARISON_COLUMNS
    assert list(table["setting"]) == [
        "no constraint",
        "attention, zero, 3 heads (1.1 %)",
        "20 random head sets, matched",
        "output, zero, 3 heads (1.1 %)",
        "20 random head sets, matched",
    ]
    assert list(table["preference, false premises"]) == [
        "0.25 [0.15, 0.35]",
        "0.75 [0.65, 0.85]",
        "0.26, p95 0.38",
        "0.50 [0.40, 0.60]",
        "0.26, p95 0.38",
    ]
    assert list(table["P(true), twins"][:3]) == ["0.88 [0.78, 0.97]", "0.62 [0.53, 0.72]", "–"]
    assert list(table["neutral KL"][:3]) == ["–", "0.0031", "–"]


def test_measures_that_were_not_taken_are_dashes(evaluation: dict[str, Any]) -> None:
    held_out = evaluation["splits"]["held_out"]
    held_out["false_premise"]["constrained"]["true_object_mention_rate"] = None
    del held_out["true_premise"], evaluation["random_null"], evaluation["side_effects"]
    row = comparison_table({**evaluation, "alternatives": []}).iloc[1]
    assert row["names true, false premises"] == "–"
    assert row["preference, twins"] == "–"
    assert row["preference, false premises"] == "0.75 [0.65, 0.85]"


def test_templates_then_all(evaluation: dict[str, Any]) -> None:
    table = template_table(evaluation)
    assert list(table["template"].unique())[-1] == "all templates"
    assert len(table) == 3 * 2 * 2
    first = table.iloc[1]
    assert (first["kind"], first["run"]) == ("false premise", "constrained")
    assert (first["value"], first["low"], first["high"]) == (0.75, 0.65, 0.85)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"n_heads": 1, "head_fraction": None}, "attention, zero, 1 head"),
        ({"gate": "probe"}, "attention, zero, 3 heads (1.1 %), gate: probe"),
        ({"decoding_steps": 1}, "attention, zero, 1 decoding step, 3 heads (1.1 %)"),
    ],
)
def test_setting_names(evaluation: dict[str, Any], changes: dict[str, Any], name: str) -> None:
    assert setting_name({**evaluation, **changes}) == name


@pytest.mark.parametrize("alternatives", [{"site": "output"}, ["output"], "output"])
def test_malformed_alternatives_are_refused(evaluation: dict[str, Any], alternatives: Any) -> None:
    with pytest.raises(UserError, match=r"evaluation\.json"):
        comparison_table({**evaluation, "alternatives": alternatives})


def test_a_terminal_shows_brackets_literally() -> None:
    console = Console(width=80, record=True, file=None, quiet=False)
    frame = pd.DataFrame({"setting": ["[red]x[/red]"], "value": ["0.25 [0.15, 0.35]"]})
    with console.capture() as capture:
        console.print(rich_table(frame, title="[b]held out[/b]"))
    shown = capture.get()
    assert "[red]x[/red]" in shown
    assert "0.25 [0.15, 0.35]" in shown
    assert "[b]held out[/b]" in shown


def test_a_scaled_setting_shows_its_factor() -> None:
    setting = {"site": "output", "mode": "scale", "factor": -1.0, "n_heads": 3}
    assert setting_name(setting) == "output, scale -1, 3 heads"
