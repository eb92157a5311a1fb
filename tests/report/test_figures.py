import sys
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from interp.errors import UserError
from interp.figures.evaluation import answer_outcomes
from interp.report import (
    gain_cost_curve,
    head_heatmap,
    layer_profile,
    method_agreement,
    preference_by_template,
    random_null,
)
from interp.report.read_run import read_heads, read_null, read_settings


@pytest.fixture
def heads(run_directory: Path) -> pd.DataFrame:
    return read_heads(run_directory / "heads.csv")


def traces(figure: go.Figure) -> list[dict[str, Any]]:
    return figure.to_plotly_json()["data"]


def named(figure: go.Figure, name: str) -> dict[str, Any]:
    return next(trace for trace in traces(figure) if trace.get("name") == name)


def test_the_heat_map_is_layer_by_head(heads: pd.DataFrame) -> None:
    cells = traces(head_heatmap(heads, site="attention"))[0]
    assert cells["z"] == [[0.0123456789, -0.75], [1.5, 0.0]]
    assert (cells["y"], cells["x"]) == ([0, 1], [0, 1])
    assert (cells["zmin"], cells["zmid"], cells["zmax"]) == (-1.5, 0.0, 1.5)


def test_hovering_gives_the_row_of_the_table_exactly(heads: pd.DataFrame) -> None:
    rows = heads[heads["site"] == "output"]
    hover = traces(head_heatmap(heads, site="output"))[0]["customdata"]
    for row in rows.itertuples():
        effect, low, high, q_value, rank, note = hover[row.layer][row.head]
        assert (effect, low, high, rank) == (row.effect, row.ci_low, row.ci_high, row.rank)
        assert q_value == row.q_value or (q_value != q_value and row.q_value != row.q_value)
        assert ("selected" in note) == row.selected


def test_cells_that_are_not_significant_are_veiled_and_carry_no_sign(heads: pd.DataFrame) -> None:
    cells, veil = traces(head_heatmap(heads, site="output"))[:2]
    # The last head has no q-value: it counts as not significant.
    assert veil["z"] == [[None, None], [1, 1]]
    assert cells["text"] == [["+", "+"], ["", ""]]
    cells, veil = traces(head_heatmap(heads, site="attention", fdr=0.001))[:2]
    assert veil["z"] == [[1, 1], [1, 1]]
    assert cells["text"] == [["", ""], ["", ""]]


def test_signs_do_without_colour(heads: pd.DataFrame) -> None:
    assert traces(head_heatmap(heads, site="attention"))[0]["text"] == [["", "−"], ["+", ""]]


def test_selected_cells_are_framed(heads: pd.DataFrame) -> None:
    figure = head_heatmap(heads, site="attention")
    frames = [trace for trace in traces(figure) if trace.get("mode") == "lines"]
    for frame in frames:
        corners = list(zip(frame["x"], frame["y"], strict=True))
        assert corners[:2] == [(-0.46, 0.54), (0.46, 0.54)]  # layer 1, head 0
        assert len(corners) == 6
    assert len(frames) == 2


def test_a_head_without_a_row_is_an_empty_cell(heads: pd.DataFrame) -> None:
    rows = heads[(heads["site"] == "attention") & (heads["head"] + heads["layer"] < 2)]
    cells, veil = traces(head_heatmap(pd.DataFrame(rows)))[:2]
    assert cells["z"][1][1] is None
    assert veil["z"][1][1] is None


def test_effects_of_zero_make_a_map(heads: pd.DataFrame) -> None:
    cells = traces(head_heatmap(heads.assign(effect=0.0), site="output"))[0]
    assert (cells["zmin"], cells["zmax"]) == (-1.0, 1.0)


def test_several_sites_must_be_told_apart(heads: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="attention, output"):
        head_heatmap(heads)
    with pytest.raises(UserError, match="no heads of site 'mlp'"):
        head_heatmap(heads, site="mlp")


def test_the_layer_profile_sums_significant_heads_by_sign(heads: pd.DataFrame) -> None:
    figure = layer_profile(heads, site="output")
    assert list(named(figure, "positive, summed")["y"]) == [0.75, 0.0]
    assert list(named(figure, "negative, summed")["y"]) == [0.0, 0.0]
    assert list(named(figure, "selected head")["y"]) == [0.5, 0.25]
    figure = layer_profile(heads, site="attention")
    assert list(named(figure, "negative, summed")["y"]) == [-0.75, 0.0]


def test_the_curve_orders_by_head_count_and_rings_the_chosen(run_directory: Path) -> None:
    figure = gain_cost_curve(read_settings(run_directory / "settings.csv"))
    assert named(figure, "attention, zero")["x"] == [0.05, 0.17]
    assert named(figure, "attention, zero")["y"] == [0.2, 0.5]
    chosen = named(figure, "chosen")
    assert (chosen["x"], chosen["y"]) == ([0.17], [0.5])
    assert chosen["error_y"]["array"] == pytest.approx([0.1])
    assert chosen["error_x"]["arrayminus"] == pytest.approx([0.07])


def test_the_null_shows_the_sets_of_its_setting_only(
    run_directory: Path, evaluation: dict[str, Any]
) -> None:
    null = read_null(run_directory / "null.csv")
    figure = random_null(null, evaluation)
    assert traces(figure)[0]["x"] == [0.25, 0.5]
    lines = [shape["x0"] for shape in figure.to_plotly_json()["layout"]["shapes"]]
    assert lines == [0.25, 0.375, 0.75]  # no constraint, 95th percentile, chosen
    with pytest.raises(UserError, match="no random head sets"):
        random_null(null, {**evaluation, "n_heads": 4})


def test_bars_carry_their_intervals(evaluation: dict[str, Any]) -> None:
    bars = traces(preference_by_template(evaluation))
    constrained = next(bar for bar in bars if bar["name"] == "constrained")
    assert constrained["y"] == [0.75, 0.75, 0.75]
    assert constrained["error_y"]["array"] == pytest.approx([0.1] * 3)
    assert len(bars) == 4


def test_agreement_joins_heads_by_layer_and_head() -> None:
    x = pd.DataFrame({"layer": [0, 0, 1], "head": [0, 1, 0], "effect": [0.1, 0.2, 0.3]})
    y = pd.DataFrame({"layer": [1, 0, 0], "head": [0, 1, 0], "effect": [9.0, 4.0, 1.0]})
    figure = method_agreement(x, y, x_name="path", y_name="attribution")
    assert traces(figure)[0]["y"] == [1.0, 4.0, 9.0]
    assert figure.to_plotly_json()["layout"]["title"]["text"] == "Spearman 1.00, 3 heads"
    with pytest.raises(UserError, match="fewer than three"):
        method_agreement(x.head(2), y, x_name="path", y_name="attribution")


def test_names_are_not_markup_in_labels(run_directory: Path, evaluation: dict[str, Any]) -> None:
    figures = (
        gain_cost_curve(read_settings(run_directory / "settings.csv")),
        preference_by_template(evaluation),
    )
    for figure in figures:
        text = figure.to_json()
        assert text is not None
        assert "<script" not in text
        assert "<b>mean" not in text
    assert "&lt;b&gt;mean" in str(figures[0].to_json())


def test_plotly_is_left_as_it_was(heads: pd.DataFrame) -> None:
    before = (pio.templates.default, set(pio.templates))
    head_heatmap(heads, site="output")
    assert (pio.templates.default, set(pio.templates)) == before
    assert "interp.figures.theme" in sys.modules


def test_answers_are_counted_by_outcome() -> None:
    rows = [("true_premise", "right")] * 3 + [("true_premise", "broken")]
    rows += [("false_premise", "mended"), ("false_premise", "wrong")]
    figure = answer_outcomes(pd.DataFrame(rows, columns=["kind", "outcome"]))
    shares = {trace["name"]: trace["x"] for trace in traces(figure)}
    assert shares == {
        "true object with the constraint only": [0.5, 0.0],
        "true object in both answers": [0.0, 0.75],
        "true object without the constraint only": [0.0, 0.25],
        "true object in neither": [0.5, 0.0],
    }
    assert traces(figure)[0]["y"] == ["False premises", "True-premise twins"]
    assert traces(figure)[0]["customdata"] == [[1, 2], [0, 4]]
    with pytest.raises(UserError, match="answers=True"):
        answer_outcomes(pd.DataFrame(columns=["kind", "outcome"]))


def test_a_template_of_the_session_changes_no_figure(
    heads: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = head_heatmap(heads, site="attention").to_json()
    monkeypatch.setattr(pio.templates, "default", "plotly_dark")
    assert go.Figure().layout.template.layout.paper_bgcolor == "rgb(17,17,17)"
    assert head_heatmap(heads, site="attention").to_json() == before
